"""A token-pruning method as the encoder sees it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunekit.tokens.policies import KeepPolicy
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import Signals, TokenState

SoftForm = Literal["scale", "bias"]


class TokenPruner(nn.Module):
    """A token-pruning method as the encoder sees it: a scorer, a keep policy, and the layers that prune.

    `layers` are the decision layers (0-based), which decide between their attention and their feed-forward half.
    `soft_form` is the effect of a fractional keep in training: "scale" multiplies the layer's output by it, "bias" adds
    its logarithm to the attention logits of later layers, where the token then counts as a fraction of a key and of a
    query. `protect_first` keeps [CLS] whatever its score, `protect_last` the last token ([SEP] or end of sentence).
    With `hide_gone=False` tokens whose soft keep is 0 remain keys of later layers, as in the reference code of ToP and
    LTP. With `finishes_layer` a dropped token's output is that of the layer which drops it, and not that layer's input,
    as in the reference code of ToP; only where nothing is removed, and only a head that reads every token sees it.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: KeepPolicy,
        layers: Iterable[int],
        *,
        soft_form: SoftForm = "scale",
        protect_first: bool = True,
        protect_last: bool = False,
        hide_gone: bool = True,
        finishes_layer: bool = False,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self.policy = policy
        self.layers = frozenset(layers)
        self.soft_form = soft_form
        self.protect_first = protect_first
        self.protect_last = protect_last
        self.hide_gone = hide_gone
        self.finishes_layer = finishes_layer

    def at(self, budget: str | None) -> TokenPruner:
        """Return the pruner for one of the budgets that its policy serves; None is the default, which is itself.

        Raises:
            ValueError: the policy has no such budget.
        """
        policy = self.policy.at(budget)
        if policy is self.policy:
            return self
        other = copy.copy(self)
        other._modules = self._modules | {"policy": policy}
        return other

    def decide(
        self, layer: int, signals: Signals, state: TokenState, *, soft: bool
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Return the scores and the keep of one layer."""
        scores = self.scorer(signals, state).float()
        return scores, self.keep(layer, scores, state, soft=soft)

    def keep(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState, *, soft: bool
    ) -> Float[Tensor, "batch tokens"]:
        """Return the keep for these scores: protected tokens are always kept, and dropped tokens never come back."""
        policy = self.policy.soft if soft else self.policy
        return torch.where(state.protected > 0, 1.0, policy(layer, scores, state).float()) * state.alive
