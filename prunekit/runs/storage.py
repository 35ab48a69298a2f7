"""Disks that are full, read only or gone: one message that names the folder, instead of a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.config.errors import CRASHED, ConfigError
from prunekit.config.places import cache_folder, free_space
from prunekit.files import storage_error

# of the operating system, when a disk is full, gone, or not to be written
FULL = {errno.ENOSPC, errno.EDQUOT}
DISK = FULL | {errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EFBIG}
REMOVED = {errno.ENOENT, errno.ENOTDIR}


class StorageError(ConfigError):
    """A disk that is full or cannot be used, which ends a command that can be repeated."""

    exit_code = CRASHED


@contextmanager
def storage_errors(*folders: Path) -> Iterator[None]:
    """Turn errors of the disk into one that names the folder and its free space.

    A file that is missing from one of `folders`, which the command writes itself, was removed meanwhile; elsewhere a
    missing file is another matter.

    Raises:
        StorageError: the disk is full, read only, or the folder is gone.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        explained = explain(error, *folders)
        if explained is None:
            raise
        raise explained from error


def explain(error: BaseException, *folders: Path) -> StorageError | None:
    """Return the error that says what is wrong with the disk; None where the error has another cause."""
    cause = storage_error(error)
    if cause is None:
        return None
    place = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, str | bytes) else None
    is_ours = place is not None and any(place.absolute().is_relative_to(own.absolute()) for own in folders)
    if cause.errno not in DISK and not (is_ours and cause.errno in REMOVED):
        return None
    named = place.parent if place is not None else next(iter(folders), Path())
    return StorageError(
        f"{named} cannot be used ({cause.strerror}; {free_space(named)}), so the command stopped.\n"
        "Allowed: folders that can be written, have room, and stay while the command runs.\n"
        "Make room and give the same command again, which resumes, or name other folders, as runs_dir=... and "
        "data.cache_dir=..."
    )


def cache_of(cfg: Mapping[str, Any]) -> Path:
    """Return the cache folder of a configuration."""
    return Path(cfg["data"]["cache_dir"] or cache_folder())


def keep_in_cache(path: Path, write: Callable[[], object]) -> bool:
    """Write a file of the cache, which a run can do without; print where that fails. Return whether it is there."""
    try:
        write()
    except Exception as error:
        cause = storage_error(error)
        if cause is None:
            raise
        why = f"{cause.strerror}; {free_space(path.parent)}"
        from prunekit.console import say  # rich takes as long as the rest of --help

        say(f"cache      {path.parent} cannot be written ({why}); the run continues without it.")
        return False
    return True
