"""Attention within each sentence of packed rows, with the column sums of its probabilities that scorers read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunekit.tokens.packing import Group, Packing
from prunekit.tokens.state import Need, Signals

# bytes of probabilities computed at a time on a CPU: more than fits a core's cache goes to memory and back three times
CACHE_BYTES = 512 << 10
# the scorers' needs that attention provides; the token state provides the others
ATTENTION_SIGNALS: frozenset[Need] = frozenset({"received", "probs", "dropped"})
# attention over one packing, called as f(qkv, heads, scored=...): returns the attention output of each row and, if
# `scored`, the column sums in the padded view, else None
PackingAttention = Callable[..., tuple[Tensor, Tensor | None]]


class FusedAttention(ABC):
    """A backend that computes attention and its column sums in one pass: C++ on a CPU, Triton on a GPU."""

    name: str

    @abstractmethod
    def bind(self, packing: Packing) -> PackingAttention:
        """Return the attention over one packing; whatever depends only on the packing is prepared once, here."""

    def from_first(
        self, query: Float[Tensor, "batch hidden"], kv: Float[Tensor, "rows two_hidden"], heads: int, packing: Packing
    ) -> Float[Tensor, "batch hidden"] | None:
        """Compute `attend_from_first`; None if the backend leaves that to torch."""
        return None


@dataclass(frozen=True)
class Block:
    """Sentences of similar length that share one product: rows to read, rows to write, and which keys are real.

    Padding reads the sentence's last row once more (`rows`) and is written to a spare row after the output (`places`).
    """

    sentences: Int[Tensor, "block"]
    width: int
    rows: Int[Tensor, "block_width"]
    places: Int[Tensor, "block_width"]
    real: Bool[Tensor, "block width"] | None


@dataclass(frozen=True)
class Plan:
    """How attention runs over a packing: made once, and used by every layer until the packing changes.

    `spare` is the output row that padding is written to. `fused` handles the cases it supports; None uses torch only.
    """

    packing: Packing
    spare: int
    fused: FusedAttention | None = None

    @cached_property
    def fused_attention(self) -> PackingAttention | None:
        """Fused attention over this packing."""
        return None if self.fused is None else self.fused.bind(self.packing)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The sentences grouped by similar length, for torch."""
        return tuple(map(self._block, self.packing.groups))

    def _block(self, group: Group) -> Block:
        rows = group.rows.clamp(min=0)  # an empty sentence has no last row
        places = rows if group.real is None else torch.where(group.real, rows, self.spare)
        return Block(group.sentences, rows.shape[1], rows.flatten(), places.flatten(), group.real)


def attend(
    qkv: Float[Tensor, "rows three_hidden"], heads: int, plan: Plan, needs: frozenset[Need]
) -> tuple[Float[Tensor, "rows hidden"], Signals]:
    """Compute the attention of each sentence, and the signals that `needs` names, in the padded view.

    Queries must already be scaled. Rows of `qkv` beyond the packing are dummies; their output is zero.
    """
    packing, total = plan.packing, sum(plan.packing.lengths)
    if plan.fused_attention is not None and not needs & {"probs", "dropped"}:
        mixed, received = plan.fused_attention(qkv, heads, scored="received" in needs)
        return mixed, Signals(received)
    out = qkv.new_empty((qkv.shape[0] + 1, qkv.shape[1] // 3))
    out[total:] = 0
    if packing.is_uniform:
        parts = qkv[:total].view(len(packing.lengths), packing.width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed, signals = _attend_block(parts, None, needs)
        out[:total].view(len(packing.lengths), packing.width, heads, -1).copy_(mixed)
        return out[:-1], signals
    padded: dict[str, Tensor] = {}
    batch, width = len(packing.lengths), packing.width
    for block in plan.blocks:
        if block.width == 0:
            continue
        gathered = qkv.index_select(0, block.rows).view(len(block.sentences), block.width, 3, heads, -1)
        mixed, signals = _attend_block(gathered.permute(2, 0, 3, 1, 4), block.real, needs)
        out.index_copy_(0, block.places, mixed.reshape(len(block.rows), -1))
        for name in needs & ATTENTION_SIGNALS:
            part = getattr(signals, name)
            if part.dim() == 4 and block.real is not None:
                part = part * block.real[:, None, :, None]  # padded queries give no attention
            shape = (batch, width) if part.dim() == 2 else (batch, heads, width, width)
            whole = padded.setdefault(name, part.new_zeros(shape))
            room = width - block.width
            whole[block.sentences] = F.pad(part, (0, room) if part.dim() == 2 else (0, room, 0, room))
    return out[:-1], Signals(**padded)


def attend_from_first(
    query: Float[Tensor, "batch hidden"],
    kv: Float[Tensor, "rows two_hidden"],
    heads: int,
    packing: Packing,
    fused: FusedAttention | None = None,
) -> Float[Tensor, "batch hidden"]:
    """Compute the attention of one query per sentence over its sentence. Queries must already be scaled."""
    mixed = None if fused is None else fused.from_first(query, kv, heads, packing)
    if mixed is not None:
        return mixed
    total = sum(packing.lengths)
    padded = packing.pad(kv[:total]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    key, value = padded[0], padded[1]  # [batch, heads, width, head]
    logits = torch.matmul(query.view(len(query), heads, 1, -1), key.transpose(2, 3))
    if not packing.is_uniform:
        logits.masked_fill_(~packing.real[:, None, None, :], torch.finfo(logits.dtype).min)
    probs = torch.softmax(logits, -1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(probs, value).flatten(1)


def _attend_block(
    parts: Float[Tensor, "3 block heads width head"], real: Bool[Tensor, "block width"] | None, needs: frozenset[Need]
) -> tuple[Float[Tensor, "block width heads head"], Signals]:
    """Compute the attention of one padded block; probabilities are float32, whatever the dtype of the rows."""
    query, key, value = parts.unbind(0)
    if not needs & ATTENTION_SIGNALS:
        mask = None if real is None else real[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, mask, scale=1.0).transpose(1, 2), Signals()
    if needs & ATTENTION_SIGNALS == {"received"}:
        mixed, sums = query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)
        for part in _cache_sized_parts(query):
            part_real = None if real is None else real[part[0]]
            _, sums[part], mixed[part] = _attend_explicitly(query[part], key[part], value[part], part_real)
        return mixed.transpose(1, 2), Signals(sums.mean(1))
    probs, sums, mixed = _attend_explicitly(query, key, value, real)
    # without training there is no dropout, so "dropped" is "probs"
    return mixed.transpose(1, 2), Signals(
        sums.mean(1) if "received" in needs else None,
        probs if "probs" in needs else None,
        probs if "dropped" in needs else None,
    )


def _attend_explicitly(
    query: Float[Tensor, "block heads width head"],
    key: Float[Tensor, "block heads width head"],
    value: Float[Tensor, "block heads width head"],
    real: Bool[Tensor, "block width"] | None,
) -> tuple[
    Float[Tensor, "block heads width width"],
    Float[Tensor, "block heads width"],
    Float[Tensor, "block heads width head"],
]:
    """Return the probabilities, their column sums over real queries, and the weighted sums of values."""
    logits = torch.matmul(query, key.transpose(2, 3))
    if real is not None:
        logits.masked_fill_(~real[:, None, None, :], torch.finfo(logits.dtype).min)
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    sums = probs.sum(2) if real is None else torch.einsum("bhqk,bq->bhk", probs, real.float())
    return probs, sums, torch.matmul(probs.to(value.dtype), value)


def _cache_sized_parts(query: Float[Tensor, "block heads width head"]) -> Iterator[tuple[slice, slice]]:
    """Yield slices of sentences and heads whose probabilities fit a core's cache; on a GPU, everything at once."""
    block, heads, width, _ = query.shape
    fitting = max(1, CACHE_BYTES // (4 * width * width)) if query.device.type == "cpu" else block * heads
    sentence_step, head_step = max(1, fitting // heads), min(heads, fitting)
    for sentence in range(0, block, sentence_step):
        for head in range(0, heads, head_step):
            yield slice(sentence, sentence + sentence_step), slice(head, head + head_step)
