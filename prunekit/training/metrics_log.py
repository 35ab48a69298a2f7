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

from prunekit.files import append_jsonl, atomic_write_text, read_jsonl, write_jsonl


class JsonlLogger(Logger):
    """Logger that appends each row to a file as {"step", "epoch", "time", ...metrics}; NaN and infinities become null.

    `step` is the last optimizer step taken, counted from 0; `time` is in seconds since 1970.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

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
        """Append one row."""
        values = {key: float(value) for key, value in metrics.items() if key not in ("epoch", "step")}
        epoch = metrics.get("epoch")
        row = {"step": step, "epoch": None if epoch is None else int(epoch), "time": round(time.time(), 3)}
        append_jsonl(self.path, row | values)

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Delete the rows of all but the first `steps` optimizer steps, because later steps are run again."""
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] is None or row["step"] < steps]
        if len(kept) < len(rows) or not self.path.is_file():
            write_jsonl(self.path, kept)

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
