"""The forward pass of the packed engine, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunekit.models.answers import Answers
from prunekit.runtime.inputs import Rows, round_up
from prunekit.runtime.kernels.attention import FusedAttention, Plan, attend, attend_from_first
from prunekit.runtime.kernels.linears import ACTIVATION_DTYPE, Dtype, Linear
from prunekit.tokens.families.base import LayerParts
from prunekit.tokens.families.embeddings import EmbedRows
from prunekit.tokens.host import read
from prunekit.tokens.packing import Packing
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import LayerTrace, TokenState, Trace


@dataclass(frozen=True)
class Result:
    """The engine's output for a batch.

    `logits` are float32, on the engine's device: one per class, the vector of an embedder, or [batch, tokens, 2] for
    the first and last token of an answer, or [batch, tokens, classes] for labels of words, with `MASKED_LOGIT` at
    padding. `answers` says how they are read, None where they are per token. On a GPU the logits may still be being
    computed; reading labels or kept tokens waits for the device.
    """

    logits: Float[Tensor, "batch outputs"] | Float[Tensor, "batch tokens outputs"]
    answers: Answers | None
    steps: tuple[_Step, ...]

    @cached_property
    def labels(self) -> list[str] | list[list[str]] | None:
        """The name of each text's best class, or of all its labels; None for values and for logits per token."""
        return None if self.answers is None else self.answers.labels(self.logits)

    @cached_property
    def probabilities(self) -> Float[Tensor, "batch classes"] | None:
        """The probability of each class or label, float32; None for values and for logits per token."""
        return None if self.answers is None else self.answers.probabilities(self.logits)

    @cached_property
    def kept(self) -> list[list[list[int]]]:
        """For each layer and sentence, the positions of the tokens that entered the layer's feed-forward.

        Under `cls_last` the last layer lists only [CLS], whatever the method would have decided there.
        """
        return [
            [position[keep > 0].tolist() for position, keep in zip(step.position, step.keep, strict=True)]
            for step in self.steps
        ]

    @cached_property
    def trace(self) -> Trace:
        """The layers as a `Trace`, the form that `PrunedEncoder` returns, for cost meters and reports."""
        return Trace(layers=[step.to_layer_trace() for step in self.steps])


@dataclass(frozen=True)
class _Step:
    """A record of one layer that is cheap to take; fields as in `LayerTrace`, but `tokens_in` are plain numbers."""

    layer: int
    decided: bool
    tokens_in: tuple[int, ...]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]
    protected: Float[Tensor, "batch tokens"]
    scorer: Scorer | None = None

    def to_layer_trace(self) -> LayerTrace:
        """Copy to the host and add the counts and the scorer's cost."""
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


class CompiledLayer:
    """One encoder layer with its products in the form that a linear backend wants.

    With `first_only`, queries have their own product, so that they can be computed for first tokens only.
    """

    def __init__(self, parts: LayerParts, linear: type[Linear], dtype: Dtype, first_only: bool) -> None:
        kind = ACTIVATION_DTYPE[dtype]
        self.heads = parts.heads
        scale = (parts.query.out_features // parts.heads) ** -0.5
        # the attention scale is folded into the query weights; one product computes queries, keys and values
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
        """Compute the rest of the layer, after attention: output projection, feed-forward and norms, row by row."""
        attended = self._norm(0, self.output(mixed, hidden))
        return self._norm(1, self.down(self.up(attended), attended))

    def warm(self, rows: int) -> None:
        """Compute every product once, for this number of rows, so that the backend compiles it."""
        hidden = torch.zeros(rows, self.norms[0][0].shape[0], dtype=self.norms[0][0].dtype)
        for first in self.first:
            first(hidden)
        self.finish(hidden, hidden)

    def _norm(self, which: int, rows: Tensor) -> Tensor:
        weight, bias, epsilon = self.norms[which]
        return F.layer_norm(rows, weight.shape, weight, bias, epsilon)


class ForwardPass:
    """A batch on its way through the layers.

    Hidden states are packed rows [rows, hidden], followed by a few dummy rows; scores, positions and keep masks are in
    the padded view [batch, tokens].
    """

    def __init__(
        self,
        rows: Rows,
        pruner: TokenPruner | None,
        known: Mapping[int, tuple[int, ...]],
        *,
        embed: EmbedRows,
        dtype: Dtype,
        fused: FusedAttention | None,
        reads: Literal["first", "kept", "all"],
    ) -> None:
        self.whole = self.packing = rows.packing
        self.known = known
        self.steps: list[_Step] = []
        real = self.packing.real
        self.position = torch.arange(self.packing.width, device=real.device).expand_as(real) * real
        positions = self.position.flatten().index_select(0, self.packing.places)
        # dummy rows are embedded like any other token
        types = None if rows.types is None else self._pad_to_rows(rows.types)
        embedded = embed(self._pad_to_rows(rows.ids), types, self._pad_to_rows(positions))
        self.hidden = embedded.to(ACTIVATION_DTYPE[dtype])
        self.start = self.hidden[: self.total]
        self.keep = real.float()
        self.length = self.keep.sum(-1)
        self.protected = protected_tokens(rows, pruner)
        self.scores: Tensor | None = None
        self.fused = fused
        self.plan = Plan(self.packing, len(self.hidden), self.fused)
        # outputs of dropped tokens are stored only if the head may read them after the last layer
        self.reads = reads
        self.output: Tensor | None = None
        if reads == "all" or (reads == "first" and pruner is not None and not pruner.protect_first):
            self.output = torch.zeros_like(self.start)
            self.origin = torch.arange(len(self.start), device=real.device)

    @property
    def total(self) -> int:
        """Number of tokens still in the batch, without dummy rows."""
        return sum(self.packing.lengths)

    def _pad_to_rows(self, numbers: Int[Tensor, "total"]) -> Int[Tensor, "rows"]:
        """Append zeros for the dummy rows: one number per computed row."""
        room = round_up(self.total, len(self.packing.lengths)) - self.total
        return F.pad(numbers, (0, room)) if room else numbers

    def step(self, index: int, layer: CompiledLayer, pruner: TokenPruner | None) -> None:
        """Run one layer, with its decision."""
        if self.total == 0:
            self._record(index, self.packing.lengths, False)
            return
        mixed, hidden = self.attend_and_drop(index, layer.qkv(self.hidden), layer.heads, pruner)
        self.hidden = layer.finish(mixed, hidden) if self.total else hidden

    def attend_and_drop(
        self, index: int, qkv: Float[Tensor, "rows three_hidden"], heads: int, pruner: TokenPruner | None
    ) -> tuple[Float[Tensor, "left hidden"], Float[Tensor, "left hidden"]]:
        """Run what is between a layer's first product and `finish`: attention, the decision, and dropping tokens.

        Returns the attention output and the layer's input for the kept tokens.
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
            self._record(index, lengths, True, keep, pruner.scorer)
            return self._drop(index, keep, mixed, hidden)
        self._record(index, lengths, False)
        return mixed, hidden

    def finish_first_only(self, index: int, layer: CompiledLayer) -> Float[Tensor, "batch 1 hidden"]:
        """Run the last layer for the first token of each sentence, which attends to all tokens of its sentence."""
        keep = torch.zeros_like(self.keep)
        keep[:, 0] = 1
        self._record(index, self.packing.lengths, False, keep)
        batch = len(self.packing.lengths)
        first = F.pad(self.packing.offsets[:-1], (0, round_up(batch, batch) - batch))
        hidden = self.hidden.index_select(0, first)
        query = layer.query(hidden)[:batch]
        mixed = attend_from_first(query, layer.key_value(self.hidden), layer.heads, self.packing, self.fused)
        return layer.finish(F.pad(mixed, (0, 0, 0, len(first) - batch)), hidden)[:batch, None]

    def restore(self) -> Float[Tensor, "batch tokens hidden"]:
        """Return what the head reads: all tokens in the incoming shape, those kept, or the first of each sentence."""
        if self.reads == "kept":
            return self.packing.pad(self.hidden[: self.total])
        if self.output is None:
            return self.hidden.index_select(0, self.packing.offsets[:-1])[:, None]
        self.output[self.origin] = self.hidden[: self.total]
        if self.reads == "first":
            return self.output.index_select(0, self.whole.offsets[:-1])[:, None]
        return self.whole.pad(self.output)

    @property
    def real(self) -> Bool[Tensor, "batch tokens"]:
        """Which tokens of `restore` are no padding."""
        if self.reads == "first":
            return self.whole.real[:, :1]
        return self.packing.real if self.reads == "kept" else self.whole.real

    def _state(self, index: int, needs: frozenset[Any]) -> TokenState:
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.packing.pad(self.hidden[: self.total]).float()
        if "embedded" in needs:
            rows = (self.whole.offsets[:-1, None] + self.position).clamp(max=len(self.start) - 1)
            embedded = self.start[rows].float()
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, index)

    def _drop(
        self, index: int, keep: Float[Tensor, "batch tokens"], mixed: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply a keep decision; return the attention output and the layer's input for the kept tokens."""
        kept, before = keep > 0, self.packing
        counts = self.known.get(index) or read(kept.sum(-1))
        left = sum(counts)
        if left == self.total:
            return mixed, hidden
        # places in the padded view; their number is given, so the host need not wait for the device to count them
        places = torch.nonzero_static(kept.flatten(), size=left, fill_value=0)[:, 0]
        rows = before.rows_at(places)
        if self.output is not None:
            others = torch.nonzero_static((before.real & ~kept).flatten(), size=self.total - left, fill_value=0)
            dropped = before.rows_at(others[:, 0])
            self.output.index_copy_(0, self.origin.index_select(0, dropped), hidden.index_select(0, dropped))
            self.origin = self.origin.index_select(0, rows)
        self.packing = packing = Packing.of(counts, keep.device)

        def repack(view: Tensor) -> Tensor:
            return packing.pad(view.flatten().index_select(0, places))

        self.position, self.protected = repack(self.position), repack(self.protected)
        self.scores = None if self.scores is None else repack(self.scores)
        self.keep = packing.real.float()
        # dummy rows are copies of row 0, so their values are ordinary numbers
        rows = self._pad_to_rows(rows)
        self.plan = Plan(packing, len(rows), self.fused)
        return mixed.index_select(0, rows), hidden.index_select(0, rows)

    def _record(
        self,
        index: int,
        lengths: tuple[int, ...],
        decided: bool,
        keep: Tensor | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        now = self.keep if keep is None else keep
        self.steps.append(_Step(index, decided, lengths, now, self.position, self.protected, scorer))


def protected_tokens(rows: Rows, pruner: TokenPruner | None) -> Float[Tensor, "batch tokens"]:
    """Return 1 for tokens kept whatever their score: those the caller marks, and the pruner's first or last token."""
    packing = rows.packing
    real = packing.real
    protected = torch.zeros_like(real, dtype=torch.float32)
    if rows.protected is not None:
        protected = packing.pad(rows.protected.float())
    if pruner is not None and pruner.protect_first:
        protected = torch.cat([torch.ones_like(protected[:, :1]), protected[:, 1:]], dim=1)
    if pruner is not None and pruner.protect_last:
        column = torch.arange(packing.width, device=real.device)
        protected = torch.where(column == real.sum(-1)[:, None] - 1, 1.0, protected)
    return protected
