"""Atomic writes, seals that show damage, JSON lines that survive a kill, and digests.

A *seal* is the digest of a file in a small file beside it: `.last.ckpt.sha256` beside `last.ckpt`. What a run reads
back later is written sealed, and checked with `damage` when it is read. A seal is written before its file is replaced,
and then holds the digests of both versions, so that a kill between the two leaves no file that looks damaged. Files
without a seal, such as those of older versions, count as whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CHUNK = 2**20  # bytes read at a time
SETTLED = 10**9  # nanoseconds after which a file's time tells whether it changed


# -- atomic writes -----------------------------------------------------------------------------------


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file that a reader sees whole or not at all, also after a kill or a power cut; make its folder.

    `write` is given the path to write to.

    Raises:
        OSError: it could not be written, whatever the error of the library that wrote it.
    """
    with _written_beside(Path(path)) as beside:
        write(beside)


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes with `atomic_write`."""
    atomic_write(path, lambda beside: beside.write_bytes(content))


@contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    """Yield a path to write, flush what was written there to the disk, and rename it over `path`.

    Raises:
        OSError: it could not be written, whatever the error of the library that wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the file: a rename is atomic within one file system only
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        flush(beside)
        replace_durably(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        cause = storage_error(error)
        if cause is not None and cause is not error:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def flush(path: Path) -> None:
    """Flush a file to the disk, and give it the permissions of any new file: some libraries make theirs private."""
    path.chmod(_default_mode())
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@cache
def _default_mode() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def allow_as_usual(folder: Path) -> None:
    """Give the weights in a folder the permissions of any new file; safetensors makes them private."""
    for path in folder.glob("*.safetensors"):
        path.chmod(_default_mode())


def remove_leftovers(*folders: Path) -> None:
    """Remove the unfinished files that killed writers left in folders in which nobody else is writing."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            with suppress(OSError):
                path.unlink()


def atomic_write_text(path: str | Path, content: str) -> None:
    """Write a text in UTF-8 with `atomic_write`."""
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


# -- seals -------------------------------------------------------------------------------------------


CHANGED = "is not what was written: it was damaged, or changed by hand"
FOLDER_SEAL, NOBODY = ".sha256", "-"
_SEAL = r"[0-9a-f]{64} [0-9]{1,15}(?: [\w-]+)?"


@dataclass(frozen=True)
class Seal:
    """The digest of a file's first `size` bytes, and the hash of the run that the file belongs to, if any."""

    digest: str
    size: int
    owner: str = ""

    def __str__(self) -> str:
        return " ".join([self.digest, str(self.size), self.owner]).rstrip()


def write_sealed(path: str | Path, write: Callable[[Path], object], owner: str = "") -> None:
    """Write a file atomically, with its seal; `write` is given the path to write to. Make the folder.

    Raises:
        OSError: it could not be written, whatever the error of the library that wrote it.
    """
    path = Path(path)
    with _written_beside(path) as beside:
        write(beside)
        before, fresh = _seals(path), _seal_of(beside, owner)
        _write_seals(path, [*(before or []), fresh])
    if before:
        _write_seals(path, [fresh])


def write_sealed_text(path: str | Path, content: str, owner: str = "") -> None:
    """Write a text in UTF-8 with `write_sealed`."""
    write_sealed(path, lambda beside: beside.write_bytes(content.encode()), owner)


def seal(path: str | Path, owner: str = "") -> None:
    """Seal a file as it is now. One that grows stays whole with what is appended: see `damage`."""
    _write_seals(Path(path), [_seal_of(Path(path), owner)])


def move_sealed(source: Path, target: Path) -> None:
    """Rename a sealed file over another, durably."""
    seals = _seals(source)
    if seals is None:
        _seal_path(target).unlink(missing_ok=True)
    else:
        _write_seals(target, [*(_seals(target) or []), *seals])
    replace_durably(source, target)
    if seals is not None:
        _write_seals(target, seals)
    _seal_path(source).unlink(missing_ok=True)


def remove_sealed(*paths: Path) -> None:
    """Remove files and their seals; those that do not exist are passed over."""
    for path in paths:
        path.unlink(missing_ok=True)
        _seal_path(path).unlink(missing_ok=True)


def damage(path: str | Path, owner: str = "", *, grows: bool = False) -> str | None:
    """Return what is wrong with a file that was sealed, in words that follow its name; None if nothing is.

    `owner` is the hash of the run that reads it: a file of another run is wrong too. Of a file that `grows` what was
    sealed must be its beginning. A missing file is wrong only where its seal is there.
    """
    path = Path(path)
    seals = _seals(path)
    if seals is None:
        return None
    try:
        size = path.stat().st_size
    except OSError:
        return "is gone"
    for known in reversed(seals):
        is_possible = known.size <= size if grows else known.size == size
        if is_possible and _digest(path, known.size) == known.digest:
            is_foreign = owner and known.owner and known.owner != owner
            return f"is a file of another run ({known.owner})" if is_foreign else None
    return CHANGED


def is_sealed(path: Path) -> bool:
    """Return whether a file has a seal."""
    return _seal_path(path).is_file()


def _seal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _seal_of(path: Path, owner: str) -> Seal:
    size = path.stat().st_size
    return Seal(_digest(path, size), size, owner)


def _write_seals(path: Path, seals: Iterable[Seal]) -> None:
    atomic_write_text(_seal_path(path), "".join(f"{one}\n" for one in seals))


def _seals(path: Path) -> list[Seal] | None:
    """Return the seals of a file, none where they cannot be read; None where the file is not sealed."""
    try:
        lines = _seal_path(path).read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return None
    return [_parse_seal(line) for line in lines if re.fullmatch(_SEAL, line)]


def _parse_seal(text: str) -> Seal:
    digest, size, *owner = text.split(" ")
    return Seal(digest, int(size), "".join(owner))


def _digest(path: Path, size: int) -> str:
    """Return the hex digest of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while size > 0 and (part := stream.read(min(size, CHUNK))):
            digest.update(part)
            size -= len(part)
    return digest.hexdigest()


def seal_folder(folder: Path, owner: str = "") -> None:
    """Seal all files of a folder in one file, `.sha256`; notes (.md) and hidden files may change later."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    lines = [f"{_seal_of(path, owner or NOBODY)} {path.name}\n" for path in files if path.suffix != ".md"]
    atomic_write_text(folder / FOLDER_SEAL, "".join(lines))


def folder_damage(folder: Path, owner: str = "", *, quick: bool = False) -> str | None:
    """Return the first file of a sealed folder that is not as it was, and what is wrong; None if nothing is.

    `quick` looks only whether the files are there.
    """
    try:
        lines = (folder / FOLDER_SEAL).read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        found = re.fullmatch(rf"({_SEAL}) (.+)", line)
        if found is None:
            return f"{folder / FOLDER_SEAL} cannot be read"
        known, path = _parse_seal(found[1]), folder / found.groups()[-1]
        if not path.is_file():
            return f"{path} is gone"
        if not quick and (path.stat().st_size != known.size or known_sha256(path) != known.digest):
            return f"{path} {CHANGED}"
        if not quick and owner and known.owner not in (NOBODY, owner):
            return f"{path} is a file of another run ({known.owner})"
    return None


# -- what a disk does not take -----------------------------------------------------------------------


def storage_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind an error, which libraries wrap or only quote; None if there is none.

    The errors of libraries that have no number, as for a model that is not found, are none of them.
    """
    text, may_quote = str(error or ""), not isinstance(error, OSError)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    quoted = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", text) if may_quote else None
    if quoted is None and not re.search(r"\d+ requested and \d+ written", text):  # how numpy says that a disk is full
        return None
    number = int(quoted[1] or quoted[2]) if quoted else errno.ENOSPC
    return OSError(number, os.strerror(number))


# -- JSON lines --------------------------------------------------------------------------------------


def append_jsonl(path: str | Path, row: Mapping[str, Any], *, create: bool = True) -> None:
    """Append one row as one line, after cutting off a torn line that a kill left. NaN and infinities become null.

    Raises:
        FileNotFoundError: there is no file, and `create` is false.
    """
    path = Path(path)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab+" if create else "rb+") as stream:
        _cut_torn_line(stream)
        stream.seek(0, os.SEEK_END)
        stream.write(line.encode())


def read_jsonl(path: str | Path, *, is_damaged: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, none where it does not exist; a torn last line is left out.

    Of a file that `is_damaged`, the rows that can be read.

    Raises:
        ValueError: the file is not what was sealed, or a line before the last is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        return []
    if not is_damaged and (wrong := damage(path, grows=True)) is not None:
        raise ValueError(f"{path} {wrong}; delete the file and run again.")
    *lines, _torn = path.read_bytes().split(b"\n")  # what follows the last line break was never finished
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if is_damaged:
                continue
            raise ValueError(
                f"{path}, line {number} is {line[:40].decode(errors='replace')!r}, but each line must be one JSON "
                f"object; remove the line, or delete the file and run again."
            )
        rows.append(row)
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]], owner: str = "") -> None:
    """Replace a JSON-lines file atomically, sealed."""
    lines = [json.dumps(_finite(dict(row)), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_sealed_text(path, "".join(lines), owner)


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


# -- digests -----------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return the hex digest of a file; one whose time and size stay is read once by this process."""
    status = path.stat()
    if time.time_ns() - status.st_mtime_ns < SETTLED:  # it may change once more under the same time
        return sha256(path)
    return _known_sha256(path.absolute(), status.st_mtime_ns, status.st_size)


@cache
def _known_sha256(path: Path, changed: int, size: int) -> str:
    return sha256(path)


def json_sha256(
    value: Any, *, sort_keys: bool = True, ensure_ascii: bool = True, default: Callable[[Any], Any] | None = None
) -> str:
    """Return the hex digest of a value as JSON; the options are those of `json.dumps`, and change the digest."""
    text = json.dumps(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii, default=default)
    return hashlib.sha256(text.encode()).hexdigest()
