"""Inputs of an engine (texts, token ids or padded tensors) as packed rows, whose number is rounded up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from prunekit.data.encoding import VOCABULARIES, load_tokenizer
from prunekit.models.tokenizers import check_tokenizer, longest_text
from prunekit.tokens.host import send
from prunekit.tokens.packing import Packing
from prunekit.tokens.segments import first_segment

# a sentence, a pair of sentences, or token ids; or a padded batch as Hugging Face's tokenizers return it
Text = str | tuple[str, str] | Sequence[int]
Inputs = Text | Sequence[Text] | Mapping[str, Tensor]
# (rows, step): up to this many rows, their number is rounded up to a multiple of step, because oneDNN compiles a
# product anew for each number of rows
ROUNDING = ((32, 4), (128, 8), (512, 16))
ROUNDING_ABOVE = 32


def tokenizer_of(folder: str | Path, config: Any) -> Any:
    """Return the tokenizer of a model's folder, which cuts texts at what the model reads; None where there is none.

    Raises:
        ValueError: the model cannot read what the tokenizer makes.
    """
    if not any(any(Path(folder).glob(name)) for name in VOCABULARIES):
        return None
    tokenizer = load_tokenizer(folder)
    check_tokenizer(folder, config, tokenizer)
    tokenizer.model_max_length = longest_text(config, tokenizer)
    return tokenizer


def round_up(rows: int, sentences: int) -> int:
    """Return the number of rows to compute for a batch with `rows` tokens: rounded up, so that few numbers occur.

    A single sentence is rounded only up to 32 rows, where a few more rows cost nothing.
    """
    step = next((step for most, step in ROUNDING if rows <= most), ROUNDING_ABOVE)
    if sentences == 1 and rows > ROUNDING[0][0]:
        return rows
    return -(-rows // step) * step


def row_counts(most: int) -> list[int]:
    """Return every number of rows that is computed for batches of up to `most` tokens."""
    return sorted({round_up(rows, 2) for rows in range(1, most + 1)})


@dataclass(frozen=True)
class Rows:
    """A batch without padding: the tokens of all sentences concatenated, and the length of each sentence."""

    ids: Int[Tensor, "rows"]
    packing: Packing
    types: Int[Tensor, "rows"] | None = None
    protected: Bool[Tensor, "rows"] | None = None

    def protecting(self, separator: int | None) -> Rows:
        """Return the rows with their first segments marked as protected, unless something is marked already."""
        if separator is None or self.protected is not None:
            return self
        marked = first_segment(self.packing.pad(self.ids), separator)
        return replace(self, protected=marked[self.packing.real])

    def to(self, device: torch.device) -> Rows:
        """Return the rows on `device`."""
        if device.type == "cpu":
            return self
        types, protected = (None if part is None else send(part, device) for part in (self.types, self.protected))
        return Rows(send(self.ids, device), Packing(self.packing.lengths, device), types, protected)


def is_ids(text: Any) -> bool:
    """Whether an input is one text given as token ids."""
    return not isinstance(text, str | tuple) and len(text) > 0 and isinstance(text[0], int)


def unpad(batch: Mapping[str, Tensor]) -> Rows:
    """Remove the padding of a batch and copy it to the host.

    Raises:
        ValueError: padding that is not on the right.
    """
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids)) > 0
    lengths = mask.sum(-1)
    if not torch.equal(mask, torch.arange(ids.shape[1]) < lengths[:, None]):
        raise ValueError(
            "the batch has padding that is not on the right; "
            "set tokenizer.padding_side='right', or pass lists of token ids."
        )

    def unpadded(name: str) -> Tensor | None:
        return batch[name][mask] if name in batch else None

    return Rows(ids[mask], Packing.of(lengths.tolist(), ids.device), unpadded("token_type_ids"), unpadded("protected"))
