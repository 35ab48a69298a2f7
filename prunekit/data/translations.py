"""Tokenise sentences and their translations: sources as any texts, and the words of the targets beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.encoding import (
    CHUNK,
    EncodedSplit,
    Encoder,
    StoredSplit,
    Targets,
    fingerprint,
    offsets_of,
    tokenise_texts,
)
from prunekit.data.rows import Rows

PADDED = -100  # after the targets of a batch, where no loss looks


@dataclass(frozen=True)
class TranslationTargets(Targets):
    """The words of all targets, end to end; those of row i are `words[offsets[i]:offsets[i + 1]]`.

    The end of a source is protected, and so are its first `prefix` tokens, which name the task. `references` are the
    targets as texts.
    """

    words: Int[Tensor, "words"]
    offsets: Int[Tensor, "boundaries"]
    prefix: int = 0
    references: Sequence[str] = field(default=(), repr=False, compare=False)

    @property
    def judged(self) -> int:
        """How many sentences there are."""
        return len(self.offsets) - 1

    def batch(
        self, rows: Int[Tensor, "batch"], place: Int[Tensor, "batch width"], inside: Bool[Tensor, "batch width"]
    ) -> dict[str, Tensor]:
        """Return the words of the targets, -100 after their end, and `protected` where there is a prefix."""
        start = self.offsets[rows]
        count = self.offsets[rows + 1] - start
        column = torch.arange(int(count.max()))
        word = (start[:, None] + column).clamp(max=len(self.words) - 1)
        batch = {"labels": self.words[word].long().masked_fill(column >= count[:, None], PADDED)}
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

    def targets(tensors: Mapping[str, Tensor]) -> TranslationTargets:
        return TranslationTargets(tensors["words"], tensors["word_offsets"], prefix, [str(one) for one in rows.labels])

    hashed = f"{encoder.tokenizer_hash} targets {target_length}"
    key = fingerprint(rows, hashed, encoder.max_length)
    return encoder.split(key, lambda: _tokenise(rows, encoder, target_length), targets)


def _tokenise(rows: Rows[str], encoder: Encoder, target_length: int) -> StoredSplit:
    sources = tokenise_texts(rows, encoder)
    words: list[np.ndarray] = []
    cut = 0
    for start in range(0, len(rows), CHUNK):
        texts = [str(target) for target in rows.labels[start : start + CHUNK]]
        encoded = encoder.tokenizer(text_target=texts, padding=False, return_attention_mask=False, verbose=False)
        for tokens in encoded["input_ids"]:
            if len(tokens) > target_length:
                cut += 1
                tokens = [*tokens[: target_length - 1], tokens[-1]]  # the last one ends the sentence
            words.append(np.asarray(tokens, np.int32))
    own = {
        "labels": torch.arange(len(rows)),  # row numbers: nothing reads them, but every cache file has labels
        "words": torch.from_numpy(np.concatenate(words)),
        "word_offsets": offsets_of([len(tokens) for tokens in words]),
    }
    return StoredSplit({**sources.tensors, **own}, sources.truncated + cut)
