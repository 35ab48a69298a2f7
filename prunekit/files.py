"""Atomic writes, JSON lines that survive a kill in the middle of a line, and digests."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def byte_size(text: str) -> int:
    """Return the length of a text in UTF-8, which is what limits the name of a folder."""
    return len(text.encode(errors="surrogatepass"))


def fit_name(text: str, most: int, size: Callable[[str], int] = len, forbidden: str = "") -> str:
    """Return a name of 1 to `most` characters, or of what `size` counts: the text itself if it is one.

    Otherwise what cannot be shown or is forbidden becomes a dash, the end is cut off, and eight digits of the text's
    hash keep names apart that would be alike. `most` is 16 or more.
    """
    plain = "".join("-" if letter in forbidden or not _shows(letter) else letter for letter in text).strip()
    if plain == text and 0 < size(text) <= most:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    start = plain[: most - 9]
    while size(start) > most - 9:
        start = start[:-1]
    return f"{start.strip(' -') or 'unnamed'}-{digest}"


def _shows(letter: str) -> bool:
    """Whether a character is text: joiners of scripts and emoji are, controls and halves of characters are not."""
    return letter.isprintable() or letter in "\u200c\u200d"


def cache_folder(env: Mapping[str, str] | None = None) -> Path:
    """Return the user's cache folder of prunekit: $XDG_CACHE_HOME/prunekit, by default ~/.cache/prunekit."""
    env = os.environ if env is None else env
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunekit"


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that a reader sees whole or not at all, also after a kill or a power cut; make its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the file: a rename is atomic within one file system only
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        replace_durably(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            beside.unlink()
        raise


def atomic_write_text(path: str | Path, content: str) -> None:
    """Write a text in UTF-8 with `atomic_write_bytes`."""
    atomic_write_bytes(path, content.encode())


def replace_durably(source: Path, target: Path) -> None:
    """Rename over `target`, and flush the folder's new entry to the disk where the system can do that."""
    os.replace(source, target)
    with suppress(OSError, AttributeError):  # not on Windows, nor on every network file system
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append_jsonl(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one row as one line, after cutting off a torn line that a kill left. NaN and infinities become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab+") as stream:
        _cut_torn_line(stream)
        stream.write(line.encode())


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, none where it does not exist; a torn last line is left out.

    Raises:
        ValueError: a line before the last is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")  # what follows the last line break was never finished
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is {line[:40].decode(errors='replace')!r}, but each line must be one JSON "
                f"object; remove the line, or delete the file and run again."
            )
        rows.append(row)
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file atomically."""
    lines = [json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    atomic_write_text(path, "".join(lines))


def _cut_torn_line(stream: Any) -> None:
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        return
    stream.seek(size - 1)
    if stream.read(1) != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None: JSON cannot express them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(
    value: Any, *, sort_keys: bool = True, ensure_ascii: bool = True, default: Callable[[Any], Any] | None = None
) -> str:
    """Return the hex digest of a value as JSON; the options are those of `json.dumps`, and change the digest."""
    text = json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii, default=default)
    return hashlib.sha256(text.encode()).hexdigest()
