"""Packed batches: sentences of different lengths end to end, and the groups in which attention computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from prunekit.tokens.host import upload

# a group may pad its shortest sentence by this share, or by a few tokens when sentences are tiny:
# more padding wastes arithmetic, less makes more and smaller matrix products
PADDING_SHARE = 1.25
PADDING_TOKENS = 4


@dataclass(frozen=True)
class Group:
    """Sentences of similar length: their rows in the packed tokens, and which of those are not padding (None: all)."""

    sentences: Int[Tensor, "group"]
    rows: Int[Tensor, "group width"]
    real: Bool[Tensor, "group width"] | None


@dataclass(frozen=True)
class Packing:
    """Number of rows of each sentence in a packed batch, known to the host; rows of a sentence are contiguous."""

    lengths: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """Return the packing of sentences with these lengths."""
        return cls(tuple(int(length) for length in lengths), device)

    @property
    def width(self) -> int:
        """Number of rows of the longest sentence."""
        return max(self.lengths)

    @property
    def is_uniform(self) -> bool:
        """Whether all sentences have the same length, so that packed and padded tokens are the same memory."""
        return min(self.lengths) == self.width

    @cached_property
    def _length(self) -> Int[Tensor, "batch"]:
        return upload(self.lengths, self.device)

    @cached_property
    def offsets(self) -> Int[Tensor, "boundaries"]:
        """First row of each sentence, then the total (`cu_seqlens`)."""
        return upload((0, *accumulate(self.lengths)), self.device)

    @cached_property
    def real(self) -> Bool[Tensor, "batch width"]:
        """True where the padded view holds a packed row, False at padding."""
        if self.is_uniform:
            return torch.ones(len(self.lengths), self.width, dtype=torch.bool, device=self.device)
        return torch.arange(self.width, device=self.device)[None, :] < self._length[:, None]

    def pad(self, rows: Shaped[Tensor, "total *rest"], fill: float = 0.0) -> Shaped[Tensor, "batch width *rest"]:
        """Return the padded view of packed rows, with `fill` in the padding."""
        if self.is_uniform:
            return rows.view(len(self.lengths), self.width, *rows.shape[1:])
        view = rows.new_full((len(self.lengths), self.width, *rows.shape[1:]), fill)
        return view.masked_scatter(self.real.view(*self.real.shape, *[1] * (rows.dim() - 1)), rows)

    @cached_property
    def rows(self) -> Int[Tensor, "batch width"]:
        """Packed row of each place in the padded view; at padding, an index beyond the end of the sentence."""
        return self.offsets[:-1, None] + torch.arange(self.width, device=self.device)

    def rows_at(self, places: Int[Tensor, "some"]) -> Int[Tensor, "some"]:
        """Return the packed rows at these places of the flattened padded view."""
        return places if self.is_uniform else self.rows.flatten().index_select(0, places)

    @cached_property
    def places(self) -> Int[Tensor, "total"]:
        """Place of each packed row in the flattened padded view; computed without making the host wait."""
        return torch.nonzero_static(self.real.flatten(), size=sum(self.lengths))[:, 0]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Groups of sentences of similar length; every sentence is in exactly one group."""
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        members: list[list[int]] = []
        for sentence in order:
            shortest = self.lengths[members[-1][0]] if members else 0
            if members and self.lengths[sentence] <= max(shortest * PADDING_SHARE, shortest + PADDING_TOKENS):
                members[-1].append(sentence)
            else:
                members.append([sentence])
        return tuple(self._group(group) for group in members)

    def _group(self, members: list[int]) -> Group:
        sentences = upload(members, self.device)
        width = self.lengths[members[-1]]
        column = torch.arange(width, device=self.device)
        length = self._length[sentences][:, None]
        rows = self.offsets[sentences][:, None] + torch.minimum(column, length - 1)
        real = None if self.lengths[members[0]] == width else column < length
        return Group(sentences, rows, real)
