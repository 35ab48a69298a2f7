"""Scorers: modules that turn the signals of one attention call into importance, higher = more important."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.attention import attention_received
from prunekit.tokens.state import Need, Signals, TokenState


class Scorer(nn.Module):
    """A scorer: `needs` names the signals it reads, calling it returns float32 importance per token.

    Its values for dropped tokens are ignored.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received"})
    no_graph: ClassVar[str] = ""  # why it cannot be exported to ONNX, as the words after its name; empty where it can
    no_removal: ClassVar[str] = ""  # why tokens cannot be removed where it decides, in the same form
    padded_to: int | None = None  # the width to which texts are padded in evaluation, where scores depend on it

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `__init__` that rebuild this scorer, as JSON values."""
        return {}

    def pad_to(self, tokens: int) -> None:
        """Take the width to which the run pads texts in evaluation; ignored where padding changes no score."""

    def macs(self, tokens: Float[Tensor, "*sentences"]) -> Float[Tensor, "*sentences"]:
        """Return the multiply-accumulates to score this many tokens, on top of the layer's own; float64, default 0."""
        return torch.zeros_like(tokens, dtype=torch.float64)

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return the importance of each token."""
        raise NotImplementedError(f"{type(self).__name__} is a scorer without forward(signals, state); define it.")


class AttentionReceived(Scorer):
    """Scorer for the canonical score: attention received from alive queries, 1 = as much as under uniform attention."""

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return the column sums that the attention call has already computed."""
        assert signals.received is not None
        return signals.received


class AccumulatedReceived(Scorer):
    """SpAtten's cumulative importance: a token's canonical score, summed over the decision layers so far.

    Source: SpAtten, arXiv:2012.09852, cascade token pruning; attention from tokens dropped since still counts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received", "previous"})

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Add this layer's score to those of earlier decision layers."""
        assert signals.received is not None
        return signals.received if state.previous is None else state.previous + signals.received


class ReceivedAfterDropout(Scorer):
    """Scorer that returns the canonical score of the attention after dropout; differs from it in training only.

    Source: LTP's reference code, which scores the output of the dropout (ltp.md, quirk 17).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"dropped"})

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return column sums over alive queries."""
        assert signals.dropped is not None
        return attention_received(signals.dropped, state.alive)


class RandomOrder(Scorer):
    """Control: a random order of the tokens, independent of their content.

    A hash of seed, position and sentence length, so that the rest of the batch, padding and execution change nothing.
    All layers share one order: its first K tokens are as random a subset at each layer as a new draw among the kept
    tokens.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    no_graph: ClassVar[str] = (
        "orders tokens by a 64-bit hash, which ONNX has no operators for; "
        "it is a control: export the method that it controls"
    )

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def arguments(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return scores that are uniform in [0, 1)."""
        length = state.length.long()[:, None].expand_as(state.position)
        mixed = _mix(_mix(_mix(torch.full_like(state.position, self.seed)) ^ length) ^ state.position)
        return (mixed >> 8).float() / 2**24  # as many bits as float32 holds


def _mix(number: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """Hash 32-bit numbers by a permutation; every product fits in 63 bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x45D9F3B), (16, 1)):
        number = ((number ^ (number >> shift)) * factor + 0x9E3779B9) & 0xFFFFFFFF
    return number


class EarlierFirst(Scorer):
    """Control: earlier tokens matter more, which truncates the text."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return the negative position in the unpruned sentence."""
        return -state.position.float()


class ReferenceReceived(Scorer):
    """Attention received as in ToP's reference code: after dropout, from padding and dropped queries too.

    Only for comparisons with published checkpoints: it depends on the amount of padding, so `drop` and `pack`
    do not equal `mask` under it. In evaluation the reference pads every text to `padded_to` tokens; None takes them as
    they come.  Source: Moonlit ToP/models/modeling_bert.py:499-526.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"dropped"})
    no_removal: ClassVar[str] = "lets padding and dropped tokens vote, so none of them can be removed"
    no_graph: ClassVar[str] = f"{no_removal}; train without method.compat, or import with profile=house"

    def __init__(self, padded_to: int | None = None) -> None:
        super().__init__()
        self.padded_to = padded_to

    def arguments(self) -> dict[str, Any]:
        """Return the width to which texts are padded."""
        return {"padded_to": self.padded_to}

    def pad_to(self, tokens: int) -> None:
        """Pad every text to this width in evaluation."""
        self.padded_to = tokens

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return column sums over every row of the padded sequence."""
        assert signals.dropped is not None
        return attention_received(signals.dropped, None)
