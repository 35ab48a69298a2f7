"""Which tokens matter: scorers turn the signals of one attention call into importance, higher = more important."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.attention import received
from prunekit.tokens.state import Need, Signals, TokenState


class Scorer(nn.Module):
    """A scorer: `needs` names the signals it reads, calling it returns float32 importance per token.

    Values of tokens that are gone are never looked at.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received"})
    no_graph: ClassVar[str] = ""  # why it cannot be exported to ONNX, as the words after its name; empty where it can

    def arguments(self) -> dict[str, Any]:
        """What `__init__` needs to make this scorer again; plain JSON."""
        return {}

    def macs(self, tokens: Float[Tensor, "*sentences"]) -> Float[Tensor, "*sentences"]:
        """Multiply-accumulates beside the layer's own, to score so many tokens; float64, 0 for who only looks on."""
        return torch.zeros_like(tokens, dtype=torch.float64)

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Importance of each token."""
        raise NotImplementedError(f"{type(self).__name__} is a scorer without forward(signals, state); define it.")


class AttentionReceived(Scorer):
    """The canonical score: attention received from alive queries, 1 = as much as uniform attention."""

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """The column sums that the attention call already made."""
        assert signals.received is not None
        return signals.received


class AccumulatedReceived(Scorer):
    """SpAtten's cumulative importance: the canonical scores of a token, summed over the layers that decided so far.

    Source: SpAtten, arXiv:2012.09852, cascade token pruning; votes of tokens that are gone stay counted.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received", "previous"})

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """This layer's score on top of those before."""
        assert signals.received is not None
        return signals.received if state.previous is None else state.previous + signals.received


class ReceivedAfterDropout(Scorer):
    """The canonical score, but of the probabilities that attention dropout left; differs in training alone.

    Source: LTP's reference code, which scores what the dropout returns (ltp.md, quirk 17).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"dropped"})

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Column sums over alive queries."""
        assert signals.dropped is not None
        return received(signals.dropped, state.alive)


class RandomOrder(Scorer):
    """A control: an order of the tokens that knows nothing of them.

    A hash of seed, position and sentence length, so that batch mates, padding and execution change nothing. One order
    serves all layers: its first K tokens are as random a subset at each layer as a new draw among those left.
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
        """The seed."""
        return {"seed": self.seed}

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Uniform in [0, 1)."""
        length = state.length.long()[:, None].expand_as(state.position)
        mixed = _mix(_mix(_mix(torch.full_like(state.position, self.seed)) ^ length) ^ state.position)
        return (mixed >> 8).float() / 2**24  # as many bits as float32 holds


def _mix(number: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """A 32-bit hash that is a permutation; every product fits in 63 bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x45D9F3B), (16, 1)):
        number = ((number ^ (number >> shift)) * factor + 0x9E3779B9) & 0xFFFFFFFF
    return number


class EarlierFirst(Scorer):
    """A control: the earlier a token stands, the more it matters, which cuts the end off a text."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """The position in the unpruned sentence, negative."""
        return -state.position.float()


class ReferenceReceived(Scorer):
    """Attention received as ToP's reference code counts it: after dropout, from padded and dead queries too.

    Only for comparisons with published checkpoints: it depends on the amount of padding, so `drop` and `pack`
    do not equal `mask` under it.  Source: Moonlit ToP/models/modeling_bert.py:499-526.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"dropped"})

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Column sums over every row of the padded sequence."""
        assert signals.dropped is not None
        return received(signals.dropped, None)
