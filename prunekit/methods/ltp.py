"""LTP: a learned threshold per layer on the attention that a token receives.

Paper: "Learned Token Pruning for Transformers", arXiv:2107.00910. Reference: kssteven418/LTP. The reference masks
tokens and never drops them; docs/methods/ltp.md lists where prunekit differs, and `profile` brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.cost import Shape, dense_macs, encoder_macs, straight_through_counts
from prunekit.data.encoding import Batch
from prunekit.losses import cost_gap, mask_regulariser
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.static import ThresholdMethod, ThresholdOptions
from prunekit.tokens.policies import LearnedThreshold, linear_thresholds
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived, ReceivedAfterDropout
from prunekit.tokens.state import Execution, Trace

# the reference compares with at least this, in its unit: padding has score 0 and must never be kept
FLOOR = 1e-5
# of a soft mask in the reference's profile: there a token remains key and voter however small its mask is
LEAST_MASK = 1e-30


@dataclass(frozen=True, kw_only=True)
class LTPOptions(ThresholdOptions):
    """The keys of conf/method/ltp.yaml, explained there. Rates and thresholds are in the paper's unit."""

    final_threshold: float
    reference_length: int
    temperature: float
    reg_lambda: float | None
    reg_norm: Literal["live", "reference"]
    budget_weight: float
    lr_threshold: float | None
    threshold_clip: float
    hard_fraction: float
    hard_lr: float | None
    profile: Literal["house", "reference"]

    @property
    def reference(self) -> bool:
        """Whether the behaviour of the reference code is asked for."""
        return self.profile == "reference"

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build thresholds on a line, in units of uniform attention; layer 0 never prunes."""
        unit = self.reference_length
        thresholds = linear_thresholds(shape.layers, self.final_threshold * unit)
        least = LEAST_MASK if self.reference else 0.0
        policy = LearnedThreshold(thresholds, self.temperature * unit, FLOOR * unit, least)
        scorer = ReceivedAfterDropout() if self.reference else AttentionReceived()
        return TokenPruner(scorer, policy, thresholds, protect_first=not self.reference, hide_gone=not self.reference)

    def count_hard_steps(self, training: Training) -> int:
        """Return the steps of stage 2, the last `hard_fraction` of the training."""
        return round(self.hard_fraction * training.steps)


class LTP(ThresholdMethod):
    """Trains thresholds and weights under soft masks ("soft"), then the weights alone under fixed ones ("hard")."""

    Options = LTPOptions
    options: LTPOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: LTPOptions) -> None:
        super().__init__(model, context, options)
        assert isinstance(self.policy, LearnedThreshold)
        self.learned = self.policy

    # -- training --------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Scale the thresholds once they are learned; before that, an evaluation uses them as they are."""
        if self.hard or self.hard_steps == 0:
            super().calibrate()

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task loss; in the soft stage also the regulariser, or with a budget the distance from it."""
        if self.hard:
            execution: Execution = "mask" if self.options.reference else "drop"
            return self.task_terms(self(batch, execution), batch)
        trace = Trace()
        logits = self(batch, "soft", trace)
        width = batch["input_ids"].shape[1]
        keep = torch.stack([trace.layers[layer].keep_of_all(width) for layer in self.learned.row])
        terms = self.task_terms(logits, batch)
        if self.asked is not None:
            terms["budget"] = self.options.budget_weight * self._budget_gap(keep, batch, 1 / self.asked)
        elif self.options.reg_lambda is not None:
            terms["regulariser"] = self.options.reg_lambda * self._kept_share(keep, batch)
        return terms

    def _kept_share(self, keep: Tensor, batch: Batch) -> Tensor:
        padding = None
        if self.options.reg_norm == "reference" or self.options.reference:
            padding = torch.sigmoid(-self.learned.values / self.learned.temperature)
        return mask_regulariser(keep, batch["attention_mask"].float(), padding, self.options.reference_length)

    def _budget_gap(self, keep: Tensor, batch: Batch, wanted: float) -> Tensor:
        shape, lengths = self.context.shape, batch["attention_mask"].sum(-1)
        counts = straight_through_counts(keep, lengths, list(self.learned.row), shape.layers)
        share = (encoder_macs(shape, *counts).sum() / dense_macs(shape, lengths).sum()).float()
        self.log_dict({"budget/expected": 1 - share.detach()})
        return cost_gap(share, wanted)

    @property
    def hard_peak(self) -> float:
        """`hard_lr` as a multiple of the learning rate of stage 1."""
        lr = self.context.training.lr
        return (self.options.hard_lr or lr) / lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the thresholds, with their own rate."""
        options = self.options
        rate = options.lr_threshold
        if rate is None:
            # Adam moves by at most the rate: half of the soft stage must suffice to cross the height of the line
            rate = max(2e-5, 2 * options.final_threshold / max(1, self.soft_steps))
        return [{"params": [self.learned.values], "lr": rate * options.reference_length, "name": "thresholds"}]

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip weights and thresholds apart; the reference clips them together, which slows the weights down.

        The norm is then that of the reference's thresholds, in whose unit a gradient is `reference_length` times ours.
        """
        clip, values = self.context.training.clip, self.learned.values
        if self.options.reference and clip > 0:
            weights = [parameter for _, parameter in self.weights()]
            grads = [parameter.grad for parameter in weights if parameter.grad is not None]
            if values.grad is not None:
                grads.append(values.grad * self.options.reference_length)
            nn.utils.clip_grads_with_norm_([*weights, values], clip, nn.utils.get_total_norm(grads))
            return
        super().configure_gradient_clipping(*args, **kwargs)
        if self.options.threshold_clip > 0:
            nn.utils.clip_grad_norm_([values], self.options.threshold_clip)

    # -- evaluation ------------------------------------------------------------------------------------

    def meets_budget(self, reduction: float) -> bool:
        """Return whether the budget is met in the hard stage, if there is one: only that has a best checkpoint."""
        return (self.hard or self.hard_steps == 0) and super().meets_budget(reduction)
