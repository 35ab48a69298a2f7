"""Backbones that prunekit wrote into the user's cache: used while they are as they were written."""

from __future__ import annotations

import shutil
from pathlib import Path

from prunekit.console import say
from prunekit.files import folder_damage


def is_whole(folder: Path) -> bool:
    """Return whether a backbone of the cache is there as it was written; a damaged one is removed, and named."""
    if not folder.exists():
        return False
    wrong = folder_damage(folder) or (None if (folder / "config.json").is_file() else f"{folder} has no config.json")
    if wrong is None:
        return True
    say(f"cache      {wrong}; the backbone is made again.")
    shutil.rmtree(folder)
    return False
