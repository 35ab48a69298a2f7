"""Reads an offline W&B run by W&B's own command, `wandb leet inspect`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Offline:
    """What one offline run holds; nested keys are joined by dots."""

    folder: Path
    run: dict[str, Any]  # id, group, name, tags, config
    history: list[dict[str, Any]]
    summary: dict[str, Any]

    def file(self, key: str) -> Path:
        """The file of a picture or table that was logged under a key."""
        (path,) = {row[f"{key}.path"] for row in self.history if f"{key}.path" in row}
        return self.folder / "files" / path

    def table(self, key: str) -> Any:
        """A table that was logged under a key."""
        return json.loads(self.file(key).read_text())


def read(folder: Path) -> Offline:
    """The only offline run below a folder."""
    (place,) = folder.rglob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(place)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    records = [json.loads(line) for line in said.splitlines()]

    def of(kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in records if record["type"] == kind]

    summary: dict[str, Any] = {}
    for update in of("summary"):
        summary |= update["update"]
    (run, *_) = of("run")
    return Offline(place, run, [row["item"] for row in of("history")], summary)
