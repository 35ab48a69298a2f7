"""How far a sweep is: its runs, and what came of each."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunekit.config.errors import MISSED
from prunekit.console import clock
from prunekit.files import atomic_write_text
from prunekit.runs.folder import RunFolder
from prunekit.runs.result import AnyResult


def title(cfg: dict[str, Any]) -> str:
    """A run in a few words, such as "top cola minilm 2x s1 1f3a9c0d"."""
    path = RunFolder.of(cfg).path
    task, method, backbone, budget, name = path.parts[-5:]
    seed, _, digest = name.partition("-")
    return " ".join([method, task, backbone, *([budget] if budget != method else []), seed, digest])


@dataclass(frozen=True)
class Board:
    """The runs that a sweep set out to do, which any of its processes can count; says how far it is."""

    started: float
    runs: tuple[tuple[Path, float], ...]  # folder, and how long it takes relative to the others

    @classmethod
    def read(cls, folder: Path) -> Board:
        """The board that a grid left in its folder; an empty one where there is none."""
        try:
            found = json.loads((folder / "board.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(time.time(), ())
        return cls(found["started"], tuple((Path(path), weight) for path, weight in found["runs"]))

    def write(self, folder: Path) -> None:
        """Leaves the board where the jobs find it."""
        runs = [[str(path), weight] for path, weight in self.runs]
        atomic_write_text(folder / "board.json", json.dumps({"started": self.started, "runs": runs}, indent=1) + "\n")

    def begins(self, name: str, folder: RunFolder) -> None:
        """Says that a run begins, and where one can look on."""
        _tell(f"{self._count(1)} begins  {name}   {folder.log}")

    def ends(self, name: str, result: AnyResult, seconds: float) -> None:
        """Says what came of a run, and when all will be done."""
        score = result.score
        parts = [f"{score.metric} {score.pruned:.4f}", f"{result.budget.reached:.2f}x", clock(seconds)]
        if result.exit_code == MISSED:
            parts.insert(2, "budget missed")
        _tell(f"{self._count(0)} done    {name}   {', '.join(parts)}{self._eta()}")

    def failed(self, name: str, message: str, folder: RunFolder | None) -> None:
        """Says that a run failed, and where its log is."""
        where = f"   log: {folder.log}" if folder is not None else ""
        _tell(f"{self._count(0)} FAILED  {name}   {message.splitlines()[0][:120]}{where}{self._eta()}")

    @cached_property
    def _left(self) -> list[float]:
        return [weight for path, weight in self.runs if not _over(RunFolder(path, ""), self.started)]

    def _count(self, ahead: int) -> str:
        if not self.runs:
            return "job"
        width = len(str(len(self.runs)))
        return f"{min(len(self.runs), len(self.runs) - len(self._fresh()) + ahead):{width}d}/{len(self.runs)}"

    def _fresh(self) -> list[float]:
        self.__dict__.pop("_left", None)
        return self._left

    def _eta(self) -> str:
        left, total = sum(self._fresh()), sum(weight for _, weight in self.runs)
        if not self.runs or left >= total:
            return ""
        return f" | ETA {clock((time.time() - self.started) / (total - left) * left)}" if left else ""


def _over(folder: RunFolder, since: float) -> bool:
    """Whether a run is done, or failed since then."""
    return (folder.path / "result.json").is_file() or folder.failure(since) is not None


def _tell(line: str) -> None:
    print(line, flush=True)
