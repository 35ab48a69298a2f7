"""Cutting tokenised texts: fewer tokens of each, chosen as a tokenizer chooses that truncates the longest first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

OF_TOKENS = ("input_ids", "token_type_ids", "protected")  # of a batch, besides the mask


def cut(batch: Mapping[str, Tensor], longest: int | None) -> dict[str, Tensor]:
    """Return a padded batch with at most `longest` tokens per row; None cuts nothing.

    What does not belong to tokens is left as it is.
    """
    ids = batch["input_ids"]
    if longest is None or ids.shape[1] <= longest:
        return dict(batch)
    columns, inside = columns_of(ids, batch.get("attention_mask"), longest)
    found = dict(batch) | {name: batch[name].gather(1, columns) for name in OF_TOKENS if name in batch}
    mask = batch.get("attention_mask", torch.ones_like(ids))
    return found | {"attention_mask": inside.to(mask.dtype)}


def columns_of(
    ids: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"] | None, longest: int
) -> tuple[Int[Tensor, "batch cut"], Bool[Tensor, "batch cut"]]:
    """Return the columns of the tokens that are left of each row, in order, and which of these are not padding.

    The first token is kept, and so are the last one and its like, which separate the two texts of a pair; of the texts
    between them the longer loses tokens first, from its end, until both are as long. Source: the strategy
    "longest_first" of Hugging Face's tokenizers, which gives the odd token to the longer text, else to the second.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask > 0
    column = torch.arange(ids.shape[1], device=ids.device)
    last = (real * column).argmax(-1, keepdim=True)
    special = real & ((column == 0) | (ids == ids.gather(1, last)))
    words = real & ~special
    text = special.cumsum(-1)  # the number of the text that a word belongs to
    counts = words.new_zeros((len(ids), int(text.max()) + 1), dtype=torch.long).scatter_add(1, text, words.long())
    room = (longest - special.sum(-1)).clamp(min=0)
    most = _share_out(counts, torch.where(real.sum(-1) <= longest, counts.sum(-1), room))
    before = words.cumsum(-1) - words.long()
    starts = torch.nn.functional.pad(counts.cumsum(-1), (1, 0))[:, :-1]
    kept = special | (words & (before - starts.gather(1, text) < most.gather(1, text)))
    # where a text is full of separators
    kept &= (kept.cumsum(-1) < longest) | (column == last) | (kept.sum(-1, keepdim=True) <= longest)
    columns = (~kept).long().sort(dim=-1, stable=True).indices[:, : int(kept.sum(-1).max())]
    return columns, kept.gather(1, columns)


def _share_out(counts: Int[Tensor, "batch texts"], room: Int[Tensor, "batch"]) -> Int[Tensor, "batch texts"]:
    """Return how many words each text keeps, so that together they fill the room: none loses more than it has to."""
    levels = torch.arange(int(counts.max()) + 1, device=counts.device)  # of a row; longer texts are cut to it
    fits = counts[:, None].minimum(levels[:, None]).sum(-1) <= room[:, None]
    level = fits.sum(-1) - 1
    most = counts.minimum(level[:, None])
    left = room - most.sum(-1)
    # one more for as many texts as there is room for: the longest, the later one on a tie
    number = torch.arange(counts.shape[1], device=counts.device).expand_as(counts)
    order = (counts * counts.shape[1] + number).argsort(-1, descending=True)
    place = torch.empty_like(order).scatter(1, order, number)
    return most + ((place < left[:, None]) & (counts > most)).long()
