"""Read rows of .csv and .tsv files. Rows that are not as the header says are refused, and so are those that hold rows.

In .csv a field may be quoted, and hold separators and line ends. In .tsv quotes are characters like any other, which is
what most programs write: a text that begins with one would swallow the lines up to the next.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.config.errors import listed, quoted
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults, told_twice

Lines = Callable[[], Iterable[str]]  # the lines of a file, each with its end, from the beginning at every call
MOST_SUSPECTS = 1000  # fields with line ends whose contents are kept to look at


def csv_rows(path: Path, lines: Lines, *, tabs: bool) -> tuple[list[str], Iterator[list[str]]]:
    """Return the header and the rows, without blank lines, which are read as they are asked for.

    With `tabs` the file is a .tsv, else the separator is the one of comma, semicolon and tab that the header has most.

    Raises:
        DataError: there is no header or it names a column twice; when all rows were read, also that some are not rows.
    """
    csv.field_size_limit(2**31 - 1)
    first = next((line for line in lines() if line.strip()), None)
    if first is None:
        raise DataError(f"{path} is empty.\nAllowed: a header, and one row per text.\nGive such a file.")
    dialect = _Dialect.of(path, first, tabs)
    reader = dialect.reader(lines())
    names = next(row for row in _checked(path, reader) if row)
    check_names(str(path), names)
    return names, _rows(path, lines, dialect, reader, names)


def check_names(path: str, names: Sequence[str]) -> None:
    """Check that no column is named twice; columns without a name cannot be meant, and may be many.

    Raises:
        DataError: one is.
    """
    for name, count in Counter(name.strip() for name in names).items():
        if count > 1 and name:
            places = [place for place, other in enumerate(names, 1) if other.strip() == name]
            raise DataError(
                f"{path} {told_twice(name, places, 'columns')}.\n"
                "Allowed: every column has a name of its own.\nRename or remove all but one."
            )


@dataclass(frozen=True)
class _Dialect:
    separator: str
    quotes: bool
    skips_blanks: bool = False  # after a separator, where the header has a blank after every one

    @classmethod
    def of(cls, path: Path, header: str, tabs: bool) -> _Dialect:
        if re.fullmatch(r"sep=.\s*", header):
            raise DataError(
                f"{path} begins with {quoted(header.strip())}, a line for Excel and no header.\n"
                f"Allowed: a header in the first line.\nType: tail -n +2 {shlex.quote(str(path))} > without_sep.csv"
            )
        if not tabs:
            separator = max(",;\t", key=header.count)
            if separator not in header and "|" in header:
                raise DataError(
                    f"{path} has none of ',', ';' and tab in its header, {quoted(header.strip())}.\n"
                    "Allowed: a .csv with one of these between its columns.\nWrite it again with commas, as by pandas: "
                    "pandas.read_csv(file, sep='|', dtype=str, keep_default_na=False).to_csv(file, index=False)"
                )
            after = [part[:1] for part in header.split(separator)[1:]]
            return cls(separator, True, bool(after) and set(after) == {" "})
        if "\t" not in header and ("," in header or ";" in header):
            raise DataError(
                f"{path} has no tab in its header, {quoted(header.strip())}.\n"
                "Allowed: a .tsv with tabs between its columns.\nRename it to .csv, where commas separate."
            )
        return cls("\t", False)

    def reader(self, lines: Iterable[str]) -> Any:
        return csv.reader(
            lines,
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            strict=True,
            skipinitialspace=self.skips_blanks,
        )


def _checked(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num} is not CSV ({error}); check the quotes of that row.\n"
            'Allowed: quotes around a whole field, and "" for a quote inside it.\n'
            "Correct it, or rename the file to .tsv if tabs separate and quotes are characters."
        ) from error


def _rows(path: Path, lines: Lines, dialect: _Dialect, reader: Any, names: Sequence[str]) -> Iterator[list[str]]:
    ragged, repeated = Faults(), Faults()
    is_short = False
    suspects = _Suspects(dialect.separator, len(names))
    line = reader.line_num
    number = 0
    for row in _checked(path, reader):
        if row:
            if len(row) != len(names):
                is_short = len(row) < len(names) if not ragged else is_short
                ragged.add(f"row {number + 1} (line {reader.line_num})", f" has {len(row)} fields")
            elif row == names and len(names) > 1:
                repeated.add(f"row {number + 1} (line {reader.line_num})", " repeats the header")
            elif not ragged and not repeated:
                if reader.line_num > line + 1:
                    suspects.look(row, number, line + 1)
                yield row
            number += 1
        line = reader.line_num
    if ragged:
        advice = f"Put quotes around a text that contains {dialect.separator!r}."
        if is_short:
            advice = f"Write a {dialect.separator!r} for each field that is empty, or remove these lines."
        elif not dialect.quotes:
            advice = "Remove tabs and line ends from texts; if quotes enclose such texts, rename the file to .csv."
        raise DataError(
            f"{path}, {ragged}, but the header has {len(names)}: {listed(names)}; {dialect.separator!r} separates.\n"
            f"Allowed: as many fields in every row as in the header.\n{advice}"
        )
    if repeated:
        raise DataError(
            f"{path}, {repeated}: it was put together of several files.\n"
            "Allowed: one header, in the first line.\nRemove these lines."
        )
    suspects.check(path, lambda: (row for row in dialect.reader(lines()) if len(row) == len(names)))


@dataclass(frozen=True)
class _Suspect:
    row: int
    first: int  # line
    last: int
    column: int
    others: tuple[tuple[int, str], ...]  # columns and values of the rows that the field would hold, but for texts


class _Suspects:
    """Quoted fields that would be whole rows if their quotes were characters.

    The text of one field then continues up to the next quote: its first line ends the row, others are rows of as many
    fields as the header has, and the last begins a row. That happens to texts of several lines, too, so a field is
    refused only if what its lines hold in the other columns is also there in a row that was read.
    """

    def __init__(self, separator: str, width: int) -> None:
        self.separator = separator
        self.width = width
        self.found: list[_Suspect] = []

    def look(self, row: Sequence[str], number: int, line: int) -> None:
        """Look at a row that begins in this line and takes several."""
        for column, value in enumerate(row):
            parts = re.split("\r\n|\r|\n", value)
            if len(parts) < 2 or len(self.found) >= MOST_SUSPECTS:
                continue
            fields = [part.split(self.separator) for part in parts]
            head, inside, tail = fields[0], fields[1:-1], fields[-1]
            if len(head) != self.width - column or len(tail) != column + 1:
                continue
            if any(len(part) != self.width for part in inside):
                continue
            others = [(column + place, cell) for place, cell in enumerate(head) if place]
            others += [(place, cell) for part in inside for place, cell in enumerate(part) if place != column]
            others += [(place, cell) for place, cell in enumerate(tail[:-1])]
            self.found.append(_Suspect(number, line, line + len(parts) - 1, column, tuple(others)))

    def check(self, path: Path, rows: Callable[[], Iterable[Sequence[str]]]) -> None:
        """Check that no suspect holds what other rows have in its columns; `rows` are all rows, read again."""
        wanted = {(column, _shape(value)) for suspect in self.found for column, value in suspect.others}
        if not wanted:
            return
        columns = {column for column, _ in wanted}
        known = {(column, _shape(row[column])) for row in rows() for column in columns} & wanted
        for suspect in self.found:
            if any((column, _shape(value)) in known for column, value in suspect.others):
                raise DataError(
                    f"{path}, row {suspect.row + 1} (lines {suspect.first} to {suspect.last}): a quoted field looks as "
                    f"if it had swallowed {suspect.last - suspect.first} rows, because its lines hold as many "
                    f"{self.separator!r} as rows do, and the same values.\n"
                    'Allowed: a quote at the beginning of a text as """, closed by a quote at its end.\n'
                    "Correct these lines, or rename the file to .tsv if tabs separate and quotes are characters."
                )


def _shape(value: str) -> str:
    """Return a value as it is compared: numbers are all alike."""
    text = value.strip()
    return "".join("9" if mark.isdigit() else mark for mark in text) if any(map(str.isdigit, text)) else text
