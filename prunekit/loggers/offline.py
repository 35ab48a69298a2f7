"""Offline W&B runs, read back by W&B's own command, `wandb leet inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 120  # that reading one run may take


@dataclass(frozen=True)
class OfflineRun:
    """What one offline run holds; nested keys of `history` and `summary` are joined by dots."""

    folder: Path
    run: dict[str, Any]  # id, group, name, tags, config
    history: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, nested."""
        config: dict[str, Any] = self.run["config"]["update"]
        return config

    def file(self, key: str) -> Path:
        """Return the file of a picture or table that was logged under a key, the last one."""
        return self.folder / "files" / [row[f"{key}.path"] for row in self.history if f"{key}.path" in row][-1]

    def table(self, key: str) -> Any:
        """Return a table that was logged under a key."""
        return json.loads(self.file(key).read_text(encoding="utf-8"))


def read_runs(folder: Path) -> list[OfflineRun]:
    """Read the offline runs in a folder or below it; the fragments that a resumed run left are one run.

    Raises:
        ValueError: W&B cannot read one.
    """
    fragments: dict[str, list[OfflineRun]] = {}
    for place in sorted(folder.rglob("offline-run-*")):
        if any(place.glob("*.wandb")):
            read = _read(place)
            fragments.setdefault(read.run["run_id"], []).append(read)
    return [_join(parts) for parts in fragments.values()]


def _join(parts: list[OfflineRun]) -> OfflineRun:
    summary: dict[str, Any] = {}
    for part in parts:
        summary |= part.summary
    return OfflineRun(parts[-1].folder, parts[-1].run, [row for part in parts for row in part.history], summary)


def _read(place: Path) -> OfflineRun:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(place)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    try:
        records = [json.loads(line) for line in answer.stdout.splitlines()]
        (run, *_) = [record["run"] for record in records if record["type"] == "run"]
    except (ValueError, KeyError) as error:
        why = (answer.stderr.strip().splitlines() or ["no run is in it"])[-1]
        raise ValueError(f"{place} cannot be read by `wandb leet inspect` ({why[:160]})") from error
    summary: dict[str, Any] = {}
    for record in records:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    return OfflineRun(place, run, history, summary)
