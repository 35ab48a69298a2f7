"""What a run is about to do and how long that takes: the first lines that it prints. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.config.identity import is_dense
from prunekit.console import clock
from prunekit.runs.estimate import Estimate, Estimator, is_timed, is_trained
from prunekit.runs.finished import finished_result
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import teacher_config


@dataclass(frozen=True)
class Plan:
    """The stages of one run, in words; its estimate with its teacher's; and what follows two of its stages.

    `after_teacher` are the seconds from the end of the teacher's run, `after_fit` those from the end of the training.
    All are None where no finished run tells.
    """

    name: str
    stages: tuple[str, ...]
    estimate: Estimate | None
    after_teacher: float | None
    after_fit: float | None

    @property
    def text(self) -> str:
        """The plan as three lines, which fit a terminal."""
        how_long = "no estimate yet: no comparable run has finished"
        if (found := self.estimate) is not None:
            how_long = f"about {clock(found.seconds)} ({clock(found.low)} to {clock(found.high)})"
        return f"plan       {self.name}\n           {', '.join(self.stages)}\n           {how_long}"


def plan_run(cfg: Mapping[str, Any]) -> Plan:
    """Plan a run from its canonical configuration, and estimate it from the finished runs of its runs_dir."""
    estimator, folder = Estimator(cfg["runs_dir"]), RunFolder.of(cfg)
    teacher = teacher_config(dict(cfg))
    if teacher is not None and finished_result(RunFolder.of(teacher)) is not None:
        teacher = None
    own = estimator.estimate(cfg)
    parts = [own] if teacher is None else [estimator.estimate(teacher), own]
    known = [part for part in parts if part is not None]
    task, method, backbone, label, _ = folder.path.parts[-5:]
    whole = None
    if len(known) == len(parts):
        seconds, low, high = (sum(getattr(part, name) for part in known) for name in ("seconds", "low", "high"))
        whole = Estimate(seconds, low, high, by=known[-1].by)
    return Plan(
        " ".join(
            [
                method,
                "on",
                f"{task},",
                f"{backbone},",
                *([f"{label},"] if label != method else []),
                f"seed {cfg['seed']}",
            ]
        ),
        tuple(_stages(cfg, folder, teacher is not None)),
        whole,
        None if own is None else own.seconds,
        estimator.besides(cfg),
    )


def _stages(cfg: Mapping[str, Any], folder: RunFolder, trains_teacher: bool) -> list[str]:
    begun = folder.checkpoints.is_dir() and any(folder.checkpoints.iterdir())
    found = ["train the teacher"] if trains_teacher else []
    if cfg["method"].get("prunes") == "weights":
        return [*found, "prune the weights", "test"]
    if is_trained(cfg):
        found.append(
            ("resume the training" if begun else "train") + (" pruned" if not is_dense(cfg["method"]["name"]) else "")
        )
    else:
        found.append("set the budget")
    return [*found, "test", *(["measure speed"] if is_timed(cfg) else [])]
