"""Files of installed packages, found without importing them: data packages are third parties' uploads."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def package_folder(package: str, folder: str) -> Path | None:
    """Return the folder `folder` that the distribution `package` installed; None if either does not exist.

    Reads only the distribution's metadata and runs none of its code.
    """
    try:
        path = Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError:
        return None
    return path if path.is_dir() else None
