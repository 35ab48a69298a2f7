"""The progress of a sweep, printed run by run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.config.errors import MISSED
from prunekit.console import clock
from prunekit.files import damage, write_sealed_text
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult


def title(cfg: dict[str, Any], swept: Mapping[str, str] | None = None) -> str:
    """Name a run in a few words, such as "top cola minilm 2x s1 1f3a9c0d".

    `swept` are the settings that tell the runs of a sweep apart; they stand in the place of the hash.
    """
    path = RunFolder.of(cfg).path
    task, method, backbone, budget, name = path.parts[-5:]
    seed, _, digest = name.partition("-")
    told = [digest] if swept is None else [f"{key}={value}" for key, value in swept.items()]
    return " ".join([method, task, backbone, *([budget] if budget != method else []), seed, *told])


@dataclass(frozen=True)
class Board:
    """The runs that a sweep set out to do; any of its processes can count those that are over."""

    started: float  # seconds since 1970, for the time that is left alone
    runs: tuple[tuple[Path, float], ...]  # folder, and how long it takes relative to the others
    failed_before: frozenset[str] = frozenset()  # ids of the failures that the sweep found at its beginning
    names: Mapping[str, str] = field(default_factory=dict)  # by folder, what a run of the sweep is called

    @classmethod
    def read(cls, folder: Path) -> Board:
        """Read the board that a grid left in its folder; an empty one where there is none."""
        path = folder / "board.json"
        try:
            if damage(path) is not None:
                return cls(time.time(), ())
            content = json.loads(path.read_text(encoding="utf-8"))
            runs = tuple((Path(run), float(weight)) for run, weight in content["runs"])
            return cls(float(content["started"]), runs, frozenset(content["failed_before"]), dict(content["names"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(time.time(), ())

    def name(self, cfg: dict[str, Any]) -> str:
        """Return what the sweep calls a run; of its teachers and without a sweep the run's own title."""
        return self.names.get(str(RunFolder.of(cfg).path)) or title(cfg)

    def write(self, folder: Path) -> None:
        """Write the board where the jobs find it."""
        runs = [[str(path), weight] for path, weight in self.runs]
        content = {
            "started": self.started,
            "runs": runs,
            "failed_before": sorted(self.failed_before),
            "names": dict(self.names),
        }
        write_sealed_text(folder / "board.json", json.dumps(content, indent=1) + "\n")

    def announce_start(self, name: str, folder: RunFolder) -> None:
        """Print that a run begins, and the log to follow it in."""
        _tell(f"{self._count(1)} begins  {name}   {folder.log}")

    def announce_end(self, name: str, result: AnyResult, seconds: float) -> None:
        """Print the outcome of a run, and when all runs will be done."""
        score = result.score
        parts = [f"{score.metric} {100 * score.pruned:.2f}", f"{result.budget.reached:.2f}x", clock(seconds)]
        if result.exit_code == MISSED:
            parts.insert(2, "budget missed")
        _tell(f"{self._count(0)} done    {name}   {', '.join(parts)}{self._eta()}")

    def announce_failure(self, name: str, message: str, folder: RunFolder | None) -> None:
        """Print that a run failed, and where its log is."""
        where = f"   log: {folder.log}" if folder is not None else ""
        _tell(f"{self._count(0)} FAILED  {name}   {message.splitlines()[0][:120]}{where}{self._eta()}")

    def _remaining(self) -> list[float]:
        """Return the weights of the runs that are not over at this moment."""
        return [weight for path, weight in self.runs if not self._is_over(RunFolder(path, ""))]

    def _count(self, ahead: int) -> str:
        if not self.runs:
            return "job"
        width = len(str(len(self.runs)))
        return f"{min(len(self.runs), len(self.runs) - len(self._remaining()) + ahead):{width}d}/{len(self.runs)}"

    def _eta(self) -> str:
        left, total = sum(self._remaining()), sum(weight for _, weight in self.runs)
        if not self.runs or left >= total:
            return ""
        spent = max(0.0, time.time() - self.started)  # the clock may have been set back
        return f" | ETA {clock(spent / (total - left) * left)}" if left else ""

    def _is_over(self, folder: RunFolder) -> bool:
        """Return whether a run is done, or has failed in this sweep."""
        if (folder.path / "result.json").is_file():
            return True
        failed = folder.failure_id()
        return failed is not None and failed not in self.failed_before


def _tell(line: str) -> None:
    print(line, flush=True)
