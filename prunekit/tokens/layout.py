"""The layout of a batch's tokens between layers: padded, masked, dropped or packed."""

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
    """Encoder output for a decoder, padded to the longest remaining sentence.

    `keep` is 0 for padding and dropped tokens, and between 0 and 1 under execution "soft".
    """

    hidden: Float[Tensor, "batch tokens hidden"]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]


class TokenLayout:
    """Tokens of one batch between layers, in the layout of one execution.

    `hidden` is [batch, tokens, hidden], or [1, total, hidden] under "pack". Everything else is in the padded view,
    which narrows to the longest remaining sentence where dropped tokens are removed.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        protected: Float[Tensor, "batch tokens"],
        execution: str,
        *,
        removes_tokens: bool,
    ) -> None:
        self.execution = execution
        self.removes_tokens = removes_tokens  # dropped tokens are removed from the padded view
        batch, tokens, _ = hidden.shape
        self.all_visible = mask is None  # no key has to be hidden
        self.real = hidden.new_ones((batch, tokens), dtype=torch.float32) if mask is None else mask.float()
        self.keep = self.real
        self.length = self.real.sum(-1)
        self.protected = protected
        self.position = torch.arange(tokens, device=hidden.device).expand(batch, tokens)
        self.hidden = hidden
        self.start = hidden
        self.bias: Tensor | None = None
        self.scores: Tensor | None = None  # of the last decision, if the scorer needs them
        self.packing: Packing | None = None
        self.output = torch.zeros_like(hidden)
        self.dropped: Tensor | None = None  # by the last decision, where nothing is removed
        if execution == "pack":
            self._pack(hidden, self.real)

    def _pack(self, view: Tensor, keep: Tensor) -> None:
        """Pack a padded view, and narrow everything else to the longest remaining sentence."""
        kept = keep > 0
        self.packing = Packing.of(kept.sum(-1).tolist(), view.device)
        self.hidden = view[kept][None]
        self.position = self.packing.pad(self.position[kept])
        self.protected = self.packing.pad(self.protected[kept])
        self.keep = self.packing.real.float()

    def call(self, needs: frozenset[Need], pruner: TokenPruner | None, relative: Tensor | None) -> AttentionCall:
        """Return the arguments of this layer's attention call."""
        if self.packing is not None:
            return AttentionCall(needs=needs, relative=relative, packing=self.packing)
        hides_dropped = pruner is None or pruner.hide_gone or self.execution != "soft"
        keys = None if self.all_visible else (self.keep if hides_dropped else self.real) > 0
        queries = None if self.all_visible else (self.keep > 0).float() if self.bias is None else self.keep
        return AttentionCall(needs=needs, keys=keys, queries=queries, key_bias=self.bias, relative=relative)

    def state(self, layer: int, needs: set[Need]) -> TokenState:
        """Return the tokens as scorer and policy see them, padded."""
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.hidden if self.packing is None else self.packing.pad(self.hidden[0])
        if "embedded" in needs:
            embedded = self.start.gather(1, self.position[..., None].expand(-1, -1, self.start.shape[-1]))
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, layer)

    def apply_keep(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Apply a keep decision: store the outputs of dropped tokens and return the attention output of the rest.

        The output of a token dropped here is the input of this layer. Without removal all rows are returned.
        """
        dropped = (self.keep > 0) & (keep == 0)
        if self.packing is None and not self.removes_tokens:
            self.dropped = dropped
            self.store_dropped()
            self.keep = keep
            self.all_visible = False
            return attended
        kept = keep > 0
        if self.packing is None:
            self._store_output(self.hidden[dropped], dropped)
            return self._drop(keep, attended)
        dropped_rows = dropped[self.packing.real]
        self._store_output(self.hidden[0, dropped_rows], dropped)
        rows = attended[0, ~dropped_rows]
        packing = Packing.of(kept.sum(-1).tolist(), keep.device)
        self.position = packing.pad(self.position[kept])
        self.protected = packing.pad(self.protected[kept])
        self.scores = None if self.scores is None else packing.pad(self.scores[kept])
        self.packing = packing
        self.keep = self.packing.real.float()
        return rows[None]

    def store_dropped(self) -> None:
        """Store the current state of the tokens that the last decision dropped as their output; not where removed."""
        if self.dropped is not None:
            self.output = torch.where(self.dropped[..., None], self.hidden.to(self.output.dtype), self.output)

    def _drop(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Gather kept tokens to the left, in order, and cut the width to the longest remaining sentence."""
        dropped = keep == 0
        width = int((~dropped).sum(-1).max())
        order = dropped.long().sort(dim=-1, stable=True).indices[:, :width]
        self.keep = keep.gather(1, order)
        # as under "pack": padding has position 0, however wide the batch is
        self.position = self.position.gather(1, order) * (self.keep > 0)
        self.protected = self.protected.gather(1, order)
        self.scores = None if self.scores is None else self.scores.gather(1, order)
        self.all_visible = False
        return attended.gather(1, order[..., None].expand(-1, -1, attended.shape[-1]))

    def _store_output(self, rows: Float[Tensor, "rows hidden"], which: Bool[Tensor, "batch tokens"]) -> None:
        sentence = torch.arange(which.shape[0], device=which.device)[:, None].expand_as(which)[which]
        self.output = self.output.index_put((sentence, self.position[which]), rows.to(self.output.dtype))

    def soften(self, form: SoftForm) -> None:
        """Apply fractional keep in training: scale the layer's output, or bias the attention logits of later layers."""
        if form == "scale":
            self.hidden = self.hidden * self.keep[..., None].to(self.hidden.dtype)
            return
        alive = self.keep > 0
        self.bias = torch.where(alive, self.keep, 1.0).log()

    def skip_layer(self, index: int, trace: Trace | None) -> None:
        """Record a layer that no token of the batch enters, which happens only where [CLS] is not protected."""
        if trace is not None:
            none = self.keep.sum(-1)
            trace.layers.append(
                LayerTrace(
                    index, False, none, none, self.keep, self.position, self.keep, received=self.keep, scores=self.keep
                )
            )

    def survivors(self) -> Survivors:
        """Return the tokens still kept after the last layer, padded."""
        hidden = self.hidden if self.packing is None else self.packing.pad(self.hidden[0])
        return Survivors(hidden, self.keep, self.position)

    def restore(self) -> Float[Tensor, "batch tokens hidden"]:
        """Return all tokens in the incoming shape: the last layer's output if kept, else the output stored earlier."""
        kept = self.keep > 0
        if self.packing is not None or self.removes_tokens:
            rows = self.hidden[0] if self.packing is not None else self.hidden[kept]
            self._store_output(rows, kept)
            return self.output
        if self.all_visible:
            return self.hidden
        return torch.where(kept[..., None], self.hidden.to(self.output.dtype), self.output)
