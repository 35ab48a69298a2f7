"""Look at a folder of data before anything in it is read: what it holds, and whether that can be the data of a task."""

from __future__ import annotations

import os
from pathlib import Path

from prunekit.config.errors import listed
from prunekit.data.errors import DataError

MOST_FILES = 200_000
MOST_OTHER = 1 << 30  # bytes in files that no reader reads
DATA = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".conll", ".arrow", ".gz")


def data_files(folder: Path) -> list[Path]:
    """Return the files of a folder and of those in it, sorted.

    Raises:
        DataError: they are too many, or hold much that is no data, as a home folder does; said before any is read. Or
            one of the folders may not be looked into.
    """
    files: list[Path] = []
    other, names = 0, []
    for parent, _, entries in os.walk(folder, onerror=_refuse):
        for entry in entries:
            path = Path(parent) / entry
            if not os.path.isfile(path):  # False also where it may not be looked at
                continue
            files.append(path)
            if path.suffix.lower() not in DATA:
                other += path.stat().st_size
                names.append(entry)
        if len(files) > MOST_FILES or other > MOST_OTHER:
            holds = f"more than {MOST_FILES:,} files"
            if other > MOST_OTHER:
                holds = f"more than 1 GB in other files, as {listed(names, 3)}"
            raise DataError(
                f"{folder} holds {holds}, so it is no folder of data.\n"
                "Allowed: a folder with one file per split, or with a folder of .txt files per class.\n"
                "Give the folder of the data alone, or a file, as task.file=..."
            )
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be read ({error.strerror}).\nAllowed: folders of which every part can be read.\n"
        "Give the folder of the data alone, or change who may read it."
    )


def special_file(folder: Path) -> Path | None:
    """Return the first entry of a folder that is a pipe, a socket or a device, whose reading may never end."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return None
    return next((path for path in paths if path.exists() and not (path.is_file() or path.is_dir())), None)


def why_no_file(path: Path) -> str:
    """Return why a path that is no file is none, as the words after it."""
    if path.is_dir():
        return "is a folder"
    return (
        "is a pipe, a socket or a device, and no file" if path.exists() else f"does not exist (looked in {Path.cwd()})"
    )
