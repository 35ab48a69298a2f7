"""Which tokens matter: scorers turn the signals of one attention call into importance, higher = more important."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from prunekit.tokens.attention import received
from prunekit.tokens.state import Need, Signals, TokenState


class Scorer(nn.Module):
    """A scorer: `needs` names the signals it reads, calling it returns float32 importance per token.

    Values of tokens that are gone are never looked at.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received"})

    def arguments(self) -> dict[str, Any]:
        """What `__init__` needs to make this scorer again; plain JSON."""
        return {}

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Importance of each token."""
        raise NotImplementedError(f"{type(self).__name__} is a scorer without forward(signals, state); define it.")


class AttentionReceived(Scorer):
    """The canonical score: attention received from alive queries, 1 = as much as uniform attention."""

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """The column sums that the attention call already made."""
        assert signals.received is not None
        return signals.received


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
