"""How ToP's gates are trained: open ones together with the weights, those that start as top-k alone.

`GateTraining` is what a method asks: whether a step is hard, where a stage begins, what the gates add to the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.console import say
from prunekit.cost import Convention, expected_counts, expected_keep, nominal_counts, sparsity
from prunekit.losses import lagrangian, linear_warmup
from prunekit.methods.context import MethodContext
from prunekit.methods.top_options import ToPOptions, gates_reduction, profile_reduction
from prunekit.tokens.gates import LOGA_BOUND
from prunekit.tokens.prefix_gates import PrefixGate
from prunekit.tokens.rank_gates import RankGate

DENSE_STEPS = 2  # of the reference, before it prunes


@dataclass(frozen=True)
class Stages:
    """How many steps learn the gates and how many the weights alone, and during how many the target rises."""

    soft: int
    hard: int
    warmup: int


class GateTraining(ABC):
    """The training of one kind of gates; `asked` is the FLOPs reduction, steps are those of the whole run."""

    fresh_optimizer: bool  # whether the optimiser's state is cleared where a stage begins
    multipliers: Mapping[str, nn.Parameter]

    def __init__(self, context: MethodContext, options: ToPOptions, stages: Stages, asked: float) -> None:
        self.context, self.options, self.stages, self.asked = context, options, stages, asked
        self.multipliers = {}

    @property
    def target(self) -> float:
        """The sparsity asked for: the share of the unpadded FLOPs to save."""
        return 1 - 1 / self.asked

    def is_dense(self, step: int) -> bool:
        """Return whether nothing is pruned yet; by default never."""
        return False

    def pruning_step(self, step: int) -> int:
        """Return the number of this step among those that prune."""
        return step

    @abstractmethod
    def is_hard(self, step: int) -> bool:
        """Return whether only the weights learn."""

    @abstractmethod
    def begins_stage(self, step: int) -> bool:
        """Return whether a stage begins, of the decisions or of the optimiser."""

    @abstractmethod
    def learns_order(self, step: int) -> bool:
        """Return whether ranks are distilled."""

    @abstractmethod
    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate."""

    @abstractmethod
    def freeze(self, score: Callable[[], float]) -> None:
        """Fix the decisions so that they meet the budget; `score` measures the model as it is on validation."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser groups of gates and multipliers."""

    @abstractmethod
    def expected_sparsity(self, lengths: Tensor, protected: Tensor | int) -> Tensor:
        """Return the expected share of the unpadded FLOPs saved; differentiable."""

    @abstractmethod
    def constraint(
        self, step: int, lengths: Tensor, protected: Tensor | int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the terms that hold the gates to the budget on texts of these lengths, and what to log."""

    @abstractmethod
    def before_step(self, step: int, weights: Iterable[nn.Parameter]) -> None:
        """Change the gradients before an optimiser step."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Bring the gates back to their range after an optimiser step."""

    def counts(self, step: int) -> bool:
        """Return whether an evaluation after this many steps may become the best checkpoint."""
        return True


class OpenGates(GateTraining):
    """Gates, multipliers and weights together, then the weights alone: ToP as published, and its last fine-tuning."""

    fresh_optimizer = True

    def __init__(
        self, policy: RankGate, context: MethodContext, options: ToPOptions, stages: Stages, asked: float
    ) -> None:
        super().__init__(context, options, stages, asked)
        self.policy = policy
        self.multipliers = {name: nn.Parameter(torch.zeros(())) for name in ("lambda1", "lambda2")}
        self.dense_steps = min(DENSE_STEPS, stages.soft) if options.compat else 0

    def is_dense(self, step: int) -> bool:
        """Return whether the reference has not begun to prune: its first two steps distil the logits alone."""
        return step < self.dense_steps

    def pruning_step(self, step: int) -> int:
        """Return the number of this step among those that prune."""
        return step - self.dense_steps

    def is_hard(self, step: int) -> bool:
        """Return whether the gates are fixed."""
        return self.stages.hard > 0 and step >= self.stages.soft

    def begins_stage(self, step: int) -> bool:
        """Return whether the gates are fixed at this step, or the reference makes its optimisers here."""
        return (self.is_hard(step) and step == self.stages.soft) or 0 < step == self.dense_steps

    def learns_order(self, step: int) -> bool:
        """Return whether the gates are there: in both stages."""
        return not self.is_dense(step)

    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate: each stage has its own schedule."""
        rate, soft = self.context.training.rate, self.stages.soft
        if step >= soft and self.stages.hard > 0:
            return rate(step - soft, self.context.training.steps - soft)
        if self.is_dense(step):
            return rate(step, soft)
        return rate(step - self.dense_steps, soft - self.dense_steps)

    def freeze(self, score: Callable[[], float]) -> None:
        """Shift the gates by constants, so that their hard decisions meet the budget."""
        policy, context = self.policy, self.context
        policy.meet(lambda shift: gates_reduction(policy, context, shift), self.asked, context.tolerance)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the gates, trained by descent, and the multipliers, by ascent, both at `reg_lr`."""
        rate = self.options.reg_lr
        if rate is None:
            # short runs: a gate must be able to cross its range in half of the soft stage
            rate = max(0.02, 2 * LOGA_BOUND / max(1, 0.5 * self.stages.soft))
        gates = {"params": [self.policy.token_loga, self.policy.pruner_loga], "lr": rate, "name": "gates"}
        ascent = {"params": [*self.multipliers.values()], "lr": rate, "maximize": True, "name": "multipliers"}
        return [gates, ascent]

    def expected_sparsity(self, lengths: Tensor, protected: Tensor | int) -> Tensor:
        """Return the left side of the constraint, with all bins alike or as full as they are."""
        shape, at = self.context.shape, list(self.policy.row)
        fine, coarse = self.policy.open_probabilities()
        if self.options.sparsity_of == "measured":
            fewest = self.options.min_tokens
            tokens_in, tokens_out = expected_counts(fine, coarse, lengths, at, shape.layers, fewest, protected)
        else:
            tokens_in, tokens_out = nominal_counts(expected_keep(fine, coarse), lengths, at, shape.layers, protected)
        return sparsity(shape, tokens_in, tokens_out, lengths, self._convention).float()

    @property
    def _convention(self) -> Convention:
        return "top" if self.options.compat else "house"

    def constraint(
        self, step: int, lengths: Tensor, protected: Tensor | int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the Lagrangian, as long as the gates learn; the target rises from the first step that prunes on."""
        if self.is_hard(step):
            return {}, {}
        expected = self.expected_sparsity(lengths, protected)
        target = linear_warmup(self.pruning_step(step), self.stages.warmup, self.target)
        shown: dict[str, Any] = {"budget/target": target, "budget/expected": expected.detach()}
        shown |= {f"lagrange/{name}": value.detach() for name, value in self.multipliers.items()}
        return {"lagrangian": lagrangian(expected, target, *self.multipliers.values())}, shown

    def before_step(self, step: int, weights: Iterable[nn.Parameter]) -> None:
        """Leave the gradients as they are."""

    def after_step(self, step: int) -> None:
        """Clamp the gates to their bound after each step, as the reference does."""
        self.policy.clamp(self.options.loga_clamp)

    def counts(self, step: int) -> bool:
        """Return whether the gates are fixed, if they ever are; the soft stage's last evaluation is before that."""
        return self.stages.hard == 0 or step > self.stages.soft

    def nominal_sparsity(self) -> float:
        """Return the sparsity of the hard gates on the validation sentences as in the paper: every bin counts alike."""
        fine, coarse = self.policy.hard_gates()
        shape, lengths = self.context.shape, self.context.lengths["validation"].to(fine.device)
        protected = self.context.protected_count
        protected = protected.to(fine.device) if isinstance(protected, Tensor) else protected
        counts = nominal_counts(expected_keep(fine, coarse), lengths, list(self.policy.row), shape.layers, protected)
        return float(sparsity(shape, *counts, lengths, self._convention))


class TiedGates(GateTraining):
    """The weights under a profile that meets the budget; in the middle of the training the profile learns alone."""

    fresh_optimizer = False

    def __init__(
        self, policy: PrefixGate, context: MethodContext, options: ToPOptions, stages: Stages, asked: float
    ) -> None:
        super().__init__(context, options, stages, asked)
        self.policy = policy
        self.policy.loga.requires_grad_(stages.soft > 0)
        self.learn_from = stages.hard // 2
        self.learn_until = self.learn_from + stages.soft

    def is_hard(self, step: int) -> bool:
        """Return whether the profile stands still."""
        return not self.learn_from <= step < self.learn_until

    def begins_stage(self, step: int) -> bool:
        """Return whether the profile begins or ends to learn."""
        return self.stages.soft > 0 and step in (self.learn_from, self.learn_until)

    def learns_order(self, step: int) -> bool:
        """Return whether the weights learn."""
        return self.is_hard(step)

    def weights_rate(self, step: int) -> float:
        """Return the factor of the weights' learning rate, whose schedule stands still while the profile learns."""
        passed = min(step, max(self.learn_from, step - self.stages.soft))
        return self.context.training.rate(passed, self.stages.hard)

    def freeze(self, score: Callable[[], float]) -> None:
        """Take the learned profile or the one before, whichever scores better."""
        learned, after = self.policy.loga.detach().clone(), score()
        self.policy.reset()
        before, chosen_by = score(), self.context.spec.chosen_by
        say(f"gates      {chosen_by} {before:.4f} before they learned, {after:.4f} with what they learned")
        if after > before:
            self.policy.loga.data.copy_(learned)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the shares, if they learn at all."""
        if self.stages.soft == 0:
            return []
        rate = self.options.reg_lr
        # short runs: a share must be able to move by two log odds
        rate = max(0.02, 2 / max(1, self.stages.soft)) if rate is None else rate
        return [{"params": [self.policy.loga], "lr": rate, "name": "gates"}]

    def expected_sparsity(self, lengths: Tensor, protected: Tensor | int) -> Tensor:
        """Return what the profile saves, with fractions of tokens."""
        shape, at = self.context.shape, list(self.policy.row)
        counts = nominal_counts(self.policy.expected_keep(), lengths, at, shape.layers, protected)
        return sparsity(shape, *counts, lengths).float()

    def constraint(
        self, step: int, lengths: Tensor, protected: Tensor | int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return no term: each step is brought back to the budget."""
        expected = self.expected_sparsity(lengths, protected)
        return {}, {"budget/target": self.target, "budget/expected": expected.detach()}

    def before_step(self, step: int, weights: Iterable[nn.Parameter]) -> None:
        """While the profile learns, leave the weights alone, and of its gradient what does not change the FLOPs.

        The latter is what the best Lagrange multiplier leaves.
        """
        if self.is_hard(step):
            return
        for weight in weights:
            weight.grad = None  # AdamW then keeps weight and momenta
        loga = self.policy.loga
        assert loga.grad is not None
        with torch.enable_grad():
            lengths = self.context.lengths["validation"].to(loga.device)
            cost = torch.autograd.grad(self.expected_sparsity(lengths, self.context.protected_count), loga)[0]
        loga.grad.sub_(cost * (loga.grad @ cost) / (cost @ cost).clamp(min=1e-12))

    def after_step(self, step: int) -> None:
        """Bring the profile back to the budget."""
        if not self.is_hard(step):
            self.policy.meet(lambda profile: profile_reduction(self.context, profile), self.asked)
