"""Turn the labels of a table into class names and class numbers. One class has one spelling, or is refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from prunekit.config.errors import listed, quoted
from prunekit.data.cells import UNTYPED, is_missing, is_unlabelled, label_fault, scalar, spelling
from prunekit.data.columns import Numbers, take
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.tables import Table

WHOLE = re.compile(r"-?[0-9]{1,300}(\.0+)?")  # a whole number of which a class could be the number
# a number as people write it: 1, +1, 01, 1.0, .5, 1e0, 1,000; digits of any script
NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+(\.\d*)?|\d{1,300}\.?\d{0,300}|\.\d{1,300})(e[-+]?\d{1,3})?")
EXACT = Context(prec=1000)
SEVERAL = re.compile("[|;,]")  # what stands between labels that are written in one text
NO_LABEL = "-1"  # what datasets of the hub hold where labels are not public


def class_names(table: Table, column: str) -> tuple[str, ...]:
    """Return the different labels of a column, sorted; whole numbers are sorted as numbers.

    Raises:
        DataError: a label is no name of a class, or one class is spelt in several ways.
    """
    seen: dict[Any, int] = {}  # type and label -> the first row that has it
    for row, label in enumerate(table.column(column)):
        if isinstance(label, str) or not (is_missing(label) or label_fault(label)):
            seen.setdefault((type(label), label), row)
    rows = [
        (scalar(label), row) for (_, label), row in seen.items() if not (is_unlabelled(label) or label_fault(label))
    ]
    has_numbers = any(WHOLE.fullmatch(spelling(label)) for label, _ in rows)
    spelt: dict[str, dict[str, int]] = {}  # class -> its spellings, each with its first row
    for label, row in rows:
        spelt.setdefault(_class(label, has_numbers), {}).setdefault(_as_written(label), row)
    for spellings in spelt.values():
        if len(spellings) > 1:
            ways = [f"{written} ({table.place(row)})" for written, row in list(spellings.items())[:3]]
            raise DataError(
                f"{table.path}: column {quoted(column)} spells one class in several ways: {', '.join(ways)}.\n"
                "Allowed: one spelling of each class.\n"
                f"Correct them, or name the classes that are meant, as task.labels=[{_example(table, column)}]."
            )
    names = {spelling(label): row for label, row in rows}
    for name, row in names.items():
        parts = [part.strip() for part in SEVERAL.split(name)]
        if len(parts) > 1 and set(parts) <= names.keys():
            raise DataError(
                f"{table.at(row)}: label {quoted(name)} holds several of the others, {listed(map(quoted, parts))}.\n"
                "Allowed: one label per text; several with task.kind=multilabel and task.label_separator=...\n"
                "Set these, or name the classes, this one too, as task.labels=[...]."
            )
        if name.lower() in UNTYPED:
            raise DataError(
                f"{table.at(row)}: label {quoted(name)} stands for nothing in what other programs write.\n"
                "Allowed: labels that name a class; an empty field where there is none.\n"
                "Correct it, or name the classes, this one too, as task.labels=[...]."
            )
    are_numbers = all(WHOLE.fullmatch(name) and "." not in name for name in names)
    return tuple(sorted(names, key=int) if are_numbers else sorted(names))


def _as_written(label: Any) -> str:
    """Return a label as its file writes it: "1" and 1 differ, and so do blanks around it."""
    return quoted(label) if isinstance(label, str) else spelling(label)


def _class(label: Any, has_numbers: bool) -> str:
    """Return what is the same for all spellings of a class: case, blanks, marks that cannot be seen, and how a number
    is written do not count.

    Where others are numbers, true is 1.
    """
    seen = "".join(mark for mark in spelling(label) if unicodedata.category(mark) != "Cf")
    name = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
    if NUMBER.fullmatch(name):
        number = Decimal(name.replace(",", "")).normalize(EXACT)
        return str(number) if number else "0"  # not -0
    return {"false": "0", "true": "1"}.get(name, name) if has_numbers else name


def _example(table: Table, column: str) -> str:
    return listed(dict.fromkeys(spelling(label) for label in table.column(column)[:1000]), 4).replace(" and ", ", ... ")


def class_numbers(table: Table, column: str, kept: Sequence[int], names: Sequence[str]) -> Numbers:
    """Return the class numbers of these rows: by name, or, in a column of whole numbers that are no names, as they are.

    Where the file has names for its numbers, and the task has the same in another order, the names count.

    Raises:
        DataError: a label is of no class.
    """
    raw = take(table.column(column), kept)
    number = {name: place for place, name in enumerate(names)}
    own = table.classes.get(column)
    spelt = lru_cache(typed=True)(spelling)  # most columns have a few labels
    by_number = all(WHOLE.fullmatch(spelt(label)) and spelt(label) not in number for label in raw)
    if by_number:
        places = own if own is not None and set(own) == set(names) else names
        number = {str(place): number[name] for place, name in enumerate(places)}
    lower = {name.casefold(): place for name, place in number.items()}
    faults = Faults()

    def classes() -> Iterator[int]:
        for row, label in zip(kept, raw, strict=True):
            name = spelt(label)
            place = number.get(name.partition(".")[0] if by_number else name)
            if place is None and isinstance(label, bool):
                place = lower.get(name)
            if place is None:
                faults.add(table.place(row), f": label {quoted(label)}")
            else:
                yield place

    found = Numbers.of(classes(), np.int64, len(raw))
    if faults:
        allowed = listed(f"{label} ({names[at]})" if by_number else label for label, at in number.items())
        hidden = all(spelt(label) == NO_LABEL for label in raw)
        raise DataError(
            f"{table.prefix}{faults} is not in the set {allowed}; correct it or task.labels."
            + ("\nAll labels are -1, which stands for labels that are not public." if hidden else "")
            + ("\nSet task.test_split=null to do without this split." if hidden else "")
        )
    return found
