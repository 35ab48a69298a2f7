"""What every logger shares: the run's names, media, and a sink that never stops a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.config.identity import config_hash
from prunekit.console import say
from prunekit.runs.folder import RunFolder


@dataclass(frozen=True)
class Media:
    """A run's texts for a logger that shows more than numbers."""

    picture: np.ndarray  # [height, width, 3] bytes
    columns: list[str]
    rows: list[list[Any]]  # a token each


class Sink(Logger):
    """Sends rows to a `run` of a tracking library; the first failure is told in one line and ends the sending.

    `title` is what users call the library, `library` what Python does: it has a `Table` and an `Image`.
    """

    title = ""
    library = ""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self._failed = False

    @property
    def name(self) -> str:
        """The project."""
        return str(self.run.project)

    @property
    def version(self) -> str:
        """The id of the run."""
        return str(self.run.id)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration was given at the start."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Keeps final values."""
        raise NotImplementedError

    @rank_zero_only
    def show(self, shown: Media) -> None:
        """Sends the picture as tokens/heatmap and the table as tokens/table."""

        def send() -> None:
            library: Any = import_module(self.library)
            table = library.Table(columns=shown.columns, data=shown.rows)
            self.run.log({"tokens/heatmap": library.Image(shown.picture), "tokens/table": table})

        self._safely(send)

    def finish(self, exit_code: int) -> None:
        """Ends the run, so that the next job of the same process gets one of its own."""
        raise NotImplementedError

    def _safely(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:
            self._failed = True
            say(
                f"{self.title}: logging failed ({_first_line(error)}); "
                "the run goes on without it, metrics.jsonl has everything."
            )


def wandb_group(cfg: Mapping[str, Any]) -> str:
    """The name that runs share which differ in nothing but the seed."""
    path = RunFolder.of(cfg).path
    rest = {key: value for key, value in cfg.items() if key != "seed"}
    return "/".join([*path.parts[-5:-1], config_hash(rest)])


def run_name(cfg: Mapping[str, Any], folder: RunFolder) -> str:
    """Readable, and sorted with its like: top-cola-minilm-3x-s1."""
    names = [cfg[key]["name"] for key in ("method", "task", "backbone")]
    return "-".join([*names, folder.path.parent.name, f"s{cfg['seed']}"])


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
