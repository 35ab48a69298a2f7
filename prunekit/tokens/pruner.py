"""A token-pruning method as the encoder sees it."""

from __future__ import annotations

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
    """A token-pruning method as the traversal sees it: who scores, who decides, at which layers.

    `layers` are the layers (0-based) that decide between their attention and their feed-forward half.
    `soft_form` says what a fractional keep does in training: "scale" multiplies the layer's output by it, "bias" adds
    its logarithm to later attention, where the token then counts as a fraction of a key and of a vote.
    `protect_first` keeps [CLS] whatever its score, `protect_last` the last token, [SEP] or the end of a sentence.
    `hide_gone=False` lets tokens whose soft keep is 0 stay keys of later layers, as the references of ToP and LTP do.
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
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self.policy = policy
        self.layers = frozenset(layers)
        self.soft_form = soft_form
        self.protect_first = protect_first
        self.protect_last = protect_last
        self.hide_gone = hide_gone

    def decide(
        self, layer: int, signals: Signals, state: TokenState, *, soft: bool
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Scores and keep at one layer."""
        scores = self.scorer(signals, state).float()
        return scores, self.keep(layer, scores, state, soft=soft)

    def keep(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState, *, soft: bool
    ) -> Float[Tensor, "batch tokens"]:
        """The decision on these scores; here a gone token stays gone and a protected one stays."""
        policy = self.policy.soft if soft else self.policy
        return torch.where(state.protected > 0, 1.0, policy(layer, scores, state).float()) * state.alive
