"""The forward pass of the packed engine, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prunekit.runtime.inputs import Rows, rounded
from prunekit.runtime.kernels.attention import Fused, Plan, attend, attend_from_first
from prunekit.runtime.kernels.linears import FLOWING, Dtype, Linear
from prunekit.tokens.families.base import LayerParts
from prunekit.tokens.families.embeddings import EmbedRows
from prunekit.tokens.host import read
from prunekit.tokens.packing import Packing
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import LayerTrace, TokenState, Trace


@dataclass(frozen=True)
class Result:
    """What the engine says about a batch.

    `logits` are float32, on the engine's device: per class, or [batch, tokens, 2] of the first and last token of an
    answer, where padding has none. `names` are those of the classes, None for regression and answers.
    On a GPU the device may still be computing them; whoever looks at labels or kept tokens waits for it.
    """

    logits: Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens 2"]
    names: Mapping[int, str] | None
    steps: tuple[_Step, ...]

    @cached_property
    def labels(self) -> list[str] | None:
        """The names of the best classes; None for regression and answers."""
        return None if self.names is None else [self.names[best] for best in self.logits.argmax(-1).tolist()]

    @cached_property
    def kept(self) -> list[list[list[int]]]:
        """For each layer and sentence, the places in the sentence of the tokens that entered its feed-forward half.

        Under `cls_last` these are of the last layer [CLS] alone, whatever the method would have decided there.
        """
        return [
            [place[keep > 0].tolist() for place, keep in zip(step.position, step.keep, strict=True)]
            for step in self.steps
        ]

    @cached_property
    def trace(self) -> Trace:
        """The same as the traversal's trace, for cost meters and reports."""
        return Trace(layers=[step.entry() for step in self.steps])


@dataclass(frozen=True)
class _Step:
    """What happened at one layer, as cheaply as it can be remembered; all but counts as in `LayerTrace`."""

    layer: int
    decided: bool
    tokens_in: tuple[int, ...]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]
    protected: Float[Tensor, "batch tokens"]
    scorer: Scorer | None = None

    def entry(self) -> LayerTrace:
        keep, tokens_in = self.keep.cpu(), torch.tensor(self.tokens_in, dtype=torch.float32)
        return LayerTrace(
            self.layer,
            self.decided,
            tokens_in,
            (keep > 0).float().sum(-1),
            keep,
            self.position.cpu(),
            self.protected.cpu(),
            scorer_macs=None if self.scorer is None else self.scorer.macs(tokens_in),
        )


class _Layer:
    """One layer, compiled."""

    def __init__(self, parts: LayerParts, linear: type[Linear], dtype: Dtype, first_only: bool) -> None:
        kind = FLOWING[dtype]
        self.heads = parts.heads
        scale = (parts.query.out_features // parts.heads) ** -0.5
        # attention's scale goes into the queries' weights; one product makes queries, keys and values
        query = parts.query.weight * scale, parts.query.bias * scale
        keys: tuple[list[Tensor], list[Tensor]] = (
            [parts.key.weight, parts.value.weight],
            [parts.key.bias, parts.value.bias],
        )
        if first_only:
            self.query = linear(query[0], query[1], dtype)
            self.key_value = linear(torch.cat(keys[0]), torch.cat(keys[1]), dtype)
            self.first = [self.query, self.key_value]
        else:
            self.qkv = linear(torch.cat([query[0], *keys[0]]), torch.cat([query[1], *keys[1]]), dtype)
            self.first = [self.qkv]
        self.output = linear(parts.output.weight, parts.output.bias, dtype)
        self.up = linear(parts.up.weight, parts.up.bias, dtype, parts.activation)
        self.down = linear(parts.down.weight, parts.down.bias, dtype)
        self.norms = [
            (norm.weight.to(kind), norm.bias.to(kind), norm.eps) for norm in (parts.attention_norm, parts.norm)
        ]

    def finish(self, mixed: Float[Tensor, "rows hidden"], hidden: Float[Tensor, "rows hidden"]) -> Tensor:
        """What is left of a layer behind its attention, row by row."""
        attended = self._norm(0, self.output(mixed, hidden))
        return self._norm(1, self.down(self.up(attended), attended))

    def warm(self, rows: int) -> None:
        """Computes every product once, of so many rows."""
        hidden = torch.zeros(rows, self.norms[0][0].shape[0], dtype=self.norms[0][0].dtype)
        for first in self.first:
            first(hidden)
        self.finish(hidden, hidden)

    def _norm(self, which: int, rows: Tensor) -> Tensor:
        weight, bias, epsilon = self.norms[which]
        return F.layer_norm(rows, weight.shape, weight, bias, epsilon)


class ForwardPass:
    """A batch on its way: rows [rows, hidden] with a few dummies behind them, bookkeeping in the padded view."""

    def __init__(
        self,
        rows: Rows,
        pruner: TokenPruner | None,
        known: Mapping[int, tuple[int, ...]],
        *,
        embed: EmbedRows,
        dtype: Dtype,
        fused: Fused | None,
        first_only: bool,
    ) -> None:
        self.whole = self.packing = rows.packing
        self.known = known
        self.steps: list[_Step] = []
        real = self.packing.real
        self.position = torch.arange(self.packing.width, device=real.device).expand_as(real) * real
        places = self.position.flatten().index_select(0, self.packing.places)
        # dummy rows are tokens like any other
        types = None if rows.types is None else self._filled_up(rows.types)
        embedded = embed(self._filled_up(rows.ids), types, self._filled_up(places))
        self.hidden = embedded.to(FLOWING[dtype])
        self.start = self.hidden[: self.total]
        self.keep = real.float()
        self.length = self.keep.sum(-1)
        self.protected = _stays(rows, pruner)
        self.scores: Tensor | None = None
        self.fused = fused
        self.plan = Plan(self.packing, len(self.hidden), self.fused)
        # who leaves has to be remembered where somebody may ask for them behind the last layer
        self.read_alone = first_only
        self.output: Tensor | None = None
        if not self.read_alone or (pruner is not None and not pruner.protect_first):
            self.output = torch.zeros_like(self.start)
            self.origin = torch.arange(len(self.start), device=real.device)

    @property
    def total(self) -> int:
        """Number of tokens that are still computed, without dummy rows."""
        return sum(self.packing.lengths)

    def _filled_up(self, numbers: Int[Tensor, "total"]) -> Int[Tensor, "rows"]:
        """One number per row that is computed: zeros behind those of the rows that there are."""
        room = rounded(self.total, len(self.packing.lengths)) - self.total
        return F.pad(numbers, (0, room)) if room else numbers

    def step(self, index: int, layer: _Layer, pruner: TokenPruner | None) -> None:
        """One layer."""
        if self.total == 0:
            self._note(index, self.packing.lengths, False)
            return
        mixed, hidden = self.between(index, layer.qkv(self.hidden), layer.heads, pruner)
        self.hidden = layer.finish(mixed, hidden) if self.total else hidden

    def between(
        self, index: int, qkv: Float[Tensor, "rows three_hidden"], heads: int, pruner: TokenPruner | None
    ) -> tuple[Float[Tensor, "left hidden"], Float[Tensor, "left hidden"]]:
        """What a layer does between its first product and the rest: attention, the decision, and removal.

        Returns attention's output and the layer's input, of those who stay.
        """
        decides = pruner is not None and index in pruner.layers
        lengths = self.packing.lengths
        needs = pruner.scorer.needs if pruner is not None and decides else frozenset()
        mixed, signals = attend(qkv, heads, self.plan, needs)
        hidden = self.hidden
        if pruner is not None and decides:
            state = self._state(index, needs)
            scores, keep = pruner.decide(index, signals, state, soft=False)
            self.scores = scores if "previous" in needs else None
            self._note(index, lengths, True, keep, pruner.scorer)
            return self._leave(index, keep, mixed, hidden)
        self._note(index, lengths, False)
        return mixed, hidden

    def first_only(self, index: int, layer: _Layer) -> Float[Tensor, "batch 1 hidden"]:
        """The last layer for the first token of each sentence, which reads all of them."""
        keep = torch.zeros_like(self.keep)
        keep[:, 0] = 1
        self._note(index, self.packing.lengths, False, keep)
        batch = len(self.packing.lengths)
        first = F.pad(self.packing.offsets[:-1], (0, rounded(batch, batch) - batch))
        hidden = self.hidden.index_select(0, first)
        query = layer.query(hidden)[:batch]
        mixed = attend_from_first(query, layer.key_value(self.hidden), layer.heads, self.packing, self.fused)
        return layer.finish(F.pad(mixed, (0, 0, 0, len(first) - batch)), hidden)[:batch, None]

    def restored(self) -> Float[Tensor, "batch tokens hidden"]:
        """What the head reads: all tokens in the incoming shape, or the first of each sentence."""
        if self.output is None:
            return self.hidden.index_select(0, self.packing.offsets[:-1])[:, None]
        self.output[self.origin] = self.hidden[: self.total]
        if self.read_alone:
            return self.output.index_select(0, self.whole.offsets[:-1])[:, None]
        return self.whole.pad(self.output)

    def _state(self, index: int, needs: frozenset[Any]) -> TokenState:
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.packing.pad(self.hidden[: self.total]).float()
        if "embedded" in needs:
            rows = (self.whole.offsets[:-1, None] + self.position).clamp(max=len(self.start) - 1)
            embedded = self.start[rows].float()
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, index)

    def _leave(
        self, index: int, keep: Float[Tensor, "batch tokens"], mixed: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the decision; returns what is left of attention's output and of the layer's input."""
        protected_count, before = keep > 0, self.packing
        counts = self.known.get(index) or read(protected_count.sum(-1))
        left = sum(counts)
        if left == self.total:
            return mixed, hidden
        # places in the padded view: how many there are is known, so nobody waits for the device to count them
        places = torch.nonzero_static(protected_count.flatten(), size=left, fill_value=0)[:, 0]
        chosen = before.rows_at(places)
        if self.output is not None:
            others = torch.nonzero_static(
                (before.real & ~protected_count).flatten(), size=self.total - left, fill_value=0
            )
            gone = before.rows_at(others[:, 0])
            self.output.index_copy_(0, self.origin.index_select(0, gone), hidden.index_select(0, gone))
            self.origin = self.origin.index_select(0, chosen)
        self.packing = packing = Packing.of(counts, keep.device)

        def moved(view: Tensor) -> Tensor:
            return packing.pad(view.flatten().index_select(0, places))

        self.position, self.protected = moved(self.position), moved(self.protected)
        self.scores = None if self.scores is None else moved(self.scores)
        self.keep = packing.real.float()
        # dummy rows are copies of the first: no number in them is out of the ordinary
        chosen = self._filled_up(chosen)
        self.plan = Plan(packing, len(chosen), self.fused)
        return mixed.index_select(0, chosen), hidden.index_select(0, chosen)

    def _note(
        self,
        index: int,
        lengths: tuple[int, ...],
        decided: bool,
        keep: Tensor | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        now = self.keep if keep is None else keep
        self.steps.append(_Step(index, decided, lengths, now, self.position, self.protected, scorer))


def _stays(rows: Rows, pruner: TokenPruner | None) -> Float[Tensor, "batch tokens"]:
    """1 where a token stays whatever its score: marked by the caller, or what the head reads."""
    packing = rows.packing
    real = packing.real
    stays = torch.zeros_like(real, dtype=torch.float32)
    if rows.protected is not None:
        stays = packing.pad(rows.protected.float())
    if pruner is not None and pruner.protect_first:
        stays = torch.cat([torch.ones_like(stays[:, :1]), stays[:, 1:]], dim=1)
    if pruner is not None and pruner.protect_last:
        column = torch.arange(packing.width, device=real.device)
        stays = torch.where(column == real.sum(-1)[:, None] - 1, 1.0, stays)
    return stays
