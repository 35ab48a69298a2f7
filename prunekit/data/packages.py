"""Files of an installed package, found without importing it: packages that carry data are third parties' uploads."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def package_folder(package: str, folder: str) -> Path | None:
    """The folder `folder` that the distribution `package` installed; None when there is no such thing.

    Only the distribution's metadata is read, none of its code runs.
    """
    try:
        found = Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError:
        return None
    return found if found.is_dir() else None
