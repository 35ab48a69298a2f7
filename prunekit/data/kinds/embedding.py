"""Texts whose vectors an embedder that was given knows: they are learned; scores of pairs, where there are some, judge.

A pair is two rows, one after the other: each text has a vector of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from prunekit.config.errors import ConfigError
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.distilled import Distilled
from prunekit.data.kinds.labelled import Regression
from prunekit.data.rows import Rows

if TYPE_CHECKING:
    from prunekit.data.encoding import EncodedSplit, Encoder

OWN_KEYS = ("pooling",)
OF_VECTORS, OF_PAIRS = ("cosine", "overlap"), ("spearman", "pearson")


@dataclass(frozen=True)
class Vectors(Distilled):
    """Texts, or pairs of them, without labels."""

    def encode(
        self, keys: TaskKeys, rows: Rows[int], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise texts, the two of a pair as two rows."""
        return _encode(rows, encoder, scored=False)


@dataclass(frozen=True)
class ScoredPairs(Regression):
    """Pairs of texts with a value each, which the cosine of their vectors is compared with."""

    def check(self, keys: TaskKeys) -> None:
        """Check that there are pairs.

        Raises:
            ConfigError: there are none.
        """
        super().check(keys)
        if keys.text_pair is None:
            raise ConfigError(
                f"task.label={keys.label} with an embedder and one text per row: a score is of two texts.\n"
                "Allowed: pairs of texts with scores, or texts without labels.\n"
                "Give task.text_pair=<column>, or task.label=null."
            )

    def encode(
        self, keys: TaskKeys, rows: Rows[Any], encoder: Encoder, names: Sequence[str] | None, prefix: int
    ) -> EncodedSplit:
        """Tokenise texts, the two of a pair as two rows."""
        return _encode(rows, encoder, scored=True)


def _encode(rows: Rows[Any], encoder: Encoder, *, scored: bool) -> EncodedSplit:
    import torch  # a task is checked without it

    from prunekit.data.encoding import VectorTargets, encode_texts  # as above

    texts, labels = rows.texts, rows.labels
    if rows.pairs is not None:
        texts = list(chain.from_iterable(zip(rows.texts, rows.pairs, strict=True)))
        labels = list(chain.from_iterable((label, label) for label in rows.labels))
    split = encode_texts(Rows(texts, None, labels), encoder)
    scores = torch.tensor([float(score) for score in rows.labels]) if scored else None
    return replace(split, targets=VectorTargets(len(texts), scores))


DISTILLED_EMBEDDING = Vectors(
    "distilled_embedding",
    metrics=OF_VECTORS,
    default_metrics=OF_VECTORS,
    asks_teacher=True,
    own_keys=OWN_KEYS,
    does="gives each text a vector",
    gives_vectors=True,
)
EMBEDDING = ScoredPairs(
    "embedding",
    metrics=OF_PAIRS + OF_VECTORS,
    default_metrics=OF_PAIRS[:1] + OF_VECTORS,
    checkpoint_metric=OF_VECTORS[0],
    asks_teacher=True,
    own_keys=OWN_KEYS,
    does="gives each text a vector",
    gives_vectors=True,
)
