"""Rows on disk: written once per content into Arrow files of the cache folder, and memory-mapped as a Dataset."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.config.places import cache_folder, why_unwritable
from prunekit.files import damage, is_sealed, known_sha256, remove_sealed, seal

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"  # part of the name of every file here: raise it when what is read or written changes
SMALL = 16 * 2**20  # bytes of a file; rows of smaller ones are kept in memory, which leaves nothing behind
BATCH_ROWS, BATCH_SIZE = 8192, 4 * 2**20  # rows, and characters, that are written at a time
WHOLE = {str: "string", int: "int64", bool: "bool", float: "double"}  # columns with values of one of these types


def column_type(types: set[type], *, exact: bool = True) -> str:
    """Return the Arrow type that holds values of these Python types as they are.

    "json" holds everything else, mixtures too: 1, 1.0, true and "1" stay apart. `exact` is false where some value does
    not fit its type, as half a character or a very long integer.
    """
    found = types - {type(None)}
    if not exact or len(found) > 1:
        return "json"
    return WHOLE.get(next(iter(found), str), "json")


def fits(value: Any) -> bool:
    """Return whether Arrow's type for values like this holds this one."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


@dataclass(frozen=True)
class RowStore:
    """Where the rows of one file are kept: in memory, or in a file of the cache folder that its content names."""

    file: Path
    cache: Path | None = None  # None: the user's cache folder

    @cached_property
    def folder(self) -> Path | None:
        """The folder to write into; None where the file is small, or nothing can be written, which is said."""
        folder = (self.cache or cache_folder()) / "rows"
        return folder if self.file.stat().st_size >= SMALL and is_writable(folder) else None

    def keep(self, names: Sequence[str], types: Sequence[str], read: Callable[[], Iterable[Sequence[Any]]]) -> Dataset:
        """Return rows of these columns: those that were written before, or else those that `read` reads now."""
        import datasets  # heavy, as pyarrow is, and a configuration is checked without them
        import pyarrow  # heavy

        schema = _schema(names, types)
        if self.folder is None:
            return in_memory(pyarrow.Table.from_batches(_batches(schema, types, read()), schema))
        path = self.folder / f"{self._digest[:32]}.arrow"
        discard_damaged(path)
        if not path.is_file():
            scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                with scratch.open("wb") as stream, pyarrow.ipc.new_stream(stream, schema) as writer:
                    for batch in _batches(schema, types, read()):
                        writer.write_batch(batch)
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
        seal_all(self.folder, [path])
        return datasets.Dataset.from_file(str(path))

    @cached_property
    def _digest(self) -> str:
        # the name's end too, because it says how the file is read
        return hashlib.sha256(
            f"{VERSION} {''.join(self.file.suffixes[-2:])} {known_sha256(self.file)}".encode()
        ).hexdigest()


def in_memory(table: Any) -> Dataset:
    """Return an Arrow table as a Dataset."""
    import datasets  # heavy
    from datasets.table import InMemoryTable  # heavy

    return datasets.Dataset(InMemoryTable(table))


def discard_damaged(*paths: Path) -> None:
    """Remove files of a cache, all of them, if one is not what was written, and print that."""
    wrong = next((f"{path} {why}" for path in paths if (why := damage(path)) is not None), None)
    if wrong is not None:
        print(f"cache      {wrong}; it is made again", file=sys.stderr)
        remove_sealed(*paths)


def seal_all(folder: Path | None, paths: Iterable[Path]) -> None:
    """Seal those files of a cache folder that have no seal yet; None is no cache."""
    for path in paths:
        if path.parent == folder and not is_sealed(path):
            with suppress(OSError):  # one that cannot be written is used as it is
                seal(path)


def is_writable(folder: Path) -> bool:
    """Make a folder of a cache and return whether it can be written; where it cannot, say so once."""
    why = why_unwritable(folder)
    if why is not None:
        _say_uncached(folder, why)
    return why is None


@contextmanager
def datasets_quiet() -> Iterator[None]:
    """Hide the progress bars of `datasets` within the block: a run prints its own output."""
    import datasets  # heavy

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


@cache
def _say_uncached(folder: Path, why: str) -> None:
    print(f"cache      {folder} cannot be written ({why}); continuing without it", file=sys.stderr)


def _schema(names: Sequence[str], types: Sequence[str]) -> Any:
    import pyarrow  # heavy

    arrow = {"json": pyarrow.json_(), "string": pyarrow.large_string()}
    return pyarrow.schema(
        [(name, arrow.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in zip(names, types, strict=True)]
    )


def _batches(schema: Any, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[Any]:
    import pyarrow  # heavy

    for some in _groups(rows):
        columns = [
            [value if value is None else json.dumps(value) for value in column] if kind == "json" else column
            for column, kind in zip(zip(*some, strict=True), types, strict=True)
        ]
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        yield pyarrow.record_batch(arrays, schema=schema)


def _groups(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """Yield the rows in lists that limit how much is in memory."""
    some: list[Sequence[Any]] = []
    size = 0
    for row in rows:
        some.append(row)
        size += sum(len(value) for value in row if isinstance(value, str))
        if len(some) == BATCH_ROWS or size >= BATCH_SIZE:
            yield some
            some, size = [], 0
    if some:
        yield some
