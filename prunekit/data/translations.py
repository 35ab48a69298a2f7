"""Tokenise sentences and their translations: sources as any texts, and the words of the targets beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.encoding import EncodedSplit, Encoder, Targets, TextTokeniser, fingerprint, lists
from prunekit.data.ragged import Ragged
from prunekit.data.rows import Rows

PADDED = -100  # after the targets of a batch, where no loss looks


@dataclass(frozen=True)
class TranslationTargets(Targets):
    """The words of all targets.

    The end of a source is protected, and so are its first `prefix` tokens, which name the task. `references` are the
    targets as texts.
    """

    words: Ragged
    prefix: int = 0
    references: Sequence[str] = field(default=(), repr=False, compare=False)

    @property
    def judged(self) -> int:
        """How many sentences there are."""
        return len(self.words)

    def batch(self, rows: Int[Tensor, "batch"], inside: Bool[Tensor, "batch width"]) -> dict[str, Tensor]:
        """Return the words of the targets, -100 after their end, and `protected` where there is a prefix."""
        batch = {"labels": self.words.padded(rows, PADDED)}
        if self.prefix > 0:
            column = torch.arange(inside.shape[1])
            is_end = column == inside.sum(-1, keepdim=True) - 1
            batch["protected"] = inside & ((column < self.prefix) | is_end)
        return batch

    def protected(self, offsets: Int[Tensor, "boundaries"]) -> Int[Tensor, "rows"]:
        """Return the number of protected tokens of each source: the prefix and the end."""
        return offsets.diff().clamp(max=self.prefix + 1)


def encode_translations(rows: Rows[str], encoder: Encoder, target_length: int, *, prefix: int = 0) -> EncodedSplit:
    """Tokenise sources and their targets, which are cut at `target_length` tokens, or read them from the cache."""
    hashed = f"{encoder.tokenizer_hash} targets {target_length}"
    key = fingerprint(rows, hashed, encoder.max_length)
    tokenise = _PairTokeniser(TextTokeniser.of(encoder), target_length)
    columns = encoder.encode(key, {"text": rows.texts, "target": rows.labels}, tokenise)
    return encoder.split(key, columns, TranslationTargets(Ragged.of_lists(columns["words"]), prefix, rows.labels))


@dataclass(frozen=True)
class _PairTokeniser:
    """Sources as any texts, and the `words` of their targets."""

    sources: TextTokeniser
    target_length: int

    def __call__(self, rows: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, Any]:
        """Return the columns of sources, and `words`; `cut` says how many of the two were too long."""
        columns = self.sources({"text": rows["text"]}, numbers)
        targets = [str(target) for target in rows["target"]]
        encoded = self.sources.tokenizer(
            text_target=targets, padding=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        # the last one ends the sentence
        most = self.target_length
        words = [tokens if len(tokens) <= most else [*tokens[: most - 1], tokens[-1]] for tokens in encoded]
        cut = columns["cut"].to_numpy() + np.array([len(tokens) > most for tokens in encoded], np.int8)
        return columns | {"words": lists(words, np.int32), "cut": pyarrow.array(cut)}
