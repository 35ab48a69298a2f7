"""TS-DTP: attention received plus task attention received, summed over layers, against a threshold per sentence.

Paper: "Dynamic token pruning for LLMs: leveraging task-specific attention and adaptive thresholds", Knowledge and
Information Systems 2025, doi 10.1007/s10115-025-02450-1. The published notebook computes an importance that is the same
for every token; this is the method as it is described. docs/methods/tsdtp.md lists what differs and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.cost import Shape, dense_macs, encoder_macs
from prunekit.evaluation import Batch
from prunekit.heads import traverse
from prunekit.methods.base import Setting, Training
from prunekit.methods.static import CalibratedMethod
from prunekit.objectives import candidate_share, consistency, task_loss
from prunekit.tokens.budget import Bisected
from prunekit.tokens.encoder import TokenPruner
from prunekit.tokens.policies import MeanMinusStd
from prunekit.tokens.scorers import AccumulatedReceived, Scorer
from prunekit.tokens.state import Trace
from prunekit.tokens.task_attention import TaskImportance


@dataclass(frozen=True)
class Options:
    """The keys of conf/method/tsdtp.yaml, explained there; conf/method/dtp.yaml has those without a task's part."""

    train: bool = True
    keep_ratio: float | None = None
    fixed_k: float | None = None
    prune_layers: Sequence[int] | None = None
    space: Literal["log", "linear"] = "log"
    k_init: float = 1.0
    learn_k: bool = True
    lr_k: float | None = None
    min_keep: int = 1
    temperature: Sequence[float] = (0.5, 0.05)
    temperature_fraction: float = 0.7
    aux: Literal["budget", "consistency", "none"] = "budget"
    aux_weight: float = 1.0
    hard_fraction: float = 0.4
    gamma: float = 0.0
    task_attention: Literal["bilinear", "frozen", "none"] = "none"
    features: int | None = None
    lr_task: float = 1e-3

    def layers(self, shape: Shape) -> list[int]:
        """The layers that prune; by default 2, 4, 6 and 8 of twelve, and as far in of any other number."""
        if self.prune_layers is not None:
            return list(self.prune_layers)
        step = max(1, shape.layers // 6)
        return list(range(step, math.ceil(0.75 * shape.layers), step)) or [shape.layers - 1]

    def scorer(self, shape: Shape) -> Scorer:
        """Importance over all layers up to the last that prunes."""
        if self.gamma == 0 or self.task_attention == "none":
            return AccumulatedReceived()
        features = self.features or max(1, shape.hidden // 6)
        scorer = TaskImportance(shape.hidden, features, range(max(self.layers(shape)) + 1), self.gamma)
        return scorer.requires_grad_(self.task_attention == "bilinear")


class DTP(CalibratedMethod):
    """General DTP, the part of TS-DTP that knows no task: trains k and the weights softly, then the weights alone."""

    def __init__(self, model: PreTrainedModel, setting: Setting, **options: Any) -> None:
        super().__init__(model, setting, **options)
        self.options = Options(**options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, MeanMinusStd)
        self.policy = self.pruner.policy

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """Every layer up to the last that prunes adds to the importance; a fractional keep is a bias of attention."""
        chosen = Options(**options)
        layers = chosen.layers(shape)
        start = chosen.k_init if chosen.fixed_k is None else chosen.fixed_k
        policy = MeanMinusStd(dict.fromkeys(layers, start), chosen.space, chosen.min_keep, chosen.temperature[0])
        policy.k.requires_grad_(chosen.learn_k and chosen.fixed_k is None)
        return TokenPruner(chosen.scorer(shape), policy, range(max(layers) + 1), soft_form="bias", protect_last=True)

    @classmethod
    def feasible(cls, setting: Setting, **options: Any) -> tuple[float, float]:
        """From nothing pruned, at the scorer's cost, to the protected and `min_keep` tokens behind the first layer
        that prunes.
        """
        chosen, layers = Options(**options), setting.shape.layers
        pruner, first = cls.build_pruner(setting.shape, **options), min(chosen.layers(setting.shape))
        whole = setting.lengths["validation"].double()
        least = whole.minimum(torch.as_tensor(setting.stays(pruner) + chosen.min_keep).double())
        everyone = torch.stack([whole] * layers)
        tokens_in = torch.stack([whole] * (first + 1) + [least] * (layers - first - 1))
        tokens_out = torch.stack([whole] * first + [least] * (layers - first))
        return (
            setting.reduction(everyone, everyone, _scoring(pruner, everyone)),
            setting.reduction(tokens_in, tokens_out, _scoring(pruner, tokens_in)),
        )

    @classmethod
    def count_hard_steps(cls, training: Training, **options: Any) -> int:
        """The last `hard_fraction` of the training."""
        return round(Options(**options).hard_fraction * training.steps)

    # -- training --------------------------------------------------------------------------------------

    def temperature(self, step: int) -> float:
        """Of the gates: falls linearly over the first `temperature_fraction` of the soft stage."""
        first, last = self.options.temperature
        passed = min(1.0, step / max(1.0, self.options.temperature_fraction * self.soft_steps))
        return first + (last - first) * passed

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The task loss; in the soft stage also the auxiliary loss."""
        if self.hard:
            return super().terms(batch)
        self.policy.temperature = self.temperature(self.global_step)
        trace = Trace()
        logits = self(batch, "soft", trace)
        terms = {"task": task_loss(logits, batch["labels"], self.setting.spec.kind)}
        distance = self._distance(trace, batch["attention_mask"].sum(-1))
        if distance is not None:
            terms["aux"] = self.options.aux_weight * distance
        return terms

    def _distance(self, trace: Trace, lengths: Tensor) -> Tensor | None:
        options = self.options
        if options.aux == "none":
            return None
        entry = trace.layers[max(self.policy.row)]
        share = candidate_share(entry.keep, (entry.keep > 0) & (entry.protected <= 0))
        if options.aux == "consistency":
            return consistency(share)
        if self.asked is None:
            return None if options.keep_ratio is None else (share.mean() - options.keep_ratio).abs()
        tokens_out = torch.stack([layer.keep.sum(-1) for layer in trace.layers])
        tokens_in = torch.cat([lengths[None].to(tokens_out.dtype), tokens_out[:-1]])
        assert self.pruner is not None
        spent = encoder_macs(self.setting.shape, tokens_in, tokens_out) + _scoring(self.pruner, tokens_in)
        left = (spent.sum() / dense_macs(self.setting.shape, lengths).sum()).float()
        self.log_dict({"budget/expected": left.detach()})
        return (left - 1 / self.asked).abs()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """k, and the task's parameters where there are any."""
        assert self.pruner is not None
        groups: list[dict[str, Any]] = []
        if self.policy.k.requires_grad:
            # half of the soft stage suffices to bring k from pruning little to pruning most
            rate = self.options.lr_k or max(0.02, 4 / max(1, self.soft_steps))
            groups.append({"params": [self.policy.k], "lr": rate, "name": "k"})
        learned = [parameter for parameter in self.pruner.scorer.parameters() if parameter.requires_grad]
        if learned:
            groups.append({"params": learned, "lr": self.options.lr_task, "name": "task attention"})
        return groups

    # -- the budget ------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Shifts every k once they are learned; before, an evaluation shows them as they are."""
        if not (self.hard or self.hard_steps == 0 or not self.trains):
            return
        if self.options.keep_ratio is None:
            super().calibrate()
            return
        most = float(self.setting.lengths["validation"].max())
        wanted = 1 / self.options.keep_ratio
        tolerance = self.setting.tolerance / 4
        self.policy.meet(lambda: 1 / self._kept(), wanted, least=1.0, most=most, tolerance=tolerance)

    def meet(self, measure: Callable[[], float]) -> Bisected:
        """Shifts every k."""
        assert self.asked is not None
        least, most = self.feasible(self.setting, **self.given)
        return self.policy.meet(measure, self.asked, least=least, most=most, tolerance=self.setting.tolerance / 4)

    def knob(self) -> str:
        """The shift."""
        return f"k {-float(self.policy.shift):+.3g}"

    def _kept(self) -> float:
        """Share of the validation tokens that may go which are left behind the last layer that prunes."""
        kept = whole = 0.0
        was_training = self.model.training
        self.model.eval()
        for batch in self.setting.validation():
            here = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            trace = Trace()
            with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
                traverse(self.model, here, "mask", trace=trace)
            entry = trace.layers[max(self.policy.row)]
            kept += float(((entry.keep > 0) & (entry.protected <= 0)).sum())
            whole += float((here["attention_mask"] * (entry.protected <= 0)).sum())
        self.model.train(was_training)
        return kept / max(1.0, whole)

    def eligible(self, reduction: float) -> bool:
        """Within the budget, and in the hard stage if there is one: only it has a best checkpoint."""
        settled = self.hard or self.hard_steps == 0 or not self.trains
        return settled and super().eligible(reduction)

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """The budget; or the knob, and what it came to."""
        report = super().budget_report(reduction)
        if self.options.keep_ratio is None:
            return report
        return report | {"knob": {"name": "keep ratio", "asked": self.options.keep_ratio, "reached": self._kept()}}

    def on_validation_epoch_end(self) -> None:
        """Logs k of each layer too, as decisions use it."""
        super().on_validation_epoch_end()
        k = (self.policy.k - self.policy.shift).tolist()
        self.log_dict({f"k/layer_{layer:02d}": k[row] for layer, row in self.policy.row.items()})


class TSDTP(DTP):
    """TS-DTP: General DTP with a task's attention, whose parameters a task may carry to a shared backbone."""


def _scoring(pruner: TokenPruner, tokens_in: Tensor) -> Tensor:
    """MACs of the scorer if so many tokens enter each layer's attention."""
    scored = [pruner.scorer.macs(tokens_in[layer]) for layer in sorted(pruner.layers)]
    return torch.stack(scored).sum(0)
