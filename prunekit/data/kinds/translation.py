"""Sentences with their translations, which a decoder writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.rows import Rows
from prunekit.data.synthetic import FILLERS, MARKERS, sentence
from prunekit.data.tables import Table

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder

# the share of words that teacher forcing gets right; the other metrics are of whole translations, which only the test
# is given
WORD_ACCURACY = "word_accuracy"


@dataclass(frozen=True)
class Translation(TaskKind):
    """A text for a text, word by word."""

    def bands_refusal(self, keys: TaskKeys, *, tested: bool) -> str:
        """Refuse bands of the test, whose BLEU is reported by length anyway."""
        if not tested:
            return ""
        return (
            f"data.eval_bands, but {keys.name} is translated: its BLEU is reported by source length anyway.\n"
            "Allowed: null with task.kind=translation.\nLeave it out."
        )

    def text_columns(self, keys: TaskKeys) -> tuple[str, ...]:
        """Return the columns of source and target."""
        return (keys.text, keys.label)

    def decisions(self, rows: Rows[str]) -> None:
        """Return None: a sentence has many translations."""
        return

    def rows(self, keys: TaskKeys, table: Table, kept: Sequence[int], names: Sequence[str] | None) -> Rows[str]:
        """Read sources and targets."""
        return Rows(table.texts(keys.text, kept), None, table.texts(keys.label, kept))

    def generate(self, keys: TaskKeys, random: Random, count: int, names: Sequence[str] | None) -> Rows[str]:
        """Make up sentences and their translations: a filler's syllables in reverse, markers as they are."""
        sources = [sentence(random, random.sample(MARKERS, random.randint(1, 3))) for _ in range(count)]
        targets = [" ".join(_translate(word) for word in source.split()) for source in sources]
        return Rows(sources, None, targets)

    def encode(
        self, keys: TaskKeys, rows: Rows[str], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise sources and targets, each cut at its longest length."""
        from prunekit.data.translations import encode_translations  # loads torch, and a task is checked without it

        return encode_translations(rows, encoder, keys.max_target_length, prefix=prefix)


def _translate(word: str) -> str:
    turned = word[2:] + word[:2]
    return turned if turned in FILLERS else word


TRANSLATION = Translation(
    "translation",
    metrics=("bleu", "chrf", "length_ratio", WORD_ACCURACY),
    default_metrics=("bleu", "chrf", "length_ratio", WORD_ACCURACY),
    checkpoint_metric=WORD_ACCURACY,
    generates=True,
    does="translates",
)
