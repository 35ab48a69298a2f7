"""trackio: a local tracker with the interface of W&B."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from prunekit.console import say
from prunekit.loggers.base import Sink, _first_line, run_name, wandb_group
from prunekit.runs.folder import RunFolder


class TrackioLogger(Sink):
    """A trackio run, in trackio's own database on this machine."""

    title = "trackio"
    library = "trackio"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends one row."""
        self._safely(lambda: self.run.log(dict(metrics), step=step))

    @rank_zero_only
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Sends final values as a last row: trackio has no summary."""
        self._safely(lambda: self.run.log(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Ends the trackio run; waits until everything is in its database."""

        def end() -> None:
            import trackio

            with redirect_stdout(io.StringIO()):
                trackio.finish()

        self._safely(end)


def start_trackio(cfg: Mapping[str, Any], folder: RunFolder) -> TrackioLogger | None:
    """A trackio run named like the W&B one with its hash, which a resumed run goes on in; None when there can be none.

    Says in one line why there is none. Metrics stay on this machine unless trackio's own TRACKIO_SPACE_ID says else.
    """
    try:
        import trackio

        init = trackio.init
    except (ImportError, AttributeError):
        say("trackio: not installed, so not used (pip install 'prunekit[trackio]').")
        return None
    try:
        with redirect_stdout(io.StringIO()):
            run = init(
                project=cfg["logger"]["wandb"]["project"],
                name=f"{run_name(cfg, folder)}-{folder.hash}",
                group=wandb_group(cfg),
                config=dict(cfg),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
    except Exception as error:
        say(f"trackio: did not start ({_first_line(error)}); the run goes on without it.")
        return None
    return TrackioLogger(run)
