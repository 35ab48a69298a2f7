"""ToP: token pruning by rank gates under a FLOPs constraint, with rank distillation.

Paper: "Constraint-aware and Ranking-distilled Token Pruning for Efficient Transformer Inference", arXiv:2306.14393.
Reference: microsoft/Moonlit, folder ToP. Where the reference trains another function than it evaluates, prunekit
does not; `compat` brings the reference's behaviour back. With `init=topk` the gates start as a profile that meets the
budget, and are learned before the weights: docs/methods/top.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import evaluate, protected_count
from prunekit.losses import rank_distillation_loss, rank_weight
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import Loss, MethodContext
from prunekit.methods.top_gates import GateTraining, OpenGates, Stages, TiedGates
from prunekit.methods.top_options import ToPOptions
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.families.embeddings import embeddings_of
from prunekit.tokens.prefix_gates import PrefixGate
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.state import Execution, Trace


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
        assert self.asked is not None
        self.policy = self.pruner.policy
        self.warmup_steps = round(options.warmup_epochs * context.training.steps_per_epoch)
        stages = Stages(self.soft_steps, self.hard_steps, self.warmup_steps)
        self.gates: GateTraining
        if isinstance(self.policy, RankGate):
            self.gates = OpenGates(self.policy, context, options, stages, self.asked)
        else:
            self.gates = TiedGates(self.policy, context, options, stages, self.asked)
        for name, multiplier in self.gates.multipliers.items():
            self.register_parameter(name, multiplier)
        chosen = options.rank_layers
        self.rank_layers = list(range(1, context.shape.layers // 3)) if chosen is None else list(chosen)
        # in the reference, gradients of embeddings that no step changes count in the norm that is clipped
        self.frozen: list[nn.Parameter] = []
        if options.compat and context.training.freeze_embeddings:
            self.frozen = list(embeddings_of(model).parameters())
        for parameter in self.frozen:
            parameter.requires_grad_(True)

    # -- training --------------------------------------------------------------------------------------

    @property
    def hard(self) -> bool:
        """Whether only the weights learn."""
        return self.gates.is_hard(self.global_step)

    def begin_step(self, step: int) -> None:
        """Where a stage begins: fix the decisions if it is a hard one, and forget what the stage before logged."""
        if not self.gates.begins_stage(step):
            return
        if self.hard:
            self.freeze_decisions()
        if self.gates.fresh_optimizer:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        self.trainer._results.reset()

    def freeze_decisions(self) -> None:
        """Fix the gates so that they meet the budget."""
        self.gates.freeze(self._validation_score)

    def _validation_score(self) -> float:
        """Return the score of the weights as they are, on the first validation split."""
        context = self.context
        found = evaluate(self.model, context.validation(), context.spec, context.shape, context.targets[0], "drop")
        return found.metrics[context.spec.chosen_by]

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the trainable parameters, without embeddings whose gradients are only counted."""
        counted = {id(parameter) for parameter in self.frozen}
        for name, parameter in super().weights():
            if id(parameter) not in counted:
                yield name, parameter

    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate at a step."""
        return self.gates.weights_rate(step)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip the weights; with `compat` by the norm of their gradients and those of the embeddings."""
        if not self.frozen:
            super().configure_gradient_clipping(*args, **kwargs)
            return
        own, clip = [parameter for _, parameter in self.weights()], self.context.training.clip
        if clip > 0:
            grads = [parameter.grad for parameter in (*own, *self.frozen) if parameter.grad is not None]
            nn.utils.clip_grads_with_norm_(own, clip, nn.utils.get_total_norm(grads))
        for parameter in self.frozen:
            parameter.grad = None  # no optimiser has them, and so none clears them

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the weights alone while a profile learns, and its gradient within the budget."""
        self.gates.before_step(self.global_step, (weight for _, weight in self.weights()))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Bring the gates back to their range after each step."""
        super().optimizer_step(*args, **kwargs)
        self.gates.after_step(self.global_step)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task or distillation loss, rank distillation, and what holds the gates to the budget."""
        options, step = self.options, self.global_step
        assert self.pruner is not None
        if self.gates.is_dense(step):
            return self.task_terms(self(batch, "dense"), batch)
        learns_order = options.rank_alpha > 0 and self.gates.learns_order(step)
        trace = Trace.scoring(self.rank_layers if learns_order else [], self.pruner.scorer)
        execution: Execution = ("mask" if options.compat else "drop") if self.hard else "soft"
        terms = self.task_terms(self(batch, execution, trace), batch)
        if learns_order:
            assert self.context.teacher is not None
            _, teacher_ranks = self.context.teacher.batch(batch["index"], batch["input_ids"].shape[1])
            weight = rank_weight(self.gates.pruning_step(step), self.warmup_steps, options.rank_alpha)
            terms["rank"] = weight * self._rank_loss(trace, teacher_ranks, batch)
        protected = protected_count(batch, encoder_of(self.model).separator)
        constraint, shown = self.gates.constraint(step, batch["attention_mask"].sum(-1), protected)
        self.log_dict(shown)
        return terms | constraint

    @property
    def loss(self) -> Loss:
        """The method's own key, which the run's `loss` sets."""
        return self.options.task_loss

    @property
    def kd_temperature(self) -> float:
        """The method's own."""
        return self.options.kd_temperature

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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the gates and, of open ones, the multipliers."""
        return self.gates.parameter_groups()

    # -- evaluation ------------------------------------------------------------------------------------

    def meets_budget(self, reduction: float) -> bool:
        """Return whether the budget, or the target sparsity less 0.01, is met in the hard stage, if there is one."""
        if not self.gates.counts(self.global_step):
            return False
        if self.context.budget is not None:
            return super().meets_budget(reduction)
        return self.sparsity_reached(reduction) >= self.gates.target - 0.01

    def budget_error(self, reduction: float) -> float:
        """Return the distance from what was asked, in the quantity that was asked for."""
        if self.context.budget is not None:
            return super().budget_error(reduction)
        return abs(self.gates.target - self.sparsity_reached(reduction))

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """Report the budget; or the knob, asked and reached in its unit, and the measured reduction."""
        report = super().budget_report(reduction)
        if self.context.budget is not None:
            return report
        knob = {
            "name": f"{self.options.sparsity_of} sparsity",
            "asked": self.gates.target,
            "reached": self.sparsity_reached(reduction),
        }
        return report | {"asked": None, "knob": knob}

    def sparsity_reached(self, reduction: float) -> float:
        """Return the share of the unpadded FLOPs saved: as measured, or as the paper counts it."""
        if self.options.sparsity_of == "measured":
            return 1 - 1 / reduction
        assert isinstance(self.gates, OpenGates)  # a profile is not counted so
        return self.gates.nominal_sparsity()

    @property
    def test_execution(self) -> Execution:
        """ "mask" with `compat`: the scores of the reference depend on padding and on dropped tokens."""
        return "mask" if self.options.compat else super().test_execution
