"""Read the labels of texts that may have any number of them: lists, texts with a separator, or columns of 0 and 1."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.config.errors import quoted
from prunekit.data.cells import is_missing, is_unlabelled, label_fault, scalar, spelling
from prunekit.data.errors import DataError
from prunekit.data.labels import class_numbers
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


def label_key(label: Any) -> tuple[type, Any]:
    """Return what is the same for labels that are: 1, 1.0, true and "1" are not."""
    return type(label), label


def numbers_of(
    table: Table, column: str, rows: Callable[[], Iterable[tuple[int, Sequence[Any]]]], names: Sequence[str]
) -> dict[Any, int]:
    """Return the class number of every label in these rows, by its `label_key`.

    Raises:
        DataError: a label is of no class; the message counts the rows with such labels.
    """
    distinct = Elements.distinct(table, column, rows())
    labels = distinct.columns[column]
    try:
        numbers = class_numbers(distinct, column, range(len(labels)), names)
    except DataError:
        every = Elements.all(table, column, rows())
        class_numbers(every, column, range(len(every)), names)
        raise
    return dict(zip(map(label_key, labels), numbers, strict=True))


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
    def distinct(cls, table: Table, column: str, rows: Iterable[tuple[int, Sequence[Any]]]) -> Elements:
        """Return each label of these rows once, of the row where it is first; what is no label is left out."""
        seen: dict[Any, int] = {}
        for row, labels in rows:
            for label in labels:
                if isinstance(label, str) or not (is_missing(label) or label_fault(label)):
                    seen.setdefault(label_key(label), row)
        return cls.among(table, column, [label for _, label in seen], [*seen.values()])

    @classmethod
    def all(cls, table: Table, column: str, rows: Iterable[tuple[int, Sequence[Any]]]) -> Elements:
        """Return all labels of these rows, one after the other, in memory."""
        found = [(row, label) for row, labels in rows for label in labels]
        return cls.among(table, column, [label for _, label in found], [row for row, _ in found])

    @property
    def prefix(self) -> str:
        """What comes before the place of a row in a message."""
        return self.whole.prefix

    def place(self, row: int) -> str:
        """Return the place of the row that a label is of."""
        return self.whole.place(int(self.origin[row]))
