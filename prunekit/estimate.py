"""How long a run will take and how much disk it needs, from finished runs of its kind. Imports nothing slow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from prunekit.files import read_jsonl

Kind = tuple[Any, ...]

TRAINER = ("batch_size", "precision", "freeze_embeddings", "evals_per_epoch", "accelerator")


@dataclass(frozen=True)
class Measured:
    """What one finished run took."""

    kind: Kind
    steps: int  # optimizer steps; 0 where nothing is trained
    epochs: float
    rows: int | None  # training rows, None = all
    fit: float  # seconds
    rest: float  # seconds: data, tests, speed, saving; without the teacher's training
    size: int  # bytes on the disk

    def seconds(self, cfg: Mapping[str, Any]) -> float:
        """How long a run of the same kind takes with another schedule; of its own task and batch size."""
        if not self.steps:
            return self.fit + self.rest
        trainer, rows = cfg["trainer"], cfg["data"]["train_rows"]
        share = rows / self.rows if rows and self.rows else 1.0
        steps = self.steps * share * trainer["epochs"] / self.epochs
        if trainer["max_steps"]:
            steps = min(steps, trainer["max_steps"])
        return self.fit / self.steps * steps + self.rest


def kind_of(cfg: Mapping[str, Any]) -> Kind:
    """What two runs must share for the one to tell the time of the other; schedules, rates and seeds may differ."""
    trainer, task, data = cfg["trainer"], cfg["task"], cfg["data"]
    # runs that prune weights have neither lengths nor a training, but texts of their own
    corpora = [task.get(name) or {} for name in ("open", "domain")]
    return (
        cfg["method"]["name"],
        cfg["method"].get("train", True),
        task["name"],
        task.get("max_length"),
        task.get("file"),
        cfg["backbone"]["name"],
        *(trainer.get(key) for key in TRAINER),
        *(corpus.get(key) for corpus in corpora for key in ("samples", "seqlen")),
        *(task.get(key) for key in ("eval_tokens", "window", "stride")),
        # without all rows the number of steps follows from theirs; the two do not mix
        data["train_rows"] is None,
        data["eval_rows"],
        cfg.get("bench", {}).get("enabled"),
    )


class Estimator:
    """Answers from the finished runs of a folder; what has no run of its kind there gets None."""

    def __init__(self, runs_dir: str | Path) -> None:
        self.found: dict[Kind, list[Measured]] = {}
        for file in sorted(Path(runs_dir).glob("*/*/*/*/s*/result.json")):
            if (run := measured(file.parent)) is not None:
                self.found.setdefault(run.kind, []).append(run)

    def seconds(self, cfg: Mapping[str, Any]) -> float | None:
        """Seconds for one run without its teacher: the median over the finished runs of its kind."""
        runs = self.found.get(kind_of(cfg))
        return float(median(run.seconds(cfg) for run in runs)) if runs else None

    def size(self, cfg: Mapping[str, Any]) -> float | None:
        """Bytes of one run's folder: the model is most of it, so that any run of the backbone tells."""
        name = cfg["backbone"]["name"]
        sizes = [run.size for kind, runs in self.found.items() if kind[5] == name for run in runs]
        return float(median(sizes)) if sizes else None


def measured(folder: Path) -> Measured | None:
    """What the run in a folder took; None where it does not say, or went on after an interruption."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cfg = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if manifest.get("resumed"):
            return None  # its clock began anew
        seconds = result["seconds"]
        steps = [row["step"] for row in read_jsonl(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
        fit = float(seconds.get("fit", 0.0))
        epochs = cfg["trainer"].get("epochs", 1)
        return Measured(
            kind=kind_of(cfg),
            steps=max(steps) + 1 if steps and fit else 0,
            epochs=float(epochs),
            rows=cfg["data"]["train_rows"],
            fit=fit,
            rest=float(seconds["total"]) - fit - float(seconds.get("teacher", 0.0)),
            size=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None  # half-written, or of an older version: it tells nothing
