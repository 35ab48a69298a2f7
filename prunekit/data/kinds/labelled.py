"""Texts, or pairs of them, each with one label: a class, or a value."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.config.errors import ConfigError, listed, quoted
from prunekit.data.cells import is_unlabelled, label_fault, scalar
from prunekit.data.columns import Numbers, take
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.labels import class_names, class_numbers
from prunekit.data.rows import Rows
from prunekit.data.synthetic import MARKERS, sentence
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder

SCORES = 6  # generated values are 0.0 .. 5.0
LARGEST = 3.4028234e38  # that float32 holds
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")  # Python's own takes 1_000 and other digits


class _Labelled(TaskKind):
    """What classes and values share: one number per row."""

    @abstractmethod
    def numbers(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Numbers:
        """Return the labels of these rows as numbers."""

    def has_label(self, label: Any) -> bool:
        """Return whether there is one."""
        return not is_unlabelled(label)

    def label_fault(self, keys: TaskKeys, label: Any) -> str:
        """Return why a cell holds no label; a class that the task names is one, however it looks."""
        is_named = isinstance(label, str) and label.strip() in (keys.labels or ())
        return "" if is_named else label_fault(label)

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[Any]:
        """Read texts and numbers."""
        numbers = self.numbers(keys, table, kept, names)
        pairs = table.texts(keys.text_pair, kept) if keys.text_pair else None
        return Rows(table.texts(keys.text, kept), pairs, numbers)

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[Any]:
        """Make up sentences with two to four markers of their class or value; of two texts the second has them."""
        texts, pairs, labels = [], [], []
        has_pairs = keys.text_pair is not None
        for row in range(count):
            label = row % (len(names) if names else SCORES)
            own = MARKERS[label * 2 % len(MARKERS) : label * 2 % len(MARKERS) + 2]
            markers = [random.choice(own) for _ in range(random.randint(2, 4))]
            texts.append(sentence(random, [] if has_pairs else markers))
            pairs.append(sentence(random, markers))
            labels.append(label)
        order = random.sample(range(count), count)
        numbers: list[Any] = [float(label) if names is None else label for label in labels]
        return Rows(texts, pairs if has_pairs else None, numbers).take(order)

    def encode(
        self, keys: TaskKeys, rows: Rows[Any], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise texts, cut at the longest length."""
        from prunekit.data.encoding import encode_texts  # loads torch, and a task is checked without it

        return encode_texts(rows, encoder, names or ())


@dataclass(frozen=True)
class Classification(_Labelled):
    """One of several classes per text."""

    def check(self, keys: TaskKeys) -> None:
        """Check that the classes are different, two or more, and exactly two where a metric needs that.

        Raises:
            ConfigError: they are not.
        """
        labels = keys.labels
        if labels is None:
            return
        check_class_names("task.labels", labels)
        if "f1" in " ".join(keys.metrics).replace("macro_f1", "") and len(labels) != 2:
            raise ConfigError(f"metric f1 is of two classes, but task.labels has {len(labels)}; use macro_f1 instead.")

    def label_names(self, keys: TaskKeys, train: Table) -> tuple[str, ...] | None:
        """Return the task's classes, those that the file names, or the different labels of the training table, sorted.

        Labels that are all whole numbers are sorted as numbers.
        """
        if keys.labels is not None:
            return keys.labels
        column = quoted(keys.label)
        named = train.classes.get(keys.label)
        names = class_names(train, keys.label) if named is None else named
        if len(names) < 2:
            raise DataError(
                f"{train.path}: all rows have {listed(map(quoted, names)) or 'no label'} in column {column}.\n"
                "Allowed: 2 or more classes.\nChoose another column with task.label=..."
            )
        if len(names) == len(train) > 2:
            raise DataError(
                f"{train.path}: column {column} has {len(names)} different labels in {len(train)} rows, so no "
                "class can be learnt.\nAllowed: classes of several rows.\n"
                "Choose another column with task.label=..., or set task.kind=regression."
            )
        if {"f1", "mean_of_accuracy_f1"} & {*keys.metrics} and len(names) != 2:
            raise DataError(
                f"metric f1 is of two classes, but {train.path} has {len(names)}; use task.metrics=[macro_f1]."
            )
        return names

    def synthetic_names(self, keys: TaskKeys) -> tuple[str, ...] | None:
        """Return the task's classes, or two."""
        return keys.labels or ("0", "1")

    def numbers(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Numbers:
        """Return class numbers: by name, or, in a column of whole numbers that are no names, as they are."""
        return class_numbers(table, keys.label, kept, names or ())

    def strata(self, rows: Rows[Any]) -> Sequence[int]:
        """Return the classes."""
        return rows.labels


@dataclass(frozen=True)
class Regression(_Labelled):
    """One value per text."""

    def numbers(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Numbers:
        """Return finite values."""
        raw, faults = take(table.column(keys.label), kept), Faults()

        def values() -> Iterator[float]:
            for row, label in zip(kept, raw, strict=True):
                value = number_of(label)
                if value is None:
                    faults.add(table.place(row), f": label {quoted(label)} is not a number")
                else:
                    yield value

        found = Numbers.of(values(), np.float64, len(raw))
        if faults:
            raise DataError(
                f"{table.prefix}{faults}, as task.kind=regression needs; correct it, or set task.kind=classification."
            )
        return found


def check_class_names(key: str, names: Sequence[str]) -> None:
    """Check that classes that a key names are different, and two or more.

    Raises:
        ConfigError: they are not.
    """
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{key} names {quoted(twice)} twice; every label is named once.")
    if len(names) < 2:
        raise ConfigError(f"{key}=[{listed(names)}] has {len(names)} label; give 2 or more.")


def number_of(label: Any) -> float | None:
    """Return a label as a number that float32 holds; None where it is none."""
    label = scalar(label)
    is_number = isinstance(label, int | float | Decimal) and not isinstance(label, bool)
    if not is_number and not (isinstance(label, str) and NUMBER.fullmatch(label.strip())):
        return None
    try:
        value = float(label)
    except (OverflowError, ValueError):
        return None
    return value if abs(value) <= LARGEST else None  # of what is not a number, too


CLASSIFICATION = Classification(
    "classification",
    metrics=("accuracy", "f1", "macro_f1", "matthews", "mean_of_accuracy_f1"),
    default_metrics=("accuracy", "macro_f1"),
    own_keys=("class_weights",),
    predicts_class=True,
    correct_label="Correct these rows, name another column with task.label=..., or for lists set task.kind=multilabel.",
)
REGRESSION = Regression(
    "regression",
    metrics=("pearson", "spearman", "mean_of_pearson_spearman"),
    default_metrics=("pearson", "spearman", "mean_of_pearson_spearman"),
    predicts_value=True,
)
