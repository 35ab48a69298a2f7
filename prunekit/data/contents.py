"""Digests of files that are named by path: what they hold and what they are for, wherever they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from prunekit.data.folders import data_files
from prunekit.files import known_sha256


def content_digest(named: Mapping[str, str]) -> str:
    """Return a hex digest of files and folders, given by what each is for; a path that does not exist counts as none.

    Of a file's name only its suffixes count, which say how it is read; of a folder's files their places in it too.
    """
    digest = hashlib.sha256()
    for role, given in sorted(named.items()):
        path = Path(given)
        files = data_files(path) if path.is_dir() else [path]
        for file in filter(Path.is_file, files):
            place = file.relative_to(path).as_posix() if path.is_dir() else "".join(file.suffixes[-2:]).lower()
            digest.update(f"{role} {place} {known_sha256(file)}\n".encode())
    return digest.hexdigest()
