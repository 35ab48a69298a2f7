"""Attention within the sentences of packed rows, and the column sums that scorers read."""

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

# bytes of probabilities at a time, on a CPU: what exceeds the cache of a core goes to memory and back, three times
IN_CACHE = 512 << 10
# signals that scorers ask of attention; the others are the state's
OF_ATTENTION: frozenset[Need] = frozenset({"received", "probs", "dropped"})
# attention over one packing, of rows with so many heads, `scored` or not: what `attend` gives, and the column sums in
# the padded view where scored
Over = Callable[..., tuple[Tensor, Tensor | None]]


class Fused(ABC):
    """A backend that attends and adds up columns in one go: C++ on a CPU, Triton on a GPU."""

    name: str

    @abstractmethod
    def over(self, packing: Packing) -> Over:
        """Attention over a packing: `over(qkv, heads, scored=...)`; what the packing decides is laid out once."""

    def from_first(
        self, query: Float[Tensor, "batch hidden"], kv: Float[Tensor, "rows two_hidden"], heads: int, packing: Packing
    ) -> Float[Tensor, "batch hidden"] | None:
        """`attend_from_first`; None where the backend leaves that to torch."""
        return None


@dataclass(frozen=True)
class Block:
    """Sentences of similar length in one product: rows to read, rows to write, and which keys are real.

    `rows` of padding repeat the sentence's last row, and are written to `places` behind the last row of the output.
    """

    sentences: Int[Tensor, "block"]
    width: int
    rows: Int[Tensor, "block_width"]
    places: Int[Tensor, "block_width"]
    real: Bool[Tensor, "block width"] | None


@dataclass(frozen=True)
class Plan:
    """How attention goes over a packing: made once, used by every layer until the packing changes.

    `spare` is the row of the output that padding is written to; `fused` does what it can, None is torch alone.
    """

    packing: Packing
    spare: int
    fused: Fused | None = None

    @cached_property
    def over(self) -> Over | None:
        """Fused attention over this packing."""
        return None if self.fused is None else self.fused.over(self.packing)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """For torch: sentences of similar length together."""
        return tuple(map(self._block, self.packing.groups))

    def _block(self, group: Group) -> Block:
        rows = group.rows.clamp(min=0)  # an empty sentence has no last row
        places = rows if group.real is None else torch.where(group.real, rows, self.spare)
        return Block(group.sentences, rows.shape[1], rows.flatten(), places.flatten(), group.real)


def attend(
    qkv: Float[Tensor, "rows three_hidden"], heads: int, plan: Plan, needs: frozenset[Need]
) -> tuple[Float[Tensor, "rows hidden"], Signals]:
    """Attention of each sentence, and the signals that `needs` names, in the padded view.

    Queries are scaled already. `qkv` may have more rows than the packing; those come back as zeros.
    """
    packing, total = plan.packing, sum(plan.packing.lengths)
    if plan.over is not None and not needs & {"probs", "dropped"}:
        mixed, received = plan.over(qkv, heads, scored="received" in needs)
        return mixed, Signals(received)
    out = qkv.new_empty((qkv.shape[0] + 1, qkv.shape[1] // 3))
    out[total:] = 0
    if packing.is_uniform:
        parts = qkv[:total].view(len(packing.lengths), packing.width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed, signals = _one(parts, None, needs)
        out[:total].view(len(packing.lengths), packing.width, heads, -1).copy_(mixed)
        return out[:-1], signals
    shown: dict[str, Tensor] = {}
    batch, width = len(packing.lengths), packing.width
    for block in plan.blocks:
        if block.width == 0:
            continue
        gathered = qkv.index_select(0, block.rows).view(len(block.sentences), block.width, 3, heads, -1)
        mixed, signals = _one(gathered.permute(2, 0, 3, 1, 4), block.real, needs)
        out.index_copy_(0, block.places, mixed.reshape(len(block.rows), -1))
        for name in needs & OF_ATTENTION:
            part = getattr(signals, name)
            if part.dim() == 4 and block.real is not None:
                part = part * block.real[:, None, :, None]  # padded queries show nothing
            shape = (batch, width) if part.dim() == 2 else (batch, heads, width, width)
            whole = shown.setdefault(name, part.new_zeros(shape))
            room = width - block.width
            whole[block.sentences] = F.pad(part, (0, room) if part.dim() == 2 else (0, room, 0, room))
    return out[:-1], Signals(**shown)


def attend_from_first(
    query: Float[Tensor, "batch hidden"],
    kv: Float[Tensor, "rows two_hidden"],
    heads: int,
    packing: Packing,
    fused: Fused | None = None,
) -> Float[Tensor, "batch hidden"]:
    """Attention of one query per sentence over the rows of its sentence. Queries are scaled already."""
    done = None if fused is None else fused.from_first(query, kv, heads, packing)
    if done is not None:
        return done
    total = sum(packing.lengths)
    padded = packing.pad(kv[:total]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    key, value = padded[0], padded[1]  # [batch, heads, width, head]
    logits = torch.matmul(query.view(len(query), heads, 1, -1), key.transpose(2, 3))
    if not packing.is_uniform:
        logits.masked_fill_(~packing.real[:, None, None, :], torch.finfo(logits.dtype).min)
    probs = torch.softmax(logits, -1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(probs, value).flatten(1)


def _one(
    parts: Float[Tensor, "3 block heads width head"], real: Bool[Tensor, "block width"] | None, needs: frozenset[Need]
) -> tuple[Float[Tensor, "block width heads head"], Signals]:
    """Attention of sentences in one padded block; probabilities are float32, whatever flows."""
    query, key, value = parts.unbind(0)
    if not needs & OF_ATTENTION:
        mask = None if real is None else real[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, mask, scale=1.0).transpose(1, 2), Signals()
    if needs & OF_ATTENTION == {"received"}:
        mixed, votes = query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)
        for part in _in_cache(query):
            _, votes[part], mixed[part] = _explicit(query[part], key[part], value[part], _of(real, part))
        return mixed.transpose(1, 2), Signals(votes.mean(1))
    probs, votes, mixed = _explicit(query, key, value, real)
    # nothing is dropped where nothing is trained
    return mixed.transpose(1, 2), Signals(
        votes.mean(1) if "received" in needs else None,
        probs if "probs" in needs else None,
        probs if "dropped" in needs else None,
    )


def _explicit(
    query: Float[Tensor, "block heads width head"],
    key: Float[Tensor, "block heads width head"],
    value: Float[Tensor, "block heads width head"],
    real: Bool[Tensor, "block width"] | None,
) -> tuple[
    Float[Tensor, "block heads width width"],
    Float[Tensor, "block heads width"],
    Float[Tensor, "block heads width head"],
]:
    """Probabilities, their column sums over real queries, and the mixture of values."""
    logits = torch.matmul(query, key.transpose(2, 3))
    if real is not None:
        logits.masked_fill_(~real[:, None, None, :], torch.finfo(logits.dtype).min)
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    votes = probs.sum(2) if real is None else torch.einsum("bhqk,bq->bhk", probs, real.float())
    return probs, votes, torch.matmul(probs.to(value.dtype), value)


def _in_cache(query: Float[Tensor, "block heads width head"]) -> Iterator[tuple[slice, slice]]:
    """Parts of sentences and heads whose probabilities fit a core's cache; on a GPU everything at once."""
    block, heads, width, _ = query.shape
    fit = max(1, IN_CACHE // (4 * width * width)) if query.device.type == "cpu" else block * heads
    sentences, alone = max(1, fit // heads), min(heads, fit)
    for sentence in range(0, block, sentences):
        for head in range(0, heads, alone):
            yield slice(sentence, sentence + sentences), slice(head, head + alone)


def _of(real: Bool[Tensor, "block width"] | None, part: tuple[slice, slice]) -> Bool[Tensor, "part width"] | None:
    return None if real is None else real[part[0]]
