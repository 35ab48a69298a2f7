"""What travels through the layers, what one attention call shows, and the trace that a caller hands in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Execution = Literal["dense", "soft", "mask", "drop", "pack"]
Need = Literal["received", "probs", "dropped", "hidden", "embedded", "previous"]


@dataclass(frozen=True)
class TokenState:
    """The tokens of a batch at one layer, padded to the widest sentence that is left.

    `keep` is 1 for a token that is here and 0 for padding and for tokens that are gone; values between
    occur only under execution "soft". `position` is the index in the unpruned sequence, `protected` is 1 for
    tokens that stay whatever their score ([CLS]), `length` the number of tokens before any pruning.
    `layer` is the one that is scored. `hidden` is what entered it and `embedded` what entered the first one; both are
    None unless a scorer asks for them, because gathering or padding them costs a copy.
    `previous` is what the scorer returned at the last layer that decided; it travels with the tokens. None before the
    first such layer, and unless the scorer needs it.
    """

    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]
    protected: Float[Tensor, "batch tokens"]
    length: Float[Tensor, "batch"]
    hidden: Float[Tensor, "batch tokens hidden"] | None = None
    previous: Float[Tensor, "batch tokens"] | None = None
    embedded: Float[Tensor, "batch tokens hidden"] | None = None
    layer: int = 0

    @property
    def alive(self) -> Float[Tensor, "batch tokens"]:
        """1.0 where a token is still here, also when it is only softly kept."""
        return (self.keep > 0).to(torch.float32)

    @property
    def count(self) -> Float[Tensor, "batch"]:
        """How many tokens of each sentence are here."""
        return self.alive.sum(-1)


@dataclass(frozen=True)
class Signals:
    """What one attention call shows to scorers; a field is None when nobody asked for it.

    `received` is the canonical score: for token i the sum over alive queries of the attention that i gets,
    averaged over heads. Over the alive tokens of a sentence its mean is exactly 1.
    `probs` are the probabilities before attention dropout, `dropped` the same after it.
    """

    received: Float[Tensor, "batch tokens"] | None = None
    probs: Float[Tensor, "batch heads queries keys"] | None = None
    dropped: Float[Tensor, "batch heads queries keys"] | None = None


@dataclass(frozen=True)
class LayerTrace:
    """What happened at one layer. Counts are per sentence and include [CLS] and [SEP], never padding.

    `keep`, `protected`, `received` and `scores` are aligned with `position`, and padded with 0. Where nothing was
    decided `keep` only repeats who was alive. `received` is the canonical score, None unless somebody asked for it;
    `scores` are those of the trace's own scorer, or else of the decision that was taken. `scorer_macs` is what the
    method's scorer computed beside the layer.
    """

    layer: int
    decided: bool
    tokens_in: Float[Tensor, "batch"]
    tokens_out: Float[Tensor, "batch"]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]
    protected: Float[Tensor, "batch tokens"]
    received: Float[Tensor, "batch tokens"] | None = None
    scores: Float[Tensor, "batch tokens"] | None = None
    scorer_macs: Float[Tensor, "batch"] | None = None

    def keep_of_all(self, width: int) -> Float[Tensor, "batch width"]:
        """`keep` at the places of the unpruned sentences, padded to `width`; 0 for who is no longer here."""
        return self.keep.new_zeros(len(self.keep), width).scatter_add(1, self.position, self.keep)


@dataclass
class Trace:
    """Handed in by the caller of a model, filled layer by layer; one `LayerTrace` per layer.

    `score_layers` asks for scores of layers that need not decide anything: those of `scorer`, or the canonical ones.
    """

    score_layers: frozenset[int] = frozenset()
    scorer: Callable[[Signals, TokenState], Tensor] | None = None
    layers: list[LayerTrace] = field(default_factory=list)

    @classmethod
    def scoring(cls, layers: Iterable[int], scorer: Callable[[Signals, TokenState], Tensor] | None = None) -> Trace:
        """A trace that also records the scores of `layers` (0-based)."""
        return cls(score_layers=frozenset(layers), scorer=scorer)

    @property
    def tokens_in(self) -> Float[Tensor, "layers batch"]:
        """Tokens that entered the attention of each layer."""
        return torch.stack([entry.tokens_in for entry in self.layers])

    @property
    def tokens_out(self) -> Float[Tensor, "layers batch"]:
        """Tokens that entered the feed-forward half of each layer."""
        return torch.stack([entry.tokens_out for entry in self.layers])

    @property
    def scorer_macs(self) -> Float[Tensor, "batch"]:
        """Multiply-accumulates that the scorer spent on each sentence, beside the layers' own."""
        spent = [entry.scorer_macs for entry in self.layers if entry.scorer_macs is not None]
        none = torch.zeros_like(self.layers[0].tokens_in, dtype=torch.float64)
        return torch.stack(spent).sum(0) if spent else none
