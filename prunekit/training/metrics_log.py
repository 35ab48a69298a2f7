"""metrics.jsonl: the record of what was logged during training."""

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
    """Appends each logged row to a file as {"step", "epoch", "time", ...metrics}; NaN and infinities become null.

    `step` counts optimizer steps from 0 and names the last one that was taken; `time` is in seconds since 1970.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Always empty: a run has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The file's folder."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row."""
        values = {key: float(value) for key, value in metrics.items() if key not in ("epoch", "step")}
        epoch = metrics.get("epoch")
        row = {"step": step, "epoch": None if epoch is None else int(epoch), "time": round(time.time(), 3)}
        append_jsonl(self.path, row | values)

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Drops the rows of all but the first `steps` optimizer steps: what comes after them is run again."""
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] is None or row["step"] < steps]
        if len(kept) < len(rows) or not self.path.is_file():
            write_jsonl(self.path, kept)

    @rank_zero_only
    def write_csv(self, path: str | Path) -> None:
        """The rows as a table; a metric that a row lacks is left empty."""
        rows = read_jsonl(self.path)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(path, text.getvalue())
