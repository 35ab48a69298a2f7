"""ToP: token pruning by rank gates under a FLOPs constraint, with rank distillation.

Paper: "Constraint-aware and Ranking-distilled Token Pruning for Efficient Transformer Inference", arXiv:2306.14393.
Reference: microsoft/Moonlit, folder ToP. Where the reference trains another function than it evaluates, prunekit
does not; `compat` brings the reference's behaviour back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.cost import Convention, Shape, expected_counts, expected_keep, nominal_counts, sparsity
from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import protected_count
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
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import FULL_SHIFT, RankGate
from prunekit.tokens.scorers import AttentionReceived, ReferenceReceived
from prunekit.tokens.state import Execution, Trace

MOST_BINS = 50  # where the texts decide; most published recipes have 50


@dataclass(frozen=True, kw_only=True)
class ToPOptions(MethodOptions):
    """The keys of conf/method/top.yaml, explained there."""

    prune_location: tuple[int, ...] | None
    bins: int | None
    target_sparsity: float | None
    warmup_epochs: float
    hard_fraction: float
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
        """Set `bins`, where null, so that nine of ten validation sentences have a rank in each; at most 50."""
        if self.bins is not None:
            return self
        ranked = (context.lengths["validation"] - context.protected_count).float()
        return replace(self, bins=min(MOST_BINS, max(1, int(ranked.quantile(0.1, interpolation="lower")))))

    def asks(self, context: MethodContext) -> float:
        """Return the budget, or the target sparsity as a FLOPs reduction."""
        if context.budget is not None:
            return context.budget
        assert self.target_sparsity is not None  # a configuration has one of the two
        return 1 / (1 - self.target_sparsity)

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned to everything but [CLS] dropped at the first location."""
        policy = replace(self, init_coarse=LOGA_BOUND).build_pruner(context.shape).policy
        assert isinstance(policy, RankGate)
        return 1.0, _reduction(policy, context, torch.full_like(policy.shift, -FULL_SHIFT))

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build rank gates on the canonical score, at the layers before each prune location."""
        layers = self.decision_layers(shape.layers)
        policy = RankGate(
            layers,
            self.bins or MOST_BINS,
            distribution=HardConcrete(beta=self.beta, gamma=self.gamma, zeta=self.zeta),
            init_fine=self.init_fine,
            init_slope=0.0 if self.compat else self.init_slope,
            init_coarse=self.init_coarse,
            min_tokens=self.min_tokens,
            monotone=self.monotone,
            compat=self.compat,
        )
        scorer = ReferenceReceived() if self.compat else AttentionReceived()
        return TokenPruner(scorer, policy, layers, hide_gone=not self.compat)

    def count_hard_steps(self, training: Training) -> int:
        """Return the steps of the last `hard_fraction` of the training."""
        return round(self.hard_fraction * training.steps)

    def decision_layers(self, layers: int) -> list[int]:
        """Return the layers that decide: the paper prunes the *input* of a layer, which the layer before decides."""
        locations = self.prune_location if self.prune_location is not None else range(2, layers)
        return [location - 1 for location in locations]


class ToP(TokenPruningMethod):
    """Trains gates, multipliers and weights together ("soft"), then the weights alone under fixed gates ("hard").

    The hard stage is the reference's optional final fine-tuning. Before it the gates are shifted
    so that their hard decisions meet the target; `hard_fraction=0` leaves it out, as the published recipes do.
    """

    uses_teacher: ClassVar[bool] = True
    Options = ToPOptions
    options: ToPOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: ToPOptions) -> None:
        super().__init__(model, context, options)
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, RankGate)
        self.policy = self.pruner.policy
        chosen = options.rank_layers
        self.rank_layers = list(range(1, context.shape.layers // 3)) if chosen is None else list(chosen)
        self.warmup_steps = round(options.warmup_epochs * context.training.steps_per_epoch)

    @property
    def target(self) -> float:
        """The sparsity asked for: the share of the unpadded FLOPs to save."""
        assert self.asked is not None
        return 1 - 1 / self.asked

    # -- training --------------------------------------------------------------------------------------

    def freeze_decisions(self) -> None:
        """Shift the gates so that they meet the budget."""
        assert self.asked is not None
        self.policy.meet(lambda shift: _reduction(self.policy, self.context, shift), self.asked, self.context.tolerance)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clamp the gates to their bound after each step, as the reference does."""
        super().optimizer_step(*args, **kwargs)
        self.policy.clamp(self.options.loga_clamp)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task or distillation loss, rank distillation, and in the soft stage the Lagrangian."""
        options, step = self.options, self._step
        assert self.pruner is not None
        trace = Trace.scoring(self.rank_layers if options.rank_alpha > 0 else [], self.pruner.scorer)
        execution: Execution = ("mask" if options.compat else "drop") if self.hard else "soft"
        logits = self(batch, execution, trace)
        assert self.context.teacher is not None
        teacher_logits, teacher_ranks = self.context.teacher.batch(batch["index"], batch["input_ids"].shape[1])
        terms = self._task_terms(logits, teacher_logits, batch["labels"])
        if options.rank_alpha > 0:
            weight = rank_weight(step, self.warmup_steps, options.rank_alpha)
            terms["rank"] = weight * self._rank_loss(trace, teacher_ranks, batch)
        if not self.hard:
            sparsity = self.expected_sparsity(batch["attention_mask"].sum(-1), protected_count(batch))
            target = linear_warmup(step, self.warmup_steps, self.target)
            terms["lagrangian"] = lagrangian(sparsity, target, self.lambda1, self.lambda2)
            self._log_constraint(sparsity, target)
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
        fine, coarse = self.policy.open_probabilities()
        shape, at = self.context.shape, list(self.policy.row)
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

    def _log_constraint(self, sparsity: Tensor, target: float) -> None:
        self.log_dict(
            {
                "budget/target": target,
                "budget/expected": sparsity.detach(),
                "lagrange/lambda1": self.lambda1.detach(),
                "lagrange/lambda2": self.lambda2.detach(),
            }
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the gates, trained by descent, and the multipliers, by ascent, both at `reg_lr`."""
        rate = self.options.reg_lr
        if rate is None:
            # short runs: a gate must be able to cross its range in half of the soft stage
            rate = max(0.02, 2 * LOGA_BOUND / max(1, 0.5 * self.soft_steps))
        gates = {"params": [self.policy.token_loga, self.policy.pruner_loga], "lr": rate, "name": "gates"}
        ascent = {"params": [self.lambda1, self.lambda2], "lr": rate, "maximize": True, "name": "multipliers"}
        return [gates, ascent]

    def meets_budget(self, reduction: float) -> bool:
        """Return whether the budget, or the target sparsity less 0.01, is met in the hard stage, if there is one."""
        if self.hard_steps > 0 and self.global_step <= self.soft_steps:
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
