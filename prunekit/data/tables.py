"""Read files into columns: CSV, JSON lines, Parquet, and folders with a text file per row. Nothing is interpreted."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.config.errors import first_line
from prunekit.data.errors import DataError

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


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and where they were read, for messages.

    `rows` names the rows if each is a file or a question of its own; otherwise rows are counted from 1, without the
    header.
    """

    columns: Mapping[str, Sequence[Any]]
    path: str
    rows: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def at(self, row: int) -> str:
        """Return the place of a row, counted from 0, as a reader finds it."""
        return f"{self.path}/{self.rows[row]}" if self.rows is not None else f"{self.path}, row {row + 1}"

    def column(self, name: str) -> Sequence[Any]:
        """Return a column, or the field of a column of records, as in translation.en.

        Raises:
            DataError: there is none.
        """
        if name not in self.columns:
            whole, _, part = name.partition(".")
            records = self.columns.get(whole, ())
            if part and any(isinstance(record, Mapping) and part in record for record in records):
                return [record.get(part) if isinstance(record, Mapping) else None for record in records]
            raise DataError(
                f"{self.path} has no column {name!r}; its columns are {', '.join(self.columns)}.\n"
                f"Name them with task.text=... and task.label=... (task.text_pair=... for a second text)."
            )
        return self.columns[name]

    def texts(self, name: str, rows: Sequence[int]) -> list[str]:
        """Return the texts of a column in these rows; "" where there is none."""
        column = self.column(name)
        return [column[row] or "" for row in rows]


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
                f"{table.path} has the columns {', '.join(table.columns)}, but {tables[0].path} has "
                f"{', '.join(tables[0].columns)}; all shards of a split must have the same."
            )
    columns = {name: [value for table in tables for value in table.columns[name]] for name in tables[0].columns}
    return Table(columns, str(folder / f"{split}-*.parquet"))


def read_class_folders(folder: Path, text: str, label: str) -> Table:
    """Read a row per file of <folder>/<class>/*.txt, in the order of class and name; empty when there is none.

    A file that is not UTF-8 is read as Windows-1252 or, if it has bytes that are undefined there, as Latin-1: one file
    of BBC News has a pound sign in such a code. Line ends become newlines and surrounding white space is removed, so
    that a text is the same on every platform.
    """
    files = sorted(folder.glob("*/*.txt"), key=lambda file: (file.parent.name, file.name))
    names = [f"{file.parent.name}/{file.name}" for file in files]
    texts = [_decode(file.read_bytes()) for file in files]
    return Table({text: texts, label: [file.parent.name for file in files]}, str(folder), names)


def _decode(raw: bytes) -> str:
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return "\n".join(text.splitlines()).strip()
    raise AssertionError("latin-1 decodes every byte")


def _check_signature(path: Path, suffix: str) -> None:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise DataError(f"{path} is empty; give a file with one row per text.")
    kind = next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), None)
    if kind is None and suffix != ".parquet" and b"\0" in head:
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
        table = pyarrow.parquet.read_table(path, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({first_line(error)}); download or write it again."
        ) from error
    return Table({name: table[name].to_pylist() for name in table.column_names}, str(path))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from stream
        except UnicodeDecodeError as error:
            byte = error.object[error.start : error.start + 1].hex()
            raise DataError(f"{path} is not UTF-8 (byte 0x{byte}: {error.reason}); save it as UTF-8.") from error


def _csv(path: Path) -> Table:
    csv.field_size_limit(2**31 - 1)
    first = next(iter(_lines(path)))
    separator = max("\t,;" if path.suffix.lower() == ".tsv" else ",;\t", key=first.count)
    reader = csv.reader(_lines(path), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        names = next(reader)
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(names):
                raise DataError(
                    f"{path}, row {len(rows) + 1} (line {reader.line_num}) has {len(row)} fields, but the header has "
                    f"{len(names)}: {', '.join(names)}. Put quotes around a text that contains {separator!r}."
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(
            f'{path}, line {reader.line_num} is not CSV ({error}); check the quotes of that row and write " inside a '
            f'quoted text as "".'
        ) from error
    return Table({name: [row[place] for row in rows] for place, name in enumerate(names)}, str(path))


def _json(path: Path) -> Table:
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("["):
        try:
            records = [
                (f"row {n}", record) for n, record in enumerate(json.loads("".join(line for _, line in lines)), 1)
            ]
        except ValueError as error:
            raise DataError(
                f"{path} begins like a JSON list but is not one ({error}); write one object per line."
            ) from error
    else:
        records = [(f"line {number}", _parse_line(path, number, line)) for number, line in lines]
    names: dict[str, None] = {}
    for place, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{path}, {place} is {json.dumps(record)[:40]}, not an object; write one object per row.")
        names.update(dict.fromkeys(record))
    return Table({name: [record.get(name) for _, record in records] for name in names}, str(path))


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not JSON ({error}); write one object per line.") from error
