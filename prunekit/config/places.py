"""Folders of the user: where caches go, whether a folder can be written, and how much room there is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def cache_folder(env: Mapping[str, str] | None = None) -> Path:
    """Return the user's cache folder of prunekit: $XDG_CACHE_HOME/prunekit, by default ~/.cache/prunekit.

    Where that cannot be written, as in containers without a home, a folder of the user below the system's folder for
    temporary files.
    """
    env = os.environ if env is None else env
    try:
        usual = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunekit"
    except RuntimeError:  # neither HOME nor an entry of the user's
        return _temporary_cache()
    return usual if why_unwritable(usual) is None else _temporary_cache()


def why_unwritable(folder: Path) -> str | None:
    """Return why a folder cannot be written; None where it can. It is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or "no reason is known"


def _temporary_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"prunekit-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    # a folder that another user made there could hold anything
    if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="prunekit-"))
    return folder


def free_space(folder: str | Path) -> str:
    """Return how much room there is where a folder is, or would be, as "1.2 GB free"."""
    place = Path(folder).absolute()
    for parent in (place, *place.parents):
        with suppress(OSError):
            free = shutil.disk_usage(parent).free
            return f"{free / 1e9:.1f} GB free" if free >= 1e9 else f"{free / 1e6:.1f} MB free"
    return "free space unknown"
