"""Read files into columns: CSV, JSON lines, CoNLL, Parquet, folders with a text file per row; nothing is interpreted.

Values are what the file says: the readers of `datasets` make "NA" a missing value and 1 beside 1.5 a 1.0, and do not
notice a quote that swallows lines. What is read is streamed into a Dataset, so that no file is in memory as a whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.config.errors import first_line, listed, quoted
from prunekit.data import conll
from prunekit.data.cells import is_missing
from prunekit.data.columns import Column, Place
from prunekit.data.decoding import decode_file, looks_binary
from prunekit.data.delimited import check_names, csv_rows
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.json_rows import json_rows
from prunekit.data.store import RowStore, column_type, datasets_quiet, fits, in_memory

if TYPE_CHECKING:
    from datasets import Dataset

PLAIN = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".conll")
SUFFIXES = (".parquet", *PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))


SAMPLE = 100  # rows that are looked at for the fields of their records
# the first bytes of a file identify its type, whatever its name
SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3": "an SQLite database",
    b"version https://git-lfs": "a pointer of Git LFS, which git lfs pull replaces by the file",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
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
    _whole: set[str] = field(default_factory=set, repr=False, compare=False)  # paths that every row has

    @classmethod
    def of(cls, parts: Sequence[Dataset], path: str) -> Table:
        """Return the rows of datasets with the same columns, end to end."""
        import datasets  # heavy, and a configuration is checked without it

        first, whole = parts[0], parts[0] if len(parts) == 1 else None
        if whole is None and all(part.features == first.features for part in parts):
            whole = datasets.concatenate_datasets(list(parts))
        columns = {
            name: Column([chunk for part in parts for chunk in part.data.column(name).chunks], name, whole)
            for name in first.column_names
        }
        return cls(columns, path, classes=dict(_class_names(first.features)))

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
        """Return a column, or a field of a column of records, as in translation.en, or of records in them.

        A column of that name comes first, whatever dots are in it.

        Raises:
            DataError: there is none, or a row has no such field.
        """
        if name in self.columns:
            return self.columns[name]
        # a blank after the comma of a header is not meant
        near = [own for own in self.columns if own.strip() == name.strip()]
        if len(near) == 1:
            return self.columns[near[0]]
        whole = max((own for own in self.columns if name.startswith(f"{own}.")), key=len, default=None)
        if whole is not None and any(isinstance(record, Mapping) for record in self.columns[whole]):
            return self._field(whole, tuple(name[len(whole) + 1 :].split(".")))
        raise DataError(
            f"{self.path} has no column {quoted(name)}; its columns are {listed(self.columns)}.\n"
            f"Name them with task.text=... and task.label=... (task.text_pair=... for a second text).\n"
            f"{self._advice(name)}"
        )

    def _field(self, whole: str, path: tuple[str, ...]) -> Sequence[Any]:
        """Return a field of the records in a column; None in rows that have no record, which null is.

        Raises:
            DataError: a row has no such field.
        """
        records, name = self.columns[whole], ".".join((whole, *path))
        if name not in self._whole:
            faults = Faults()
            examples: list[str] = []
            for row, record in enumerate(records):
                fault, there = _field_fault(record, whole, path)
                if fault:
                    faults.add(self.place(row), f": {fault}")
                    examples = examples or there
            if faults:
                typed = f"In a shell: {shlex.quote(f'task.text={examples[0]}')}" if examples else "Correct these rows."
                raise DataError(
                    f"{self.prefix}{faults}; {quoted(name)} names it.\n"
                    f"Allowed: a field that every row has, null where it holds nothing.\n{typed}"
                )
            self._whole.add(name)
        return records.field(path) if isinstance(records, Column) else list(map(Place(whole, path).value, records))

    def _advice(self, name: str) -> str:
        inner = [
            whole
            for whole, values in self.columns.items()
            if any(isinstance(record, Mapping) and name in record for record in values[:SAMPLE])
        ]
        if inner:
            return f"In a shell, for the field of that name: {shlex.quote(f'task.text={inner[0]}.{name}')}"
        names = list(self.columns)
        if any(name[:1] + name[-1:] == '""' for name in names):
            return "If its quotes enclose fields, rename the file to .csv: in .tsv quotes are characters."
        first = next((name for name in names if name), "text")
        return f"In a shell: {shlex.quote(f'task.text={first}')}"

    def texts(self, name: str, rows: Sequence[int]) -> Sequence[str]:
        """Return the texts of a column in these rows; "" where there is none."""
        column = self.column(name)
        if isinstance(column, Column):
            return column.take(rows).texts()
        return [column[row] if isinstance(column[row], str) else "" for row in rows]


def _class_names(features: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the columns, and the fields of records, that hold numbers of classes or lists of such, with the names."""
    import datasets  # heavy

    for name, kind in features.items():
        if isinstance(kind, Mapping):
            yield from _class_names(kind, f"{before}{name}.")
        elif isinstance(inner := getattr(kind, "feature", kind), datasets.ClassLabel):
            yield f"{before}{name}", tuple(map(str, inner.names))


def _field_fault(record: Any, whole: str, path: Sequence[str]) -> tuple[str, list[str]]:
    """Return why a record has no field of this path, "" if it has, and the paths of those that are in its place."""
    for name in path:
        if is_missing(record):
            break
        if not isinstance(record, Mapping):
            return f"{quoted(whole)} holds {quoted(record)} and no field {quoted(name)}", []
        if name not in record:
            there = [f"{whole}.{own}" for own in record]
            return f"{quoted(whole)} has no field {quoted(name)}; its fields are {listed(record) or 'none'}", there
        whole, record = f"{whole}.{name}", record[name]
    return "", []


def read_table(path: Path, cache: Path | None = None) -> Table:
    """Read the table in a file; its suffix decides how: .csv, .tsv, .jsonl (also .json), .txt, .conll, .parquet.

    All but the last may be compressed, as .csv.gz. Rows of a large file are kept in the folder `cache`, by default the
    user's cache folder.

    Raises:
        DataError: another suffix, or a file that does not match its suffix.
    """
    return read_parts([path], str(path), cache)


def read_parts(paths: Sequence[Path], shown: str, cache: Path | None) -> Table:
    """Read files with the same columns as one table, which messages call `shown`.

    Raises:
        DataError: as for one file, or the columns differ.
    """
    parts = [_read_dataset(path, cache) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise DataError(
                f"{path} has the columns {listed(part.column_names)}, but {paths[0]} has "
                f"{listed(parts[0].column_names)}; all shards of a split must have the same."
            )
    return Table.of(parts, shown)


def read_split(folder: Path, split: str, cache: Path | None = None) -> Table | None:
    """Read the table of a split in a folder laid out as on the hub: <split>-00000-of-00001.parquet or <split>.<suffix>.

    Files are named <split>-00000-of-00001.parquet or <split>.<suffix>; shards are concatenated in the order of names.
    """
    shards = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    single = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if len(shards) > 1:
        return read_parts(shards, str(folder / f"{split}-*.parquet"), cache)
    found = [*shards, *single]
    return read_table(found[0], cache) if found else None


def _read_dataset(path: Path, cache: Path | None) -> Dataset:
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        actual = f"the suffix {suffix}" if suffix else "no suffix"
        raise DataError(
            f"{path} has {actual}, which says nothing of how it is read.\n"
            f"Allowed: {', '.join(SUFFIXES)}.\nRename it, if it is one of these, or convert it."
        )
    if not path.is_file():
        raise DataError(f"{path} is no file.\nAllowed: a file of rows, or a folder.\nGive the path of one.")
    _check_signature(path, suffix)
    readers = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _json,
        ".json": _json,
        ".txt": _text,
        ".conll": _conll,
    }
    return readers[suffix.removesuffix(".gz")](path, RowStore(path, cache))


def _suffix(path: Path) -> str:
    """Return the suffix that says how a file is read, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if suffixes[-1:] == [".gz"] else suffixes[-1:])


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
    try:
        with _open(path) as stream:
            head = stream.read(512)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(
            f"{path} is no gzip archive ({first_line(error)}).\nAllowed: what gzip wrote.\n"
            f"Compress it again, or, if it is not compressed, rename it to {path.with_suffix('').name}."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).\nAllowed: a file that you may read.\nChange its permissions."
        ) from error
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{path} is empty.\nAllowed: a file with one row per text.\nGive such a file.")
    kind = next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), None)
    if kind is None and suffix != ".parquet" and (looks_binary(head) or head.startswith(UTF16)):
        kind = "a binary file, or text in UTF-16"
    if suffix == ".parquet" and kind is None:
        kind = "something else"
    if kind is not None and (suffix, kind) != (".parquet", "a Parquet file"):
        raise DataError(
            f"{path} is not what its name says: it is {kind}.\n"
            f"Allowed with {suffix}: {'Parquet' if suffix == '.parquet' else 'text in UTF-8'}.\nRename or convert it."
        )


def _parquet(path: Path, store: RowStore) -> Dataset:
    # heavy, and a configuration is checked without them
    import datasets
    import pyarrow.parquet

    try:
        check_names(str(path), pyarrow.parquet.read_schema(path).names)  # pyarrow's own message names neither of two
        if store.folder is None:
            found = in_memory(pyarrow.parquet.read_table(path, partitioning=None))
        else:
            with datasets_quiet():
                found = datasets.Dataset.from_parquet(str(path), cache_dir=str(store.folder))
        found.data.table.validate(full=True)  # texts are decoded later, when nothing says which file they are from
        return found
    except (pyarrow.ArrowException, OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({first_line(error.__cause__ or error)}); download or write it again."
        ) from error


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    suffix = _suffix(path)
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        try:
            for number, line in enumerate(stream):
                yield line if number else line.lstrip("\ufeff")  # some programs write the mark again
        except UnicodeDecodeError as error:
            byte = error.object[error.start : error.start + 1].hex()
            raise DataError(
                f"{path} is not UTF-8 (byte 0x{byte}: {error.reason}).\nAllowed: text in UTF-8.\n"
                f"Save it as UTF-8; if it is from Windows: iconv -f CP1252 -t UTF-8 {shlex.quote(str(path))} "
                f"> utf8{suffix}"
            ) from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(
                f"{path} is a damaged archive ({first_line(error)}).\nAllowed: all of what gzip wrote.\n"
                "Copy or compress it again."
            ) from error


def _text(path: Path, store: RowStore) -> Dataset:
    """Read a row per line, with one column, text."""
    return store.keep(["text"], ["string"], lambda: ([line.rstrip("\r\n")] for line in _lines(path)))


def _conll(path: Path, store: RowStore) -> Dataset:
    """Read a row per text, with its words and their labels."""
    return store.keep(conll.COLUMNS, ["json", "json"], lambda: conll.conll_rows(path, lambda: _lines(path)))


def _csv(path: Path, store: RowStore) -> Dataset:
    tabs = ".tsv" in _suffix(path)
    header, _ = csv_rows(path, lambda: _lines(path), tabs=tabs)
    # columns without a name may be several, and cannot be meant
    places = {name: place for place, name in reversed(list(enumerate(header)))}
    names = [name for place, name in enumerate(header) if places[name] == place]

    def rows() -> Iterator[Sequence[str]]:
        _, found = csv_rows(path, lambda: _lines(path), tabs=tabs)
        return found if names == header else ([row[places[name]] for name in names] for row in found)

    return store.keep(names, ["string"] * len(names), rows)


def _json(path: Path, store: RowStore) -> Dataset:
    """Read records twice: first what their columns hold, so that every value can be written as it is."""
    types: dict[str, set[type]] = {}
    inexact: set[str] = set()
    for record in json_rows(path, lambda: _lines(path)):
        for name, value in record.items():
            types.setdefault(name, set()).add(type(value))
            if not fits(value):
                inexact.add(name)
    names = list(types)
    columns = [column_type(types[name], exact=name not in inexact) for name in names]
    return store.keep(
        names,
        columns,
        lambda: ([record.get(name) for name in names] for record in json_rows(path, lambda: _lines(path))),
    )
