"""What an engine is given: texts, token ids or tensors, as packed rows of rounded lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.tokens.host import send
from prunekit.tokens.packing import Packing

# one sentence, a pair of sentences, its token ids; or a padded batch as Hugging Face's tokenizers make them
Text = str | tuple[str, str] | Sequence[int]
Inputs = Text | Sequence[Text] | Mapping[str, Tensor]
# up to so many rows their count is rounded up to a multiple of: a new count costs oneDNN a compilation
ROUNDING = ((32, 4), (128, 8), (512, 16))
ROUNDING_ABOVE = 32


def rounded(rows: int, sentences: int) -> int:
    """The number of rows that is computed for so many: rounded up, so that new counts are rare.

    One sentence alone is rounded only where few rows cost no less than a few more.
    """
    step = next((step for most, step in ROUNDING if rows <= most), ROUNDING_ABOVE)
    if sentences == 1 and rows > ROUNDING[0][0]:
        return rows
    return -(-rows // step) * step


def row_counts(most: int) -> list[int]:
    """Every number of rows that is computed for a batch of up to so many."""
    return sorted({rounded(rows, 2) for rows in range(1, most + 1)})


@dataclass(frozen=True)
class Rows:
    """A batch without padding: rows of all sentences end to end, and how many each sentence has."""

    ids: Int[Tensor, "rows"]
    packing: Packing
    types: Int[Tensor, "rows"] | None = None
    protected: Bool[Tensor, "rows"] | None = None

    def on(self, device: torch.device) -> Rows:
        """The same on a device."""
        if device.type == "cpu":
            return self
        types, protected = (None if part is None else send(part, device) for part in (self.types, self.protected))
        return Rows(send(self.ids, device), Packing(self.packing.lengths, device), types, protected)


def _is_ids(text: Any) -> bool:
    return not isinstance(text, str | tuple) and len(text) > 0 and isinstance(text[0], int)


def _of_padded(batch: Mapping[str, Tensor]) -> Rows:
    """A padded batch without its padding, on the host."""
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)) > 0
    lengths = mask.sum(-1)
    if not torch.equal(mask, torch.arange(ids.shape[1]) < lengths[:, None]):
        raise ValueError(
            "the batch is padded elsewhere than on the right; "
            "set tokenizer.padding_side='right', or pass lists of token ids."
        )

    def packed(name: str) -> Tensor | None:
        return batch[name][mask] if name in batch else None

    return Rows(ids[mask], Packing.of(lengths.tolist(), ids.device), packed("token_type_ids"), packed("protected"))
