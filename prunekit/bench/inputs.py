"""What engines read: token ids of rows, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from prunekit.bench.protocol import Encoded
from prunekit.data.encoding import EncodedSplit
from prunekit.tokens.cutting import cut


def encode_row(split: EncodedSplit, row: int, longest: int | None = None) -> Encoded:
    """Return the token ids of a row, with its token types if it has several; cut at `longest` tokens."""
    text = Encoded(split.row(row))
    types = None if split.segments is None else split.segments.row(row).tolist()
    if longest is not None and len(text) > longest:
        batch = cut(split.batch(torch.tensor([row])), longest)
        text = Encoded(batch["input_ids"][0].tolist())
        types = None if types is None else batch["token_type_ids"][0].tolist()
    if types is not None:
        text.types = types if any(types) else None
    return text


@dataclass(frozen=True)
class BatchPadder:
    """The padding of a model's batches: `pad_id` is its padding token, `has_types` whether it reads token types."""

    pad_id: int
    has_types: bool

    @classmethod
    def of(cls, config: Any) -> BatchPadder:
        """Return the padder of a model with this configuration."""
        pad_id = config.pad_token_id
        return cls(0 if pad_id is None else int(pad_id), getattr(config, "type_vocab_size", 0) > 1)

    def pad(self, batch: Sequence[Sequence[int]], width: int | None = None) -> dict[str, Int[np.ndarray, "b n"]]:
        """Return a batch of token ids, padded to its longest text or to `width`."""
        shape = (len(batch), max(map(len, batch)) if width is None else width)
        inputs = {"input_ids": np.full(shape, self.pad_id, np.int64), "attention_mask": np.zeros(shape, np.int64)}
        if self.has_types:
            inputs["token_type_ids"] = np.zeros(shape, np.int64)
        for row, ids in enumerate(batch):
            inputs["input_ids"][row, : len(ids)] = ids
            inputs["attention_mask"][row, : len(ids)] = 1
            types = getattr(ids, "types", None)
            if self.has_types and types is not None:
                inputs["token_type_ids"][row, : len(ids)] = types
        return inputs


def to_engine_inputs(batch: Sequence[Sequence[int]]) -> list[Sequence[int]] | dict[str, Tensor]:
    """Return a batch as the packed engine reads it: token ids, or padded tensors where texts have token types."""
    if all(getattr(ids, "types", None) is None for ids in batch):
        return list(batch)
    return {name: torch.from_numpy(array) for name, array in BatchPadder(0, True).pad(batch).items()}
