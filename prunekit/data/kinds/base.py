"""What every kind of task has in common, and what one may decide for itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.config.errors import ConfigError, listed, quoted
from prunekit.data import spill
from prunekit.data.cells import text_fault
from prunekit.data.columns import Cells, Numbers, RowNumbers
from prunekit.data.keys import TaskKeys
from prunekit.data.rows import Rows
from prunekit.data.splitting import content_hashes, group_split, hash_split, order_by_hash, ranks
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder


@dataclass(frozen=True)
class TaskKind(ABC):
    """A kind of task. Everything in `data` that depends on it is asked of this object; a task's file gives its `name`.

    The other packages have one table each, by kind: models.heads.HEADS, losses.LOSSES, evaluation.judges.JUDGES.
    What every method is given are the task's other keys. Modules of kinds import neither torch nor transformers, so
    that a configuration is checked at once; `encode` imports them.
    """

    name: str
    metrics: tuple[str, ...]  # what a task may ask for
    default_metrics: tuple[str, ...]
    row_name: str = "text"  # what the model reads at a time, in the words of a report
    judged_name: str = "text"  # what a prediction is made for, in the words of a report
    checkpoint_metric: str = ""  # chooses the checkpoint; "" = the task's score
    generates: bool = False  # a decoder writes the prediction; otherwise a head reads it off the encoder
    own_keys: tuple[str, ...] = ()  # keys of a task that mean something to this kind alone
    may_lack_labels: bool = False  # whether a text may have none
    labels_words: bool = False  # whether a prediction is a list, a label per word
    predicts_class: bool = False  # whether each text has one class, whose loss may be smoothed and weighted
    predicts_value: bool = False  # whether a head has one output, which is a value
    asks_teacher: bool = False  # whether no row has a label: the outputs of the model that was given are learned
    gives_vectors: bool = False  # whether a prediction is a vector, which is compared with those of other texts
    does: str = ""  # what a model of this kind does, for messages; "" = it gives each text one label or value
    # what cells may hold, and what to do about others, in messages
    allowed_text: str = "text, which is Unicode; null where there is none."
    correct_text: str = "Correct these rows, or name another column."
    allowed_label: str = "one label per text, as a text or a number."
    correct_label: str = "Correct these rows, or name another column with task.label=..."

    def __str__(self) -> str:
        return self.name

    @property
    def labels_texts(self) -> bool:
        """Whether a row is a whole text and its prediction one label or value, as a server or a benchmark needs."""
        return not self.does

    # -- keys ------------------------------------------------------------------------------------------

    def check(self, keys: TaskKeys) -> None:
        """Check the keys of a task that mean something to this kind alone.

        Raises:
            ConfigError: they do not go together.
        """
        if keys.labels is not None:
            raise ConfigError(f"task.labels=[{listed(keys.labels)}] with task.kind={self.name}; set task.labels=null.")

    def protects(self, keys: TaskKeys) -> bool:
        """Return whether batches mark tokens that no method may drop and that token ids alone do not show."""
        return False

    def bands_refusal(self, keys: TaskKeys, *, tested: bool) -> str:
        """Return why rows cannot be chosen by length, "" where they can; `tested`: the test is reported by it too."""
        return ""

    def columns(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the columns that a table must have."""
        pair = (keys.text_pair,) if keys.text_pair else ()
        return (keys.text, *pair, keys.label)

    def text_columns(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the columns whose text may be empty only where task.empty says so."""
        return (keys.text, keys.text_pair) if keys.text_pair else (keys.text,)

    # -- rows ------------------------------------------------------------------------------------------

    def text_fault(self, cell: Any) -> str:
        """Return why a cell that is not missing holds no text, as the words after "column 'x' holds"; "" if it does."""
        return text_fault(cell)

    def is_blank(self, cell: Any) -> bool:
        """Return whether a cell without fault holds nothing but white space."""
        return not cell.strip()

    def has_label(self, label: Any) -> bool:
        """Return whether a cell of the label's column holds a label; texts and answers are not looked at here."""
        return True

    def label_cells(self, keys: TaskKeys, table: Table) -> Sequence[Any]:
        """Return the cell of each row that holds its label."""
        return table.column(keys.label)

    def label_complaint(self, keys: TaskKeys, label: Any) -> str:
        """Return why a cell can be no label, as words that follow its place; "" where it can."""
        fault = self.label_fault(keys, label)
        return f"label {quoted(label)} is {fault}" if fault else ""

    def label_fault(self, keys: TaskKeys, label: Any) -> str:
        """Return why a cell can be no label, as the words after "label x is"; "" where it can."""
        return ""

    def decisions(self, rows: Rows[Any]) -> Sequence[Any] | None:
        """Return what rows with the same texts contradict each other in; None where any number of answers is right."""
        return rows.labels

    def flatten(self, keys: TaskKeys, table: Table) -> Table:
        """Return a table with one row per row of the task; the same table unless it has a nested layout."""
        return table

    def label_names(self, keys: TaskKeys, train: Table) -> tuple[str, ...] | None:
        """Return the classes in the order of their numbers; None where the task has no classes.

        Raises:
            DataError: the training table does not have the classes that the task needs.
        """
        return None

    def remark(self, names: Sequence[str] | None) -> str:
        """Return what may mislead about scores with these classes, "" where nothing does."""
        return ""

    def synthetic_names(self, keys: TaskKeys) -> tuple[str, ...] | None:
        """Return the classes of generated rows; None where the task has no classes."""
        return None

    def output_count(self, names: Sequence[str] | None) -> int:
        """Return how many outputs a head has per decision: classes, or 1 where there are none."""
        return len(names) if names is not None else 1

    @abstractmethod
    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[Any]:
        """Read these rows of a table; `names` are the classes.

        Raises:
            DataError: a label that such a task cannot have, with file and row.
        """

    @abstractmethod
    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[Any]:
        """Make up rows from which a model of this kind can learn something."""

    def strata(self, rows: Rows[Any]) -> Sequence[int]:
        """Return a number per row; of rows with the same one, every part gets its fraction."""
        return Numbers(spill.empty(len(rows), np.int8))

    def together(self, rows: Rows[Any]) -> Sequence[Sequence[str]]:
        """Return texts per row; rows with the same are in the same part."""
        return rows.contents

    def divide(self, rows: Rows[Any], fractions: Mapping[str, float]) -> Mapping[str, RowNumbers]:
        """Return the row numbers of "train" and of each named part, divided by content, without duplicates.

        Rows that contradict each other are in the same part.
        """
        return hash_split(rows.content_hashes, self.strata(rows), fractions, self.decisions(rows))

    def divide_by_group(self, rows: Rows[Any], fractions: Mapping[str, float]) -> Mapping[str, RowNumbers]:
        """Return the same with all rows of one of `rows.groups` in one part, and of one text, too.

        Of rows with the same texts and the same label, that of the group with the lowest hash is kept.
        """
        hashes = content_hashes(Cells([rows.groups or ()]))
        order = order_by_hash(hashes)
        kept = spill.taken(order, self.divide(rows.take(order), {})["train"])
        found = rows.take(kept)
        contents = content_hashes(self.together(found))[:, 0]
        groups = ranks(spill.taken(hashes, kept))
        parts = group_split(groups, self.strata(found), contents, fractions)
        return {name: spill.taken(kept, part) for name, part in parts.items()}

    # -- token ids -------------------------------------------------------------------------------------

    @abstractmethod
    def encode(
        self, keys: TaskKeys, rows: Rows[Any], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise rows; the first `prefix` tokens of each are the backbone's own words to name the task."""
