"""The keys of ToP, and what follows from them before there is a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunekit.config.errors import ConfigError, shown
from prunekit.cost import Shape
from prunekit.methods.context import Loss, MethodContext, Training
from prunekit.methods.options import MethodOptions
from prunekit.tokens.gates import LOGA_BOUND, HardConcrete
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.prefix_gates import PrefixGate
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import FULL_SHIFT, RankGate
from prunekit.tokens.schedules import bend_to, constant_ratio
from prunekit.tokens.scorers import AttentionReceived, ReferenceReceived

MOST_BINS = 50  # where the texts decide; most published recipes have 50
BETA = 0.6667  # as the key writes 2/3; a run's hash holds what is written


@dataclass(frozen=True, kw_only=True)
class ToPOptions(MethodOptions):
    """The keys of conf/method/top.yaml, explained there."""

    init: Literal["topk", "open"] | None
    init_shares: tuple[float, ...] | None
    prune_location: tuple[int, ...] | None
    bins: int | None
    target_sparsity: float | None
    warmup_epochs: float
    hard_fraction: float | None
    reg_lr: float | None
    init_fine: float
    init_slope: float
    init_coarse: float
    beta: float
    gamma: float
    zeta: float
    loga_clamp: float
    task_loss: Loss
    kd_temperature: float
    rank_alpha: float
    rank_topk: int
    rank_layers: tuple[int, ...] | None
    min_tokens: int
    monotone: bool
    sparsity_of: Literal["measured", "nominal"]
    compat: bool

    def completed(self, context: MethodContext) -> ToPOptions:
        """Fill in the profile that the gates start with, or for open gates the number of bins.

        `init_shares` become those of the same form that meet the budget; where null, each location keeps the same
        share of the tokens that it is given. `bins`, where null, are such that nine of ten validation sentences have a
        rank in each; at most 50.

        Raises:
            ConfigError: options that exclude each other.
        """
        self._check()
        if self.starts_as_topk:
            locations = len(self.decision_layers(context.shape.layers))
            start = self.init_shares or constant_ratio(locations, 0.5)
            if len(start) != locations:
                raise ConfigError(
                    f"method.init_shares has {len(start)} shares, and {locations} locations prune.\n"
                    f"Allowed: one share for each location.\nGive {locations}, or leave it out."
                )
            bent = bend_to(start, lambda shares: self._reduction(context, shares), self.asks(context))
            return replace(self, init_shares=bent)
        if self.bins is not None:
            return self
        ranked = (context.lengths["validation"] - context.protected_count).float()
        return replace(self, bins=min(MOST_BINS, max(1, int(ranked.quantile(0.1, interpolation="lower")))))

    def _of_open_gates(self) -> list[str]:
        """Return which options are given that only open gates have."""
        given = {
            "compat": self.compat,
            "hard_fraction": self.hard_fraction == 0,  # weights are trained under fixed gates alone
            "sparsity_of": self.sparsity_of == "nominal",
            "min_tokens": self.min_tokens > 0,
            "monotone": self.monotone,
        }
        return [name for name, is_given in given.items() if is_given]

    @property
    def starts_as_topk(self) -> bool:
        """Whether the gates start as a profile: unless open ones are asked for, by `init` or by what only they have."""
        return self.init == "topk" or (self.init is None and not self._of_open_gates())

    def _check(self) -> None:
        kind, other = ("topk", "open") if self.starts_as_topk else ("open", "topk")
        own = ["init_shares"] * (self.init_shares is not None)
        for name in self._of_open_gates() if self.starts_as_topk else own:
            raise ConfigError(
                f"method.{name}={shown(getattr(self, name))} does not go with gates that start as method.init={kind}.\n"
                f"Allowed: method.init={other} with it.\nGive method.init={other}, or leave method.{name} out."
            )

    def asks(self, context: MethodContext) -> float:
        """Return the budget, or the target sparsity as a FLOPs reduction."""
        if context.budget is not None:
            return context.budget
        assert self.target_sparsity is not None  # a configuration has one of the two
        return 1 / (1 - self.target_sparsity)

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned to everything but [CLS] dropped at the first location."""
        if self.starts_as_topk:
            return 1.0, self._reduction(context, [0.0] * len(self.decision_layers(context.shape.layers)))
        policy = replace(self, init_coarse=LOGA_BOUND).build_pruner(context.shape).policy
        assert isinstance(policy, RankGate)
        return 1.0, gates_reduction(policy, context, torch.full_like(policy.shift, -FULL_SHIFT))

    def _reduction(self, context: MethodContext, shares: Sequence[float]) -> float:
        """Return the exact FLOPs reduction of a profile, on the validation sentences."""
        profile = dict(zip(self.decision_layers(context.shape.layers), shares, strict=True))
        return profile_reduction(context, profile)

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build gates on the canonical score, at the layers before each prune location."""
        layers = self.decision_layers(shape.layers)
        scorer = ReferenceReceived() if self.compat else AttentionReceived()
        policy = self._policy(layers)
        return TokenPruner(scorer, policy, layers, hide_gone=not self.compat, finishes_layer=self.compat)

    def _policy(self, layers: list[int]) -> PrefixGate | RankGate:
        form = HardConcrete(beta=2 / 3 if self.beta == BETA else self.beta, gamma=self.gamma, zeta=self.zeta)
        if self.starts_as_topk:
            shares = self.init_shares or constant_ratio(len(layers), 0.5)
            return PrefixGate(dict(zip(layers, shares, strict=True)), bins=self.bins, distribution=form)
        return RankGate(
            layers,
            self.bins or MOST_BINS,
            distribution=form,
            init_fine=self.init_fine,
            init_slope=0.0 if self.compat else self.init_slope,
            init_coarse=self.init_coarse,
            min_tokens=self.min_tokens,
            monotone=self.monotone,
            compat=self.compat,
        )

    def count_hard_steps(self, training: Training) -> int:
        """Return the steps that train the weights under fixed gates; where null, all, or 0.7 of them for open gates."""
        share = self.hard_fraction if self.hard_fraction is not None else 1.0 if self.starts_as_topk else 0.7
        return round(share * training.steps)

    def decision_layers(self, layers: int) -> list[int]:
        """Return the layers that decide: the paper prunes the *input* of a layer, which the layer before decides.

        As in top-k, a profile also prunes the input of what follows the last layer, which saves its feed-forward half.
        """
        after_last = layers + 1 if self.starts_as_topk else layers
        locations = self.prune_location if self.prune_location is not None else range(2, after_last)
        return [location - 1 for location in locations]


def gates_reduction(policy: RankGate, context: MethodContext, shift: Tensor) -> float:
    """Return the exact FLOPs reduction of the hard gates under a shift, on the validation sentences."""
    lengths, layers = context.lengths["validation"], context.shape.layers
    return context.reduction(*policy.counts(lengths, layers, shift, context.protected_count))


def profile_reduction(context: MethodContext, profile: Mapping[int, float]) -> float:
    """Return the exact FLOPs reduction of a profile, on the validation sentences."""
    policy = KeepRatio(profile)
    return context.reduction(
        *policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)
    )
