"""What loggers share: the class that they subclass, and how its errors are told."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.config.errors import first_line
from prunekit.console import say


@dataclass(frozen=True)
class Media:
    """The kept tokens of a few texts, as a picture and as the columns and rows of a table."""

    picture: np.ndarray  # [height, width, 3] bytes
    columns: list[str]
    rows: list[list[Any]]  # one per token


class Sink(Logger):
    """A logger that cannot stop a run: its first error is reported in one line, and nothing is sent after it.

    A subclass defines `send_metrics`, and `send_summary`, `send_media` and `close` where the library supports them.
    """

    title: ClassVar[str] = ""  # the library's name in messages

    def __init__(self) -> None:
        super().__init__()
        self._failed = False

    @property
    def name(self) -> str:
        """The library."""
        return self.title

    @property
    def version(self) -> str:
        """The id of the run in the library; empty where it has none."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the whole configuration was given at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one row."""
        self._safely(lambda: self.send_metrics(dict(metrics), step))

    @rank_zero_only
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Send the final numbers of the run."""
        self._safely(lambda: self.send_summary(dict(values)))

    @rank_zero_only
    def show(self, media: Media) -> None:
        """Send which tokens were kept, as tokens/heatmap and tokens/table."""
        self._safely(lambda: self.send_media(media))

    def finish(self, exit_code: int) -> None:
        """End the run in the library, so that the next job of this process gets a run of its own."""
        self._safely(lambda: self.close(exit_code))

    @abstractmethod
    def send_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Send one row; `step` counts optimizer steps from 0."""

    def send_summary(self, values: dict[str, Any]) -> None:
        """Send the final numbers. No-op by default."""

    def send_media(self, media: Media) -> None:
        """Send the picture and the table. No-op by default."""

    def close(self, exit_code: int) -> None:
        """End the run; 0 = it is done. No-op by default."""

    def _safely(self, call: Callable[[], object]) -> None:
        if not self._failed:
            try:
                call()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Report an error, the first alone."""
        if not self._failed:
            self._failed = True
            say(
                f"{self.title}: logging failed ({first_line(error)}); "
                "the run continues without it, metrics.jsonl has everything."
            )


class RunSink(Sink):
    """A sink that sends to a `run` object of `library`, which has an `Image` and a `Table`, as W&B and its likes."""

    def __init__(self, run: Any, library: ModuleType) -> None:
        super().__init__()
        self.run = run
        self.library: Any = library

    @property
    def name(self) -> str:
        """The project."""
        return str(self.run.project)

    @property
    def version(self) -> str:
        """The id of the run."""
        return str(self.run.id)

    def send_media(self, media: Media) -> None:
        """Send the picture and the table in one row."""
        table = self.library.Table(columns=media.columns, data=media.rows)
        self.run.log({"tokens/heatmap": self.library.Image(media.picture), "tokens/table": table})
