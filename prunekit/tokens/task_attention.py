"""Task attention: a second, learned attention next to the layer's own, and importance summed over layers.

Source: Ahmadpanah et al., "Dynamic token pruning for LLMs: leveraging task-specific attention and adaptive thresholds",
Knowledge and Information Systems 2025, doi 10.1007/s10115-025-02450-1. docs/methods/tsdtp.md lists the places where the
published code computes something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prunekit.tokens.scorers import AccumulatedReceived
from prunekit.tokens.state import Need, Signals, TokenState


def task_attention(
    query: Float[Tensor, "batch tokens features"],
    key: Float[Tensor, "batch tokens features"],
    keep: Float[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens tokens"]:
    """Compute the attention of one head in which a token counts as the fraction `keep` of a key; keep 0 receives none.

    Adding log keep to a logit multiplies its exponential by keep before the row is normalised.
    """
    logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    weight = torch.where(keep > 0, keep, 1.0).log().masked_fill(keep <= 0, torch.finfo(logits.dtype).min)
    return F.softmax(logits + weight[:, None, :], dim=-1)


class TaskImportance(AccumulatedReceived):
    """Attention received plus `gamma` times task attention received, summed over the scored layers so far.

    At layer l a token's query is x W_l, from the layer's input, and its key is e P_l, from its embedding; W and P are
    the task's parameters, `features` wide. P has no bias: it would shift all logits of a query equally, which a
    softmax ignores. `layers` are the scored layers.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received", "previous", "hidden", "embedded"})

    def __init__(self, hidden: int, features: int, layers: Sequence[int], gamma: float) -> None:
        super().__init__()
        self.hidden, self.features, self.gamma = hidden, features, gamma
        self.row = {int(layer): row for row, layer in enumerate(layers)}
        # gives logits of layer-normed inputs a standard deviation of about 1/2
        self.query = nn.Parameter(torch.randn(len(self.row), hidden, features) * hidden**-0.5)
        # the initialisation of nn.Linear
        self.key = nn.Parameter(torch.empty(len(self.row), hidden, features).uniform_(-1, 1) * hidden**-0.5)

    def arguments(self) -> dict[str, Any]:
        """Return sizes, layers and gamma; learned values are tensors of the checkpoint."""
        return {"hidden": self.hidden, "features": self.features, "layers": list(self.row), "gamma": self.gamma}

    def macs(self, tokens: Float[Tensor, "*sentences"]) -> Float[Tensor, "*sentences"]:
        """Return 2 n d t for the two projections plus n n t for the logits, for n tokens, d `hidden`, t `features`."""
        count = tokens.double()
        return 2 * count * self.hidden * self.features + count**2 * self.features

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Add this layer's two terms to the sum of earlier layers."""
        return super().forward(signals, state) + self.gamma * self.task_attention_received(state)

    def task_attention_received(self, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return the task attention that each token receives from the kept tokens."""
        assert state.hidden is not None
        assert state.embedded is not None
        row = self.row[state.layer]
        with torch.autocast(state.hidden.device.type, enabled=False):  # decisions must not depend on bf16
            query = state.hidden.float() @ self.query[row]
            key = state.embedded.float() @ self.key[row]
            attention = task_attention(query, key, state.keep.float())
            return torch.einsum("bqk,bq->bk", attention, state.keep.float())
