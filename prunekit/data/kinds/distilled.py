"""Texts, or pairs of them, without labels: a model that was given answers each text, and its outputs are the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.data import spill
from prunekit.data.columns import Mapped, Numbers
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION, check_class_names
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.rows import Rows
from prunekit.data.synthetic import MARKERS, sentence
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder


@dataclass(frozen=True)
class Distilled(TaskKind):
    """Texts of which only the outputs of the given model are known, from when it has read them.

    Until then each has the label 0, which nothing reads. The classes are the model's own, which `task.labels` names.
    """

    def check(self, keys: TaskKeys) -> None:
        """Check that the classes of the model are different, and two or more.

        Raises:
            ConfigError: they are not.
        """
        if keys.labels is not None:
            check_class_names("task.labels", keys.labels)

    def columns(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the columns of texts, which are all that a table must have."""
        return self.text_columns(keys)

    def label_cells(self, keys: TaskKeys, table: Table) -> Sequence[Any]:
        """Return nothing for each row, which is no fault."""
        return Mapped(range(len(table)), _nothing)

    def decisions(self, rows: Rows[int]) -> None:
        """Return None: texts without labels contradict nothing."""
        return

    def label_names(self, keys: TaskKeys, train: Table) -> tuple[str, ...] | None:
        """Return the classes of the model."""
        return keys.labels

    def synthetic_names(self, keys: TaskKeys) -> tuple[str, ...] | None:
        """Return the classes of the model."""
        return keys.labels

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[int]:
        """Read texts."""
        pairs = table.texts(keys.text_pair, kept) if keys.text_pair else None
        return Rows(table.texts(keys.text, kept), pairs, Numbers(spill.empty(len(kept), np.int64)))

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[int]:
        """Make up sentences with some markers."""
        texts = [sentence(random, random.sample(MARKERS, random.randint(1, 3))) for _ in range(count)]
        pairs = [sentence(random, random.sample(MARKERS, random.randint(1, 3))) for _ in range(count)]
        return Rows(texts, pairs if keys.text_pair else None, [0] * count)

    def encode(
        self, keys: TaskKeys, rows: Rows[int], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise texts, cut at the longest length; of values for pairs, note which have the same first text."""
        from prunekit.data.encoding import encode_texts, number_queries  # loads torch; a task is checked without it

        split = encode_texts(rows, encoder, names or ())
        if rows.pairs is None or not self.predicts_value:
            return split
        targets: Any = split.targets
        return replace(split, targets=replace(targets, queries=number_queries(rows.texts)))


def _nothing(_: int) -> None:
    return None


# of the ten documents that the model puts first for a query, the share that the dense model puts there, too; of pairs
# whose queries, the first texts, have more than ten, it is measured whether asked for or not
OVERLAP = "overlap@10"
# on label sets: the share of texts of which all labels are the same
OF_CLASSES, OF_VALUES = ("agreement", "kl"), ("spearman", "kendall", "pearson", OVERLAP)

DISTILLED_CLASSIFICATION, DISTILLED_MULTILABEL = (
    Distilled(f"distilled_{kind}", metrics=OF_CLASSES, default_metrics=OF_CLASSES, asks_teacher=True)
    for kind in (CLASSIFICATION, MULTILABEL)
)
DISTILLED_REGRESSION = Distilled(
    f"distilled_{REGRESSION}",
    metrics=OF_VALUES,
    default_metrics=OF_VALUES[:2],
    asks_teacher=True,
    predicts_value=True,
)

# what is learned without labels, by what it is called with them
WITHOUT_LABELS: Mapping[str, TaskKind] = {
    CLASSIFICATION.name: DISTILLED_CLASSIFICATION,
    REGRESSION.name: DISTILLED_REGRESSION,
    MULTILABEL.name: DISTILLED_MULTILABEL,
}
