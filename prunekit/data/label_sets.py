"""Read the labels of texts that may have any number of them: lists, texts with a separator, or columns of 0 and 1."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.config.errors import quoted
from prunekit.data.cells import is_missing, is_unlabelled, label_fault, scalar, spelling
from prunekit.data.tables import Table

FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class LabelFaultError(ValueError):
    """A cell that holds no labels; the message is what it is instead, in words that follow "label x is"."""


def labels_in(cell: Any, separator: str | None) -> Sequence[Any]:
    """Return the labels of a cell: those of a list, of a text that is one, or of a text with separators between them.

    A list in a text is JSON, or exactly what Python writes: numpy's has no commas and would be read as one label.

    Raises:
        LabelFaultError: it holds something else.
    """
    cell = scalar(cell)
    if isinstance(cell, str):
        return _labels_in_text(cell, separator)
    if not isinstance(cell, list | tuple) and not hasattr(cell, "__array__"):
        raise LabelFaultError("no list")
    return _checked(cell)


@lru_cache(maxsize=4096)
def _labels_in_text(text: str, separator: str | None) -> tuple[Any, ...]:
    found = _listed(text.strip())
    if found is not None:
        return _checked(found)
    if separator is None:
        raise LabelFaultError("no list")
    return _checked([part.strip() for part in text.split(separator)])


def _listed(text: str) -> list[Any] | None:
    if text[:1] + text[-1:] != "[]":
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        found = found if repr(found) == text else None
    return found if isinstance(found, list) else None


def _checked(labels: Iterable[Any]) -> tuple[Any, ...]:
    """Return the labels of a text, each of which is there once: [0, 1, 1] are flags rather than labels.

    Raises:
        LabelFaultError: one of them is none, or there twice.
    """
    found: dict[str, Any] = {}
    for given in labels:
        label = scalar(given)
        if is_unlabelled(label):
            raise LabelFaultError("a list with an empty label")
        if fault := label_fault(label).partition(",")[0]:
            raise LabelFaultError(f"a list with {fault} in it")
        if spelling(label) in found:
            raise LabelFaultError(f"a list with {quoted(spelling(label))} twice")
        found[spelling(label)] = label
    return tuple(found.values())


def are_flags(cells: Iterable[Any]) -> bool:
    """Return whether all cells are lists of 0 and 1, each as long as the others and longer than 1."""
    widths = set()
    for cell in cells:
        is_list = isinstance(cell, list | tuple) or hasattr(cell, "__array__")
        if not is_list or not all(isinstance(scalar(label), bool | int | float) and label in (0, 1) for label in cell):
            return False
        widths.add(len(cell))
    return len(widths) == 1 and min(widths) > 1


def flag_of(cell: Any) -> bool | None:
    """Return what a cell of a column of 0 and 1 says; None where it holds something else."""
    return None if is_missing(cell) else FLAGS.get(spelling(cell).casefold())


def flag_fault(names: Sequence[str], cells: Sequence[Any]) -> str:
    """Return the first cell of a row's that is neither 0 nor 1, in words that follow the row's place; "" if all are."""
    for name, cell in zip(names, cells, strict=True):
        if flag_of(cell) is None:
            holds = "nothing" if is_unlabelled(cell) else quoted(cell)
            return f"column {quoted(name)} holds {holds}, which is neither 0 nor 1"
    return ""


@dataclass(frozen=True)
class FlagRows(Sequence[tuple[Any, ...]]):
    """Rows of several columns, read as they are asked for."""

    columns: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: Any) -> Any:
        return tuple(column[row] for column in self.columns)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield from zip(*self.columns, strict=True)


@dataclass(frozen=True)
class Elements(Table):
    """A table with a row per label of some rows of another one, `whole`; `origin` are the numbers of these rows."""

    origin: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    whole: Table = field(default_factory=lambda: Table({}, ""))

    @classmethod
    def among(cls, table: Table, column: str, labels: Sequence[Any], origin: Sequence[int] | np.ndarray) -> Elements:
        """Return these labels of a column; `origin` are their rows in the table."""
        numbers = np.asarray(origin, np.int64)
        return cls({column: labels}, table.path, classes=table.classes, origin=numbers, whole=table)

    @classmethod
    def of_rows(cls, table: Table, column: str, rows: Sequence[int], separator: str | None) -> Elements:
        """Return the labels of these rows, one after the other."""
        cells = table.column(column)
        labels: list[Any] = []
        counts = []
        for row in rows:
            found = labels_in(cells[row], separator) if not is_unlabelled(cells[row]) else ()
            labels += found
            counts.append(len(found))
        return cls.among(table, column, labels, np.repeat(np.asarray(rows, np.int64), counts))

    @property
    def prefix(self) -> str:
        """What comes before the place of a row in a message."""
        return self.whole.prefix

    def place(self, row: int) -> str:
        """Return the place of the row that a label is of."""
        return self.whole.place(int(self.origin[row]))
