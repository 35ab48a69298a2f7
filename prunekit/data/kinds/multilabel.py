"""Texts, or pairs of them, each with any number of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.config.errors import ConfigError, listed, quoted
from prunekit.data.cells import is_unlabelled
from prunekit.data.columns import Cells, Numbers, NumberSets, take
from prunekit.data.errors import DataError
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import check_class_names
from prunekit.data.label_sets import (
    Elements,
    LabelFaultError,
    are_flags,
    flag_fault,
    flag_of,
    label_key,
    labels_in,
    numbers_of,
)
from prunekit.data.labels import class_names
from prunekit.data.rows import Rows
from prunekit.data.synthetic import MARKERS, sentence
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder

LabelSet = tuple[int, ...]  # rising class numbers


@dataclass(frozen=True)
class Multilabel(TaskKind):
    """Any number of several labels per text, none included; each is decided for itself."""

    def check(self, keys: TaskKeys) -> None:
        """Check that there are two labels or more, each once, and a separator where it means something.

        Raises:
            ConfigError: there are not.
        """
        if keys.label_columns and keys.labels is not None:
            raise ConfigError(
                f"task.labels=[{listed(keys.labels)}] with task.label=[{listed(keys.label_columns)}]: labels are "
                "called like their columns.\nAllowed: task.labels=null with several columns.\nLeave task.labels out."
            )
        for key, names in (("labels", keys.labels), ("label", keys.label_columns or None)):
            if names is not None:
                check_class_names(f"task.{key}", names)
        if keys.label_separator is not None and (not keys.label_separator or keys.label_columns):
            why = "columns of 0 and 1 have none" if keys.label_columns else "it is empty"
            raise ConfigError(
                f"task.label_separator={quoted(keys.label_separator)}: {why}.\n"
                "Allowed: what stands between labels in a text, as ';', or null for lists.\nLeave it out."
            )

    def bands_refusal(self, keys: TaskKeys, *, tested: bool) -> str:
        """Refuse bands of the test with tuned thresholds, which would be tuned on each band."""
        if not tested or not keys.tune_thresholds:
            return ""
        return (
            "data.eval_bands with task.tune_thresholds=true: thresholds are tuned on texts of all lengths.\n"
            "Allowed: one of both.\nLeave data.eval_bands out, or set task.tune_thresholds=false."
        )

    # -- rows ------------------------------------------------------------------------------------------

    def columns(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the columns of texts, and that of the labels or one for each of them."""
        return (*self.text_columns(keys), *(keys.label_columns or (keys.label,)))

    def label_cells(self, keys: TaskKeys, table: Table) -> Sequence[Any]:
        """Return the cells of the column of labels, or tuples of the cells of several columns."""
        if not keys.label_columns:
            return table.column(keys.label)
        return Cells([table.column(name) for name in keys.label_columns])

    def has_label(self, label: Any) -> bool:
        """Return whether there is a list, even an empty one, or at least one of several columns holds something."""
        return not all(map(is_unlabelled, label)) if isinstance(label, tuple) and label else not is_unlabelled(label)

    def label_complaint(self, keys: TaskKeys, label: Any) -> str:
        """Return what is wrong with a cell, or with the cells of several columns."""
        return flag_fault(keys.label_columns, label) if keys.label_columns else super().label_complaint(keys, label)

    def label_fault(self, keys: TaskKeys, label: Any) -> str:
        """Return why a cell holds no labels."""
        try:
            labels_in(label, keys.label_separator)
        except LabelFaultError as error:
            return str(error)
        return ""

    def label_names(self, keys: TaskKeys, train: Table) -> tuple[str, ...]:
        """Return the columns, the task's labels, those that the file names, or those of the training table, sorted.

        Raises:
            DataError: fewer than two, one in several spellings, or one that no row to train on has.
        """
        if keys.label_columns:
            for name in keys.label_columns:
                if not any(map(flag_of, train.column(name))):
                    others = ",".join(other for other in keys.label_columns if other != name)
                    raise DataError(
                        f"{train.path}: column {quoted(name)} of task.label has no 1, so no text to train on has this "
                        f"label.\nAllowed: columns that are 1 in some rows.\nLeave it out: task.label=[{others}]"
                    )
            return keys.label_columns
        if are_flags(train.column(keys.label)):
            raise DataError(
                f"{train.at(0)}: column {quoted(keys.label)} holds as many of 0 and 1 in every row, as "
                f"{quoted(train.column(keys.label)[0])}, which are no names of labels.\n"
                'Allowed: a list of the labels that a text has, as ["a", "b"], or a column of 0 and 1 for each label.\n'
                "Write a column for each label, and name them: task.label=[a,b]"
            )
        every = partial(_labels_in_rows, keys, train, range(len(train)))
        column, named = quoted(keys.label), keys.labels or train.classes.get(keys.label)
        if named is None:
            names = class_names(Elements.distinct(train, keys.label, every()), keys.label)
            if len(names) < 2:
                raise DataError(
                    f"{train.path}: the lists in column {column} hold {len(names)} different labels; "
                    "task.kind=multilabel needs 2 or more.\nAllowed: lists of the labels of each text.\n"
                    "Choose another column with task.label=..., or set task.kind=classification."
                )
            return names
        occurring = {named[number] for number in numbers_of(train, keys.label, every, named).values()}
        if lacking := [name for name in named if name not in occurring]:
            kept = ",".join(name for name in named if name in occurring)
            raise DataError(
                f"{train.path}: no text to train on has the label {quoted(lacking[0])} in column {column}"
                f"{f', nor {listed(map(quoted, lacking[1:]))}' if len(lacking) > 1 else ''}.\n"
                f"Allowed: labels that some rows have.\nLeave it out: task.labels=[{kept}]"
            )
        return named

    def synthetic_names(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the task's labels, or three."""
        return keys.label_columns or keys.labels or ("0", "1", "2")

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[LabelSet]:
        """Read texts and the numbers of their labels."""
        labels = self._flags(keys, table, kept) if keys.label_columns else _sets(keys, table, kept, names or ())
        pairs = table.texts(keys.text_pair, kept) if keys.text_pair else None
        return Rows(table.texts(keys.text, kept), pairs, labels)

    def _flags(self, keys: TaskKeys, table: Table, kept: Sequence[int]) -> NumberSets:
        columns = [take(table.column(name), kept) for name in keys.label_columns]
        found = ([place for place, cell in enumerate(cells) if flag_of(cell)] for cells in Cells(columns))
        return NumberSets.of(found, len(kept))

    def strata(self, rows: Rows[LabelSet]) -> Sequence[int]:
        """Return the rarest label of each row, -1 where there is none: those are divided alike first."""
        counts = Counter(chain.from_iterable(rows.labels))
        rarest = (min(labels, key=lambda label: (counts[label], label), default=-1) for labels in rows.labels)
        return Numbers.of(rarest, np.int64, len(rows))

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[LabelSet]:
        """Make up sentences with one to three markers of each of their labels; of two texts the second has them."""
        texts, pairs, labels = [], [], []
        has_pairs, numbers = keys.text_pair is not None, range(len(names or ()))
        for _ in range(count):
            own = tuple(sorted(random.sample(numbers, random.randint(0, min(3, len(numbers))))))
            markers = [
                random.choice((MARKERS[label * 2 % len(MARKERS)], MARKERS[(label * 2 + 1) % len(MARKERS)]))
                for label in own
                for _ in range(random.randint(1, 3))
            ]
            texts.append(sentence(random, [] if has_pairs else markers))
            pairs.append(sentence(random, markers))
            labels.append(own)
        return Rows(texts, pairs if has_pairs else None, labels)

    # -- token ids -------------------------------------------------------------------------------------

    def encode(
        self, keys: TaskKeys, rows: Rows[LabelSet], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise texts, cut at the longest length."""
        from prunekit.data.encoding import encode_label_sets  # loads torch, and a task is checked without it

        return encode_label_sets(rows, encoder, names or ())


def _labels_in_rows(keys: TaskKeys, table: Table, rows: Sequence[int]) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield each of these rows with the labels in its cell."""
    for row, cell in zip(rows, take(table.column(keys.label), rows), strict=True):
        yield row, () if is_unlabelled(cell) else labels_in(cell, keys.label_separator)


def _sets(keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str]) -> NumberSets:
    """Return the label numbers of these rows, each once.

    Raises:
        DataError: a label that is none of the names.
    """
    every = partial(_labels_in_rows, keys, table, kept)
    number = numbers_of(table, keys.label, every, names)
    return NumberSets.of((sorted({number[label_key(label)] for label in labels}) for _, labels in every()), len(kept))


MULTILABEL = Multilabel(
    "multilabel",
    metrics=("micro_f1", "macro_f1"),
    default_metrics=("micro_f1", "macro_f1"),
    own_keys=("label_columns", "label_separator", "tune_thresholds"),
    may_lack_labels=True,
    allowed_label='a list of labels, as ["a", "b"], or [] for none; with task.label=[a,b], columns of 0 and 1.',
    correct_label="Write lists, or name what stands between the labels: task.label_separator=';'",
)
