"""ToP: token pruning by rank gates under a FLOPs constraint, with rank distillation.

Paper: "Constraint-aware and Ranking-distilled Token Pruning for Efficient Transformer Inference", arXiv:2306.14393.
Reference: microsoft/Moonlit, folder ToP. Where the reference trains another function than it evaluates, prunekit
does not; `compat` brings the reference's behaviour back. With `init=topk` the gates start as a profile that meets the
budget, and are learned before the weights: docs/methods/top.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, shown
from prunekit.console import say
from prunekit.cost import Convention, Shape, expected_counts, expected_keep, nominal_counts, sparsity
from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import evaluate, protected_count
from prunekit.losses import (
    has_choices,
    imitation_loss,
    lagrangian,
    linear_warmup,
    rank_distillation_loss,
    rank_weight,
    task_loss,
)
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.options import MethodOptions
from prunekit.tokens.gates import LOGA_BOUND, HardConcrete
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.prefix_gates import PrefixGate
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import FULL_SHIFT, RankGate
from prunekit.tokens.schedules import bend_to, constant_ratio
from prunekit.tokens.scorers import AttentionReceived, ReferenceReceived
from prunekit.tokens.state import Execution, Trace

MOST_BINS = 50  # where the texts decide; most published recipes have 50


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
    task_loss: Literal["kd", "ce", "kd+ce"]
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
        return 1.0, _reduction(policy, context, torch.full_like(policy.shift, -FULL_SHIFT))

    def _reduction(self, context: MethodContext, shares: Sequence[float]) -> float:
        """Return the exact FLOPs reduction of a profile, on the validation sentences."""
        profile = dict(zip(self.decision_layers(context.shape.layers), shares, strict=True))
        return _profile_reduction(context, profile)

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build gates on the canonical score, at the layers before each prune location."""
        layers = self.decision_layers(shape.layers)
        scorer = ReferenceReceived() if self.compat else AttentionReceived()
        return TokenPruner(scorer, self._policy(layers), layers, hide_gone=not self.compat)

    def _policy(self, layers: list[int]) -> PrefixGate | RankGate:
        form = HardConcrete(beta=self.beta, gamma=self.gamma, zeta=self.zeta)
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


class ToP(TokenPruningMethod):
    """Trains gates, multipliers and weights together ("soft"), then the weights alone under fixed gates ("hard").

    The hard stage is the reference's optional final fine-tuning. Before it the gates are shifted
    so that their hard decisions meet the target; `hard_fraction=0` leaves it out, as the published recipes do.
    With `init=topk` the gates meet the budget from the first step on, and the weights are trained under hard decisions.
    In the middle of the training the weights stand still and the gates learn; then the weights are trained further
    under what the gates learned, or under the profile that they started with if that scores better.
    """

    uses_teacher: ClassVar[bool] = True
    Options = ToPOptions
    options: ToPOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: ToPOptions) -> None:
        super().__init__(model, context, options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, PrefixGate | RankGate)
        self.policy = self.pruner.policy
        if isinstance(self.policy, RankGate):
            self.lambda1 = nn.Parameter(torch.zeros(()))
            self.lambda2 = nn.Parameter(torch.zeros(()))
        else:
            self.policy.loga.requires_grad_(self.soft_steps > 0)
        chosen = options.rank_layers
        self.rank_layers = list(range(1, context.shape.layers // 3)) if chosen is None else list(chosen)
        self.warmup_steps = round(options.warmup_epochs * context.training.steps_per_epoch)

    @property
    def target(self) -> float:
        """The sparsity asked for: the share of the unpadded FLOPs to save."""
        assert self.asked is not None
        return 1 - 1 / self.asked

    # -- training --------------------------------------------------------------------------------------

    @property
    def hard(self) -> bool:
        """Whether only the weights learn; the gates that start as a profile learn in the middle of the training."""
        if isinstance(self.policy, RankGate):
            return super().hard
        return not self.hard_steps // 2 <= self.global_step < self.hard_steps // 2 + self.soft_steps

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freeze the decisions where the gates have learned; at both ends, forget what the stage before logged."""
        if isinstance(self.policy, RankGate):
            return super().on_train_batch_start(batch, batch_idx)
        begins = self.hard_steps // 2
        if self.soft_steps > 0 and self.global_step in (begins, begins + self.soft_steps):
            if self.hard:
                self.freeze_decisions()
            self.trainer._results.reset()

    def freeze_decisions(self) -> None:
        """Shift the gates so that they meet the budget; of a learned profile and its start, take the better one."""
        assert self.asked is not None
        policy, context = self.policy, self.context
        if isinstance(policy, RankGate):
            policy.meet(lambda shift: _reduction(policy, context, shift), self.asked, context.tolerance)
            return
        learned, after = policy.loga.detach().clone(), self._validation_score()
        policy.reset()
        before = self._validation_score()
        say(f"gates      {context.spec.chosen_by} {before:.4f} before they learned, {after:.4f} with what they learned")
        if after > before:
            policy.loga.data.copy_(learned)

    def _validation_score(self) -> float:
        """Return the score of the weights as they are, on the first validation split."""
        context = self.context
        found = evaluate(self.model, context.validation(), context.spec, context.shape, context.targets[0], "drop")
        return found.metrics[context.spec.chosen_by]

    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate; where a profile is learned, their schedule stands still."""
        if isinstance(self.policy, RankGate):
            return super().weights_rate(step)
        passed = min(step, max(self.hard_steps // 2, step - self.soft_steps))
        return self.context.training.rate(passed, self.hard_steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """While a profile is learned, leave the weights alone, and of its gradient what does not change the FLOPs.

        The latter is what the best Lagrange multiplier leaves.
        """
        if self.hard or isinstance(self.policy, RankGate):
            return
        for _, weight in self.weights():
            weight.grad = None  # AdamW then keeps weight and momenta
        loga = self.policy.loga
        assert loga.grad is not None
        with torch.enable_grad():
            lengths = self.context.lengths["validation"].to(loga.device)
            cost = torch.autograd.grad(self.expected_sparsity(lengths, self.context.protected_count), loga)[0]
        loga.grad.sub_(cost * (loga.grad @ cost) / (cost @ cost).clamp(min=1e-12))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clamp the gates to their bound after each step, as the reference does; bring a profile back to the budget."""
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.policy, RankGate):
            self.policy.clamp(self.options.loga_clamp)
        elif not self.hard:
            assert self.asked is not None
            self.policy.meet(lambda profile: _profile_reduction(self.context, profile), self.asked)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task or distillation loss, rank distillation, and in the soft stage the Lagrangian."""
        options, step = self.options, self._step
        assert self.pruner is not None
        learns_order = options.rank_alpha > 0 and (self.hard or isinstance(self.policy, RankGate))
        trace = Trace.scoring(self.rank_layers if learns_order else [], self.pruner.scorer)
        execution: Execution = ("mask" if options.compat else "drop") if self.hard else "soft"
        logits = self(batch, execution, trace)
        assert self.context.teacher is not None
        teacher_logits, teacher_ranks = self.context.teacher.batch(batch["index"], batch["input_ids"].shape[1])
        terms = self._task_terms(logits, teacher_logits, batch["labels"])
        if learns_order:
            weight = rank_weight(step, self.warmup_steps, options.rank_alpha)
            terms["rank"] = weight * self._rank_loss(trace, teacher_ranks, batch)
        if not self.hard and isinstance(self.policy, RankGate):
            sparsity = self.expected_sparsity(batch["attention_mask"].sum(-1), protected_count(batch))
            target = linear_warmup(step, self.warmup_steps, self.target)
            terms["lagrangian"] = lagrangian(sparsity, target, self.lambda1, self.lambda2)
            self.log_dict({"lagrange/lambda1": self.lambda1.detach(), "lagrange/lambda2": self.lambda2.detach()})
            self.log_dict({"budget/target": target, "budget/expected": sparsity.detach()})
        elif isinstance(self.policy, PrefixGate):
            sparsity = self.expected_sparsity(batch["attention_mask"].sum(-1), protected_count(batch))
            self.log_dict({"budget/target": self.target, "budget/expected": sparsity.detach()})
        return terms

    def _task_terms(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        spec, options = self.context.spec, self.options
        if not has_choices(spec.kind) or options.task_loss == "ce":
            return {"task": task_loss(logits, labels, spec.kind)}
        terms = {"kd": imitation_loss(logits, teacher_logits, spec.kind, options.kd_temperature)}
        if options.task_loss == "kd+ce":
            terms["task"] = task_loss(logits, labels, spec.kind)
        return terms

    def _rank_loss(self, trace: Trace, teacher_ranks: Tensor, batch: Batch) -> Tensor:
        losses = []
        for layer in self.rank_layers:
            entry = trace.layers[layer]
            assert entry.scores is not None
            losses.append(
                rank_distillation_loss(
                    entry.scores,
                    teacher_ranks.gather(1, entry.position),
                    self.options.rank_topk,
                    compat=self.options.compat,
                )
            )
        return torch.stack(losses).sum() if losses else teacher_ranks.new_zeros((), dtype=torch.float32)

    def expected_sparsity(self, lengths: Tensor, protected: Tensor | int = 1) -> Tensor:
        """Return the left side of the constraint: the expected share of the unpadded FLOPs saved; differentiable."""
        shape, at = self.context.shape, list(self.policy.row)
        if isinstance(self.policy, PrefixGate):
            counts = nominal_counts(self.policy.expected_keep(), lengths, at, shape.layers, protected)
            return sparsity(shape, *counts, lengths).float()
        fine, coarse = self.policy.open_probabilities()
        if self.options.sparsity_of == "measured":
            fewest = self.options.min_tokens
            tokens_in, tokens_out = expected_counts(fine, coarse, lengths, at, shape.layers, fewest, protected)
        else:
            tokens_in, tokens_out = nominal_counts(expected_keep(fine, coarse), lengths, at, shape.layers, protected)
        convention: Convention = "top" if self.options.compat else "house"
        return sparsity(shape, tokens_in, tokens_out, lengths, convention).float()

    @property
    def _step(self) -> int:
        # the reference trains two steps before it starts to prune
        return max(0, self.global_step - 2) if self.options.compat else self.global_step

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the gates, trained by descent, and the multipliers, by ascent, both at `reg_lr`."""
        rate = self.options.reg_lr
        if isinstance(self.policy, PrefixGate):
            if self.soft_steps == 0:
                return []
            # short runs: a share must be able to move by two log odds
            rate = max(0.02, 2 / max(1, self.soft_steps)) if rate is None else rate
            return [{"params": [self.policy.loga], "lr": rate, "name": "gates"}]
        if rate is None:
            # short runs: a gate must be able to cross its range in half of the soft stage
            rate = max(0.02, 2 * LOGA_BOUND / max(1, 0.5 * self.soft_steps))
        gates = {"params": [self.policy.token_loga, self.policy.pruner_loga], "lr": rate, "name": "gates"}
        ascent = {"params": [self.lambda1, self.lambda2], "lr": rate, "maximize": True, "name": "multipliers"}
        return [gates, ascent]

    def meets_budget(self, reduction: float) -> bool:
        """Return whether the budget, or the target sparsity less 0.01, is met in the hard stage, if there is one."""
        if isinstance(self.policy, RankGate) and self.hard_steps > 0 and self.global_step <= self.soft_steps:
            return False  # the last evaluation of the soft stage is before the gates are fixed
        if self.context.budget is not None:
            return super().meets_budget(reduction)
        return self.sparsity_reached(reduction) >= self.target - 0.01

    def budget_error(self, reduction: float) -> float:
        """Return the distance from what was asked, in the quantity that was asked for."""
        if self.context.budget is not None:
            return super().budget_error(reduction)
        return abs(self.target - self.sparsity_reached(reduction))

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """Report the budget; or the knob, asked and reached in its unit, and the measured reduction."""
        report = super().budget_report(reduction)
        if self.context.budget is not None:
            return report
        knob = {
            "name": f"{self.options.sparsity_of} sparsity",
            "asked": self.target,
            "reached": self.sparsity_reached(reduction),
        }
        return report | {"asked": None, "knob": knob}

    def sparsity_reached(self, reduction: float) -> float:
        """Return the share of the unpadded FLOPs saved: as measured, or as the paper counts it."""
        return 1 - 1 / reduction if self.options.sparsity_of == "measured" else self.nominal_sparsity()

    @property
    def test_execution(self) -> Execution:
        """ "mask" with `compat`: the scores of the reference depend on padding and on dropped tokens."""
        return "mask" if self.options.compat else super().test_execution

    def nominal_sparsity(self) -> float:
        """Return the sparsity of the hard gates on the validation sentences as in the paper: every bin counts alike."""
        assert isinstance(self.policy, RankGate)
        fine, coarse = self.policy.hard_gates()
        shape, lengths = self.context.shape, self.context.lengths["validation"].to(fine.device)
        protected = self.context.protected_count
        protected = protected.to(fine.device) if isinstance(protected, Tensor) else protected
        counts = nominal_counts(expected_keep(fine, coarse), lengths, list(self.policy.row), shape.layers, protected)
        return float(sparsity(shape, *counts, lengths, "top" if self.options.compat else "house"))


def _reduction(policy: RankGate, context: MethodContext, shift: Tensor) -> float:
    """Return the exact FLOPs reduction of the hard gates under a shift, on the validation sentences."""
    lengths, layers = context.lengths["validation"], context.shape.layers
    return context.reduction(*policy.counts(lengths, layers, shift, context.protected_count))


def _profile_reduction(context: MethodContext, profile: Mapping[int, float]) -> float:
    """Return the exact FLOPs reduction of a profile, on the validation sentences."""
    policy = KeepRatio(profile)
    return context.reduction(
        *policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)
    )
