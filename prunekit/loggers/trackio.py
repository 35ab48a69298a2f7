"""trackio: a local tracker with the interface of W&B."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from prunekit.config.errors import first_line
from prunekit.console import say
from prunekit.loggers.base import RunSink
from prunekit.loggers.names import project_name, run_folder_name, run_group
from prunekit.runs.folder import RunFolder


class TrackioSink(RunSink):
    """A trackio run, in trackio's own database on this machine."""

    title = "trackio"

    def send_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Send one row."""
        self.run.log(metrics, step=step)

    def send_summary(self, values: dict[str, Any]) -> None:
        """Send the final numbers as a last row: trackio has no summary."""
        self.run.log(values)

    def close(self, exit_code: int) -> None:
        """End the run once everything is in the database."""
        with redirect_stdout(io.StringIO()):
            self.library.finish()


def start(cfg: Mapping[str, Any], folder: RunFolder, *, project: str) -> TrackioSink | None:
    """Start a trackio run that a resumed run continues: its name is that of the W&B run and the configuration's hash.

    Metrics stay on this machine unless trackio's own TRACKIO_SPACE_ID says otherwise. Returns None, and reports why in
    one line, where the run cannot start.
    """
    try:
        import trackio  # an optional extra

        init = trackio.init
    except (ImportError, AttributeError):
        say("trackio: not installed, so not used (pip install 'prunekit[trackio]').")
        return None
    try:
        with redirect_stdout(io.StringIO()):
            run = init(
                project=project_name(project),
                name=run_folder_name(cfg, folder),
                group=run_group(cfg),
                config=dict(cfg),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
    except Exception as error:
        say(f"trackio: did not start ({first_line(error)}); the run continues without it.")
        return None
    return TrackioSink(run, trackio)
