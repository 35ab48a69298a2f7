"""Where the tokens of a batch are while they travel: padded, masked, dropped or packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.packing import Packing
from prunekit.tokens.pruner import SoftForm, TokenPruner
from prunekit.tokens.state import LayerTrace, Need, TokenState, Trace


@dataclass(frozen=True)
class Survivors:
    """The encoder's tokens as a decoder gets them, padded to the widest sentence that is left; `keep` is 0 at padding
    and at tokens that are gone, and between 0 and 1 under execution "soft".
    """

    hidden: Float[Tensor, "batch tokens hidden"]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]


class TokenLayout:
    """One batch on its way through the layers: the layout of its tokens under one execution.

    `hidden` is [batch, tokens, hidden], or [1, total, hidden] under "pack"; the rest is in the padded view, which
    narrows to the longest sentence that is left where gone tokens are removed.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        protected: Float[Tensor, "batch tokens"],
        execution: str,
        *,
        removes: bool,
    ) -> None:
        self.execution = execution
        self.removes = removes  # gone tokens leave the padded view
        batch, tokens, _ = hidden.shape
        self.everyone = mask is None  # no key has to be hidden
        self.real = hidden.new_ones((batch, tokens), dtype=torch.float32) if mask is None else mask.float()
        self.keep = self.real
        self.length = self.real.sum(-1)
        self.protected = protected
        self.position = torch.arange(tokens, device=hidden.device).expand(batch, tokens)
        self.hidden = hidden
        self.start = hidden
        self.bias: Tensor | None = None
        self.scores: Tensor | None = None  # of the last decision, where a scorer looks back
        self.packing: Packing | None = None
        self.output = torch.zeros_like(hidden)
        if execution == "pack":
            self._pack(hidden, self.real)

    def _pack(self, view: Tensor, keep: Tensor) -> None:
        """Packs a padded view; the padded bookkeeping shrinks to the longest sentence that is left."""
        chosen = keep > 0
        self.packing = Packing.of(chosen.sum(-1).tolist(), view.device)
        self.hidden = view[chosen][None]
        self.position = self.packing.padded(self.position[chosen])
        self.protected = self.packing.padded(self.protected[chosen])
        self.keep = self.packing.real.float()

    def call(self, needs: frozenset[Need], pruner: TokenPruner | None, relative: Tensor | None) -> AttentionCall:
        """Return what attention needs to know about the tokens at this layer."""
        if self.packing is not None:
            return AttentionCall(needs=needs, relative=relative, packing=self.packing)
        hide = pruner is None or pruner.hide_gone or self.execution != "soft"
        keys = None if self.everyone else (self.keep if hide else self.real) > 0
        votes = None if self.everyone else (self.keep > 0).float() if self.bias is None else self.keep
        return AttentionCall(needs=needs, keys=keys, queries=votes, key_bias=self.bias, relative=relative)

    def state(self, layer: int, needs: set[Need]) -> TokenState:
        """Return the tokens as scorer and policy see them, padded."""
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.hidden if self.packing is None else self.packing.padded(self.hidden[0])
        if "embedded" in needs:
            embedded = self.start.gather(1, self.position[..., None].expand(-1, -1, self.start.shape[-1]))
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, layer)

    def leave(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Takes the decision: remembers who leaves, and returns the attended rows of who goes on."""
        leaving = (self.keep > 0) & (keep == 0)
        if self.packing is None and not self.removes:
            self.output = torch.where(leaving[..., None], self.hidden.to(self.output.dtype), self.output)
            self.keep = keep
            self.everyone = False
            return attended
        protected_count = keep > 0
        if self.packing is None:
            self._remember(self.hidden[leaving], leaving)
            return self._drop(keep, attended)
        gone = leaving[self.packing.real]
        self._remember(self.hidden[0, gone], leaving)
        rows = attended[0, ~gone]
        packing = Packing.of(protected_count.sum(-1).tolist(), keep.device)
        self.position = packing.padded(self.position[protected_count])
        self.protected = packing.padded(self.protected[protected_count])
        self.scores = None if self.scores is None else packing.padded(self.scores[protected_count])
        self.packing = packing
        self.keep = self.packing.real.float()
        return rows[None]

    def _drop(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Gathers survivors to the left, in their order, and cuts the width to the longest sentence that is left."""
        gone = keep == 0
        width = int((~gone).sum(-1).max())
        order = gone.long().sort(dim=-1, stable=True).indices[:, :width]
        self.keep = keep.gather(1, order)
        # as under "pack": a column behind a sentence's last token stands nowhere, however wide its batch is
        self.position = self.position.gather(1, order) * (self.keep > 0)
        self.protected = self.protected.gather(1, order)
        self.scores = None if self.scores is None else self.scores.gather(1, order)
        self.everyone = False
        return attended.gather(1, order[..., None].expand(-1, -1, attended.shape[-1]))

    def _remember(self, rows: Float[Tensor, "rows hidden"], which: Bool[Tensor, "batch tokens"]) -> None:
        sentence = torch.arange(which.shape[0], device=which.device)[:, None].expand_as(which)[which]
        self.output = self.output.index_put((sentence, self.position[which]), rows.to(self.output.dtype))

    def soften(self, form: SoftForm) -> None:
        """What a fractional keep does to training: scales the layer's output, or biases later attention."""
        if form == "scale":
            self.hidden = self.hidden * self.keep[..., None].to(self.hidden.dtype)
            return
        alive = self.keep > 0
        self.bias = torch.where(alive, self.keep, 1.0).log()

    def pass_by(self, index: int, trace: Trace | None) -> None:
        """A layer that no token of the batch enters; only where [CLS] is not protected."""
        if trace is not None:
            none = self.keep.sum(-1)
            trace.layers.append(
                LayerTrace(
                    index, False, none, none, self.keep, self.position, self.keep, received=self.keep, scores=self.keep
                )
            )

    def survivors(self) -> Survivors:
        """Who is left behind the last layer, in the padded view."""
        hidden = self.hidden if self.packing is None else self.packing.padded(self.hidden[0])
        return Survivors(hidden, self.keep, self.position)

    def restore(self) -> Float[Tensor, "batch tokens hidden"]:
        """All tokens in the incoming shape: survivors from the last layer, the others from where they left."""
        here = self.keep > 0
        if self.packing is not None or self.removes:
            rows = self.hidden[0] if self.packing is not None else self.hidden[here]
            self._remember(rows, here)
            return self.output
        if self.everyone:
            return self.hidden
        return torch.where(here[..., None], self.hidden.to(self.output.dtype), self.output)
