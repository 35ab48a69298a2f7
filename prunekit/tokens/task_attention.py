"""Task attention: a second, learned attention beside the layer's own, and importance summed over layers.

Source: Ahmadpanah et al., "Dynamic token pruning for LLMs: leveraging task-specific attention and adaptive thresholds",
Knowledge and Information Systems 2025, doi 10.1007/s10115-025-02450-1. docs/methods/tsdtp.md says where the
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
    """Attention of one head, in which a token counts as `keep` of a key; one with keep 0 gets nothing.

    Adding log keep to a logit weighs its exponential by keep before the row is normalised.
    """
    logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    weight = torch.where(keep > 0, keep, 1.0).log().masked_fill(keep <= 0, torch.finfo(logits.dtype).min)
    return F.softmax(logits + weight[:, None, :], dim=-1)


class TaskImportance(AccumulatedReceived):
    """Attention received, plus `gamma` times task attention received, summed over all layers so far.

    At layer l a token asks with what entered the layer, x W_l, and answers with its embedding, e P_l; W and P are the
    task's parameters, `features` wide. A bias of P would shift all logits of a query alike, and a softmax does not see
    that: there is none. `layers` are those that are scored.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"received", "previous", "hidden", "embedded"})

    def __init__(self, hidden: int, features: int, layers: Sequence[int], gamma: float) -> None:
        super().__init__()
        self.hidden, self.features, self.gamma = hidden, features, gamma
        self.row = {int(layer): row for row, layer in enumerate(layers)}
        # logits of layer-normed inputs then have a standard deviation of about a half
        self.query = nn.Parameter(torch.randn(len(self.row), hidden, features) * hidden**-0.5)
        # what nn.Linear draws
        self.key = nn.Parameter(torch.empty(len(self.row), hidden, features).uniform_(-1, 1) * hidden**-0.5)

    def arguments(self) -> dict[str, Any]:
        """Sizes, layers and weight; what was learned is a tensor of the checkpoint."""
        return {"hidden": self.hidden, "features": self.features, "layers": list(self.row), "gamma": self.gamma}

    def macs(self, tokens: Float[Tensor, "*sentences"]) -> Float[Tensor, "*sentences"]:
        """2 n d t for the two projections and n n t for the logits, with n tokens here."""
        count = tokens.double()
        return 2 * count * self.hidden * self.features + count**2 * self.features

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """This layer's two parts on top of those before."""
        return super().forward(signals, state) + self.gamma * self.received(state)

    def received(self, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Task attention that each token receives from those that are here."""
        assert state.hidden is not None
        assert state.embedded is not None
        row = self.row[state.layer]
        with torch.autocast(state.hidden.device.type, enabled=False):  # decisions must not hang on bf16
            query = state.hidden.float() @ self.query[row]
            key = state.embedded.float() @ self.key[row]
            given = task_attention(query, key, state.keep.float())
            return torch.einsum("bqk,bq->bk", given, state.keep.float())
