"""Read files into columns: CSV, JSON lines, Parquet, and folders with a text file per row. Nothing is interpreted."""

from __future__ import annotations

import codecs
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.config.errors import first_line, listed, quoted
from prunekit.data.decoding import decode_file, looks_binary
from prunekit.data.delimited import check_names, csv_rows
from prunekit.data.errors import DataError
from prunekit.data.json_rows import json_rows

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")

# the first bytes of a file identify its type, whatever its name
SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3": "an SQLite database",
}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and where they were read, for messages.

    `rows` names the rows if each is a file or a question of its own; otherwise rows are counted from 1, without the
    header. `classes` are the names of numbers in columns that have such.
    """

    columns: Mapping[str, Sequence[Any]]
    path: str
    rows: Sequence[str] | None = None
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def at(self, row: int) -> str:
        """Return the place of a row, counted from 0, as a reader finds it."""
        return f"{self.prefix}{self.place(row)}"

    @property
    def prefix(self) -> str:
        """What comes before the place of a row in a message."""
        return f"{self.path}, " if self.rows is None else f"{self.path}/"

    def place(self, row: int) -> str:
        """Return the place of a row in the file or folder."""
        return f"row {row + 1}" if self.rows is None else self.rows[row]

    def column(self, name: str) -> Sequence[Any]:
        """Return a column, or the field of a column of records, as in translation.en.

        Raises:
            DataError: there is none.
        """
        if name in self.columns:
            return self.columns[name]
        # a blank after the comma of a header is not meant
        near = [own for own in self.columns if own.strip() == name.strip()]
        if len(near) == 1:
            return self.columns[near[0]]
        whole, _, part = name.partition(".")
        records = self.columns.get(whole, ())
        if part and any(isinstance(record, Mapping) and part in record for record in records):
            return [record.get(part) if isinstance(record, Mapping) else None for record in records]
        raise DataError(
            f"{self.path} has no column {quoted(name)}; its columns are {listed(self.columns)}.\n"
            f"Name them with task.text=... and task.label=... (task.text_pair=... for a second text).\n"
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        names = list(self.columns)
        if any(name[:1] + name[-1:] == '""' for name in names):
            return "If its quotes enclose fields, rename the file to .csv: in .tsv quotes are characters."
        first = next((name for name in names if name), "text")
        return f"In a shell: {shlex.quote(f'task.text={first}')}"

    def texts(self, name: str, rows: Sequence[int]) -> list[str]:
        """Return the texts of a column in these rows; "" where there is none."""
        column = self.column(name)
        return [column[row] if isinstance(column[row], str) else "" for row in rows]


def read_table(path: Path) -> Table:
    """Read the table in a file; its suffix decides how: .csv, .tsv, .jsonl (also .json) or .parquet.

    Raises:
        DataError: another suffix, or a file that does not match its suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        actual = f"the suffix {suffix}" if suffix else "no suffix"
        raise DataError(f"{path} has {actual}, but tables are read from {', '.join(SUFFIXES)}; convert it.")
    _check_signature(path, suffix)
    readers = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _json, ".json": _json}
    return readers[suffix](path)


def read_split(folder: Path, split: str) -> Table | None:
    """Read the table of a split in a folder laid out as on the hub: <split>-00000-of-00001.parquet or <split>.<suffix>.

    Files are named <split>-00000-of-00001.parquet or <split>.<suffix>; shards are concatenated in the order of names.
    """
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    single = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if not shards:
        return read_table(single[0]) if single else None
    tables = [read_table(shard) for shard in shards]
    if len(tables) == 1:
        return tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(tables[0].columns):
            raise DataError(
                f"{table.path} has the columns {listed(table.columns)}, but {tables[0].path} has "
                f"{listed(tables[0].columns)}; all shards of a split must have the same."
            )
    columns = {name: [value for table in tables for value in table.columns[name]] for name in tables[0].columns}
    return Table(columns, str(folder / f"{split}-*.parquet"), classes=tables[0].classes)


def read_class_folders(folder: Path, text: str, label: str) -> Table:
    """Read a row per file of <folder>/<class>/*.txt, in the order of class and name; empty when there is none.

    A file that is not UTF-8, in a few bytes, is read as Windows-1252: one file of BBC News has a pound sign in that
    code. Line ends become newlines and surrounding white space is removed, so that a text is the same on every
    platform.
    """
    files = sorted(folder.glob("*/*.txt"), key=lambda file: (file.parent.name, file.name))
    names = [f"{file.parent.name}/{file.name}" for file in files]
    texts = [decode_file(file).strip() for file in files]
    return Table({text: texts, label: [file.parent.name for file in files]}, str(folder), names)


def _check_signature(path: Path, suffix: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{path} is empty; give a file with one row per text.")
    kind = next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), None)
    if kind is None and suffix != ".parquet" and (looks_binary(head) or head.startswith(UTF16)):
        kind = "a binary file, or text in UTF-16"
    if suffix == ".parquet" and kind is None:
        kind = "something else"
    if kind is not None and (suffix, kind) != (".parquet", "a Parquet file"):
        raise DataError(f"{path} is not what its name says: it is {kind}. Rename or convert it (text must be UTF-8).")


def _parquet(path: Path) -> Table:
    # heavy, and a configuration is checked without it
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        check_names(str(path), schema.names)  # pyarrow's own message names neither of the two
        table = pyarrow.parquet.read_table(path, partitioning=None)
        columns = {name: table[name].to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({first_line(error)}); download or write it again."
        ) from error
    return Table(columns, str(path), classes=_class_names(schema))


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that `datasets` wrote into a Parquet file, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: tuple(map(str, names)) for name, names in found.items() if isinstance(names, list)}


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from stream
        except UnicodeDecodeError as error:
            byte = error.object[error.start : error.start + 1].hex()
            raise DataError(f"{path} is not UTF-8 (byte 0x{byte}: {error.reason}); save it as UTF-8.") from error


def _csv(path: Path) -> Table:
    names, found = csv_rows(path, lambda: _lines(path), tabs=path.suffix.lower() == ".tsv")
    rows = list(found)
    return Table({name: [row[place] for row in rows] for place, name in enumerate(names)}, str(path))


def _json(path: Path) -> Table:
    records = list(json_rows(path, lambda: _lines(path)))
    names = dict.fromkeys(name for record in records for name in record)
    return Table({name: [record.get(name) for record in records] for name in names}, str(path))
