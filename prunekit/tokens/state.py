"""The token state between layers, the signals of an attention call, and the trace that a caller passes in."""

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
    """Tokens of a batch at one layer, padded to the longest remaining sentence.

    `keep` is 1 for kept tokens and 0 for padding and dropped tokens; values in between occur only under execution
    "soft". `position` is the index in the unpruned sequence, `protected` is 1 for tokens that are kept whatever their
    score ([CLS]), `length` is the number of tokens before any pruning.
    `layer` is the layer being scored. `hidden` is its input and `embedded` the input of the first layer; both are None
    unless a scorer needs them, because gathering or padding them costs a copy.
    `previous` holds the scores of the last decision layer, aligned with the remaining tokens. It is None before the
    first decision layer, and unless the scorer needs it.
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
        """1.0 for tokens with `keep` above 0, softly kept ones included, else 0.0."""
        return (self.keep > 0).to(torch.float32)

    @property
    def count(self) -> Float[Tensor, "batch"]:
        """Number of alive tokens per sentence."""
        return self.alive.sum(-1)


@dataclass(frozen=True)
class Signals:
    """Outputs of one attention call that scorers read; a field is None unless a scorer needs it.

    `received` is the canonical score: for token i the attention it receives, summed over alive queries and averaged
    over heads. Its mean over the alive tokens of a sentence is exactly 1.
    `probs` are the attention probabilities before dropout, `dropped` the same after dropout.
    """

    received: Float[Tensor, "batch tokens"] | None = None
    probs: Float[Tensor, "batch heads queries keys"] | None = None
    dropped: Float[Tensor, "batch heads queries keys"] | None = None


@dataclass(frozen=True)
class LayerTrace:
    """Token counts, keep and scores of one layer. Counts are per sentence and include [CLS] and [SEP], never padding.

    `keep`, `protected`, `received` and `scores` are aligned with `position` and padded with 0. At layers without a
    decision `keep` is that of the layer's input. `received` is the canonical score, None unless it was needed.
    `scores` are those of the trace's own scorer if it has one, else of the decision. `scorer_macs` are the
    multiply-accumulates of the method's scorer, on top of the layer's own.
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
        """Return `keep` by position in the unpruned sentence, padded to `width`; 0 for removed tokens."""
        return self.keep.new_zeros(len(self.keep), width).scatter_add(1, self.position, self.keep)


@dataclass
class Trace:
    """Record of one forward pass: the caller passes it in, and the encoder appends one `LayerTrace` per layer.

    `score_layers` are layers whose scores are recorded whether or not they decide: those of `scorer`, or the canonical
    ones if that is None.
    """

    score_layers: frozenset[int] = frozenset()
    scorer: Callable[[Signals, TokenState], Tensor] | None = None
    layers: list[LayerTrace] = field(default_factory=list)

    @classmethod
    def scoring(cls, layers: Iterable[int], scorer: Callable[[Signals, TokenState], Tensor] | None = None) -> Trace:
        """Return a trace that also records the scores of `layers` (0-based)."""
        return cls(score_layers=frozenset(layers), scorer=scorer)

    @property
    def tokens_in(self) -> Float[Tensor, "layers batch"]:
        """Number of tokens that entered the attention of each layer."""
        return torch.stack([entry.tokens_in for entry in self.layers])

    @property
    def tokens_out(self) -> Float[Tensor, "layers batch"]:
        """Number of tokens that entered the feed-forward half of each layer."""
        return torch.stack([entry.tokens_out for entry in self.layers])

    @property
    def scorer_macs(self) -> Float[Tensor, "batch"]:
        """Multiply-accumulates of the scorer per sentence, on top of the layers' own."""
        spent = [entry.scorer_macs for entry in self.layers if entry.scorer_macs is not None]
        none = torch.zeros_like(self.layers[0].tokens_in, dtype=torch.float64)
        return torch.stack(spent).sum(0) if spent else none
