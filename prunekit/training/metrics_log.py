"""metrics.jsonl: the record of the metrics logged in training."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from prunekit.console import say
from prunekit.files import append_jsonl, atomic_write_text, damage, read_jsonl, seal, write_jsonl


class JsonlLogger(Logger):
    """Logger that appends each row to a file as {"step", "epoch", "time", ...metrics}; NaN and infinities become null.

    `step` is the last optimizer step taken, counted from 0; `time` is in seconds since 1970. `owner` is the hash of the
    run.
    """

    def __init__(self, path: str | Path, owner: str = "") -> None:
        super().__init__()
        self.path = Path(path)
        self.owner = owner
        self._is_open = False  # whether this process has written the file

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """An empty string, because a run has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the hyperparameters, which config.yaml holds."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row.

        Raises:
            OSError: the disk is full, or the file was removed since the run began.
        """
        values = {key: float(value) for key, value in metrics.items() if key not in ("epoch", "step")}
        epoch = metrics.get("epoch")
        row = {"step": step, "epoch": None if epoch is None else int(epoch), "time": round(time.time(), 3)}
        # a record that begins in the middle would look like a whole one
        append_jsonl(self.path, row | values, create=not self._is_open)
        self._is_open = True

    @rank_zero_only
    def repair(self) -> None:
        """Keep the rows that can be read of a file that is not what was written, and print that."""
        wrong = damage(self.path, self.owner, grows=True)
        if wrong is not None:
            write_jsonl(self.path, read_jsonl(self.path, is_damaged=True), self.owner)
            say(f"{self.path} {wrong}; what can be read of it is kept, force=true trains again from the start.")

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Delete the rows of all but the first `steps` optimizer steps, because later steps are run again."""
        self.repair()
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row.get("step") is None or row["step"] < steps]
        if len(kept) < len(rows) or not self.path.is_file():
            write_jsonl(self.path, kept, self.owner)
        self._is_open = True

    @rank_zero_only
    def seal(self) -> None:
        """Seal the rows that are there."""
        if self.path.is_file():
            seal(self.path, self.owner)

    @rank_zero_only
    def write_csv(self, path: str | Path) -> None:
        """Write the rows as a table; a metric that a row does not have is left empty."""
        rows = read_jsonl(self.path)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(path, text.getvalue())
