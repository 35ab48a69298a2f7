"""Words with a label each, as the names in a text have: token classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from prunekit.config.errors import ConfigError, listed, quoted, shorten
from prunekit.data import cells
from prunekit.data.columns import Column, NumberSets, take
from prunekit.data.errors import DataError
from prunekit.data.faults import Faults
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import check_class_names
from prunekit.data.label_sets import Elements, label_key, numbers_of
from prunekit.data.labels import NO_LABEL, class_names
from prunekit.data.rows import Rows
from prunekit.data.synthetic import FILLERS, MARKERS
from prunekit.data.tables import Table
from prunekit.data.tagging import BETWEEN, OUTSIDE, marks_entities

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder

Labels = tuple[int, ...]  # class numbers of the words of a row
GENERATED = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SPELT = 20  # labels in what a message says to type


def _labels_in_rows(
    table: Table, column: str, rows: Sequence[int] | None = None
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield each of these rows of a column of lists, or each row of the table, with its list; () where it has none."""
    raw = table.column(column)
    for row, labels in enumerate(raw) if rows is None else zip(rows, take(raw, rows), strict=True):
        yield row, labels if isinstance(labels, list | tuple) else ()


@dataclass(frozen=True)
class Tokens(TaskKind):
    """A label for each word of a text, which is given as a list of words; a text of `Rows` has a word per line."""

    def check(self, keys: TaskKeys) -> None:
        """Check that classes are different, two or more, and that words are read from one column.

        Raises:
            ConfigError: they are not.
        """
        if keys.labels is not None:
            check_class_names("task.labels", keys.labels)
        if keys.text_pair is not None:
            raise ConfigError(
                f"task.text_pair={keys.text_pair} with task.kind=tokens, whose words are in one column.\n"
                "Allowed: null with task.kind=tokens.\nSet task.text_pair=null, and task.text to the column of words."
            )
        if keys.empty == "keep":
            raise ConfigError(
                "task.empty=keep with task.kind=tokens: where there is no word, nothing has a label.\n"
                "Allowed: error or drop.\nSet task.empty=drop to leave such rows out."
            )

    # -- rows ------------------------------------------------------------------------------------------

    def text_fault(self, cell: Any) -> str:
        """Return why a cell holds no words, as the words after "column 'x' holds"; "" where it does."""
        if isinstance(cell, str):
            return f"{quoted(cell)}, a text that is not divided into words"
        if not isinstance(cell, list | tuple):
            return cells.text_fault(cell).removesuffix("which is not text") + "which is no list of words"
        for number, word in enumerate(cell, 1):
            where = f" as word {number} of {len(cell)}"
            if word is None or not isinstance(word, str):
                return f"{quoted(word)}{where}, which is not text"
            if fault := cells.text_fault(word):
                return f"{fault},{where}"
            if not word.strip():
                return f"an empty word, {quoted(word)},{where}"
            if BETWEEN in word:
                return f"a line end in {quoted(word)},{where}"
        return ""

    def is_blank(self, cell: Any) -> bool:
        """Return whether there is no word."""
        return not cell

    def has_label(self, label: Any) -> bool:
        """Return whether there is something."""
        return not cells.is_unlabelled(label)

    def label_fault(self, keys: TaskKeys, label: Any) -> str:
        """Return why a cell holds no labels of words."""
        if not isinstance(label, list | tuple):
            return "no list, and each word has a label of its own"
        for number, one in enumerate(label, 1):
            fault = "no label" if cells.is_unlabelled(one) else cells.label_fault(one)
            if fault:
                return f"a list with {quoted(one)} for word {number}, which is {fault.partition(',')[0]}"
        return ""

    def label_names(self, keys: TaskKeys, train: Table) -> tuple[str, ...]:
        """Return the task's classes, those that the file names, or the different labels of the training table, sorted.

        Raises:
            DataError: there are fewer than two.
        """
        if keys.labels is not None:
            return keys.labels
        names = train.classes.get(keys.label)
        if names is None:
            every = _labels_in_rows(train, keys.label)
            names = class_names(Elements.distinct(train, keys.label, every), keys.label)
        if len(names) < 2:
            raise DataError(
                f"{train.path}: column {quoted(keys.label)} has {len(names)} different labels of words.\n"
                "Allowed: two or more.\nName another column with task.label=..."
            )
        return names

    def remark(self, names: Sequence[str] | None) -> str:
        """Return that labels mark no entities, where they do not."""
        if not names or marks_entities(names):
            return ""
        return (
            f"the labels, {listed(names, 4)}, are not as B-PER, I-PER and O: every word whose label is not O is scored "
            "as an entity by itself; numbers get names by task.labels=[O,B-PER,I-PER], in their order"
        )

    def synthetic_names(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the task's classes, or those of places and persons."""
        return keys.labels or GENERATED

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[Labels]:
        """Read words and the numbers of their labels."""
        column, raw = table.column(keys.text), table.column(keys.label)
        faults = Faults()
        for row, words, labels in zip(kept, take(column, kept), take(raw, kept), strict=True):
            if len(words) != len(labels):
                faults.add(
                    table.place(row),
                    f": {len(words)} words in column {quoted(keys.text)} and {len(labels)} labels in "
                    f"{quoted(keys.label)}",
                )
        if faults:
            raise DataError(
                f"{table.prefix}{faults}.\nAllowed: a label for each word, in their order.\n"
                "Correct these rows, or name other columns with task.text=... and task.label=..."
            )
        number = self._numbers(keys, table, kept, names or ())
        found = ([number[label_key(label)] for label in labels] for labels in take(raw, kept))
        labels_of = NumberSets.of(found, len(kept))
        if isinstance(column, Column):
            return Rows(column.take(kept).joined(BETWEEN), None, labels_of)
        return Rows([BETWEEN.join(words) for words in take(column, kept)], None, labels_of)

    def _numbers(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str]) -> dict[Any, int]:
        """Return the class number of every label in these rows.

        Raises:
            DataError: a label is of no class.
        """
        every = partial(_labels_in_rows, table, keys.label, kept)
        try:
            return numbers_of(table, keys.label, every, names)
        except DataError as error:
            labels = Elements.distinct(table, keys.label, every()).columns[keys.label]
            others = sorted({cells.spelling(label) for label in labels} - {*names})
            if others == [NO_LABEL]:
                raise  # its message says what that stands for
            known = [*names, *others]
            shown = ", ".join(known[:SPELT]) + ", ..." * (len(known) > SPELT)
            raise DataError(
                f"{str(error).splitlines()[0]}\nAllowed: the labels of the training rows, or those that task.labels "
                f"names.\nIf it is one of them: 'task.labels=[{shorten(shown, 400)}]'"
            ) from error

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[Labels]:
        """Make up texts of filler words and one to three runs of markers, each of which has a label of its own."""
        numbers = {name: number for number, name in enumerate(names or ())}
        outside = numbers.get(OUTSIDE, 0)
        begins = [name for name in numbers if numbers[name] != outside and not name.startswith("I-")]
        texts, labels = [], []
        for _ in range(count):
            parts = [[(random.choice(FILLERS), outside)] for _ in range(random.randint(4, 16))]
            for _ in range(random.randint(1, 3)):
                name = random.choice(begins)
                inner = numbers.get(f"I-{name.removeprefix('B-')}") if name.startswith("B-") else None
                run = [numbers[name], *([inner] * random.randint(0, 2) if inner is not None else [])]
                marked = [(MARKERS[(2 * number + random.randint(0, 1)) % len(MARKERS)], number) for number in run]
                parts.insert(random.randint(0, len(parts)), marked)
            words = [word for part in parts for word in part]
            texts.append(BETWEEN.join(word for word, _ in words))
            labels.append(tuple(number for _, number in words))
        return Rows(texts, None, labels)

    # -- token ids -------------------------------------------------------------------------------------

    def encode(
        self, keys: TaskKeys, rows: Rows[Labels], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise words, cut at the longest length."""
        from prunekit.data.words import encode_words  # loads torch, and a task is checked without it

        return encode_words(rows, encoder, names or ())


TOKENS = Tokens(
    "tokens",
    metrics=("entity_f1", "entity_precision", "entity_recall", "word_accuracy"),
    default_metrics=("entity_f1", "entity_precision", "entity_recall", "word_accuracy"),
    labels_words=True,
    does="labels the words of texts",
    allowed_text='a list of words per row, as ["EU", "rejects"], none of them empty.',
    correct_text='Write rows as {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]} into a .jsonl file.',
    allowed_label='a list with a label for each word, as ["B-ORG", "O"].',
)
