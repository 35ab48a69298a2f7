"""TS-DTP: attention received plus task attention received, summed over layers, against a threshold per sentence.

Paper: "Dynamic token pruning for LLMs: leveraging task-specific attention and adaptive thresholds", Knowledge and
Information Systems 2025, doi 10.1007/s10115-025-02450-1. The published notebook computes an importance that is the same
for every token; this is the method as it is described. docs/methods/tsdtp.md lists what differs and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.cost import Shape, dense_macs, encoder_macs, straight_through_counts
from prunekit.evaluation.evaluate import Batch
from prunekit.losses import candidate_share, consistency, task_loss
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.static import CalibratedMethod
from prunekit.models.forward import run_encoder
from prunekit.tokens.budget import Bisected, bisect
from prunekit.tokens.policies import MeanMinusStd
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AccumulatedReceived, Scorer
from prunekit.tokens.state import TokenState, Trace
from prunekit.tokens.task_attention import TaskImportance

# where k starts if nothing is asked: the notebook's, which prunes a sixth of normally distributed scores
PUBLISHED_K = 1.0


@dataclass(frozen=True)
class Options:
    """The keys of conf/method/tsdtp.yaml, explained there; conf/method/dtp.yaml has those without a task's part."""

    train: bool = True
    keep_ratio: float | None = None
    fixed_k: float | None = None
    prune_layers: Sequence[int] | None = None
    space: Literal["log", "linear"] = "log"
    k_init: float | None = None
    learn_k: bool = True
    lr_k: float | None = None
    min_keep: int = 1
    temperature: Sequence[float] = (0.5, 0.05)
    temperature_fraction: float = 0.7
    aux: Literal["budget", "consistency", "none"] = "budget"
    aux_weight: float = 1.0
    aux_lr: float | None = None
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

    def __init__(self, model: PreTrainedModel, context: MethodContext, **options: Any) -> None:
        super().__init__(model, context, **options)
        self.options = Options(**options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, MeanMinusStd)
        self.policy = self.pruner.policy
        self.multiplier = nn.Parameter(torch.zeros(()))
        self.share = _even_share(context, self.pruner, self.policy.least, self.policy.row)

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """Every layer up to the last that prunes adds to the importance; a fractional keep is a bias of attention."""
        chosen = Options(**options)
        layers = chosen.layers(shape)
        given = chosen.k_init if chosen.fixed_k is None else chosen.fixed_k
        start = PUBLISHED_K if given is None else given
        policy = MeanMinusStd(dict.fromkeys(layers, start), chosen.space, chosen.min_keep, chosen.temperature[0])
        policy.k.requires_grad_(chosen.learn_k and chosen.fixed_k is None)
        return TokenPruner(chosen.scorer(shape), policy, range(max(layers) + 1), soft_form="bias", protect_last=True)

    @classmethod
    def completed(cls, context: MethodContext, **options: Any) -> dict[str, Any]:
        """`k_init`, where null: what meets the budget, or `keep_ratio`, if the scores were normally distributed and all
        deciding layers left the same share. A start far from what is asked is paid for while the weights learn.
        """
        chosen = Options(**options)
        if chosen.k_init is not None or chosen.fixed_k is not None:
            return options
        layers = chosen.layers(context.shape)
        if chosen.keep_ratio is not None:
            share = chosen.keep_ratio ** (1 / len(layers))
        elif context.budget is not None:
            share = _even_share(context, cls.build_pruner(context.shape, **options), chosen.min_keep, layers)
        else:
            return options | {"k_init": PUBLISHED_K}
        return options | {"k_init": NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6))}

    @classmethod
    def feasible(cls, context: MethodContext, **options: Any) -> tuple[float, float]:
        """From nothing pruned, at the scorer's cost, to the protected and `min_keep` tokens behind the first layer
        that prunes.
        """
        chosen, layers = Options(**options), context.shape.layers
        pruner, first = cls.build_pruner(context.shape, **options), min(chosen.layers(context.shape))
        whole = context.lengths["validation"].double()
        least = whole.minimum(torch.as_tensor(context.stays(pruner) + chosen.min_keep).double())
        everyone = torch.stack([whole] * layers)
        tokens_in = torch.stack([whole] * (first + 1) + [least] * (layers - first - 1))
        tokens_out = torch.stack([whole] * first + [least] * (layers - first))
        return (
            context.reduction(everyone, everyone, _scoring(pruner, everyone)),
            context.reduction(tokens_in, tokens_out, _scoring(pruner, tokens_in)),
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
        terms = {"task": task_loss(logits, batch["labels"], self.context.spec.kind)}
        auxiliary = self._auxiliary(trace, batch)
        if auxiliary is not None:
            terms["aux"] = auxiliary
        return terms

    def _auxiliary(self, trace: Trace, batch: Batch) -> Tensor | None:
        """The auxiliary loss of what the soft gates left.

        The published form, a weight times the distance from what is asked, is bounded; a task loss that rises faster
        than that per token (a translator's does) drives k until nothing is pruned. So a multiplier learns the price.
        """
        options = self.options
        if options.aux == "none":
            return None
        if options.aux == "consistency":
            return options.aux_weight * consistency(self._shares(trace))
        if self.asked is not None:
            gap = self._too_much(trace, batch)
        elif options.keep_ratio is not None:
            gap = self._shares(trace).mean() - options.keep_ratio
        else:
            return None
        self.log_dict({"budget/multiplier": self.multiplier.detach()})
        return options.aux_weight * gap.abs() + self.multiplier * gap

    def _shares(self, trace: Trace) -> Tensor:
        """The share of each text's candidates that the gates of the last deciding layer left."""
        entry = trace.layers[max(self.policy.row)]
        return candidate_share(entry.keep, (entry.keep > 0) & (entry.protected <= 0))

    def _too_much(self, trace: Trace, batch: Batch) -> Tensor:
        """The share of the unpadded FLOPs that is spent on a batch, less the one that is wanted of it.

        What is wanted is what the budget means for texts of these lengths: of short ones most is protected.
        """
        assert self.pruner is not None
        shape, lengths = self.context.shape, batch["attention_mask"].sum(-1)
        spent = _spent(self.pruner, shape, self._hard_counts(trace, lengths))
        protected = trace.layers[0].protected.sum(-1)
        even = _even_counts(self.share, lengths, protected, self.policy.least, self.policy.row, shape.layers)
        wanted = _spent(self.pruner, shape, even)
        dense = dense_macs(shape, lengths).sum()
        self.log_dict({"budget/expected": 1 - (spent / dense).float().detach(), "budget/target": 1 - wanted / dense})
        return ((spent - wanted) / dense).float()

    def _hard_counts(self, trace: Trace, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens in the two halves of each layer if the scores of a soft pass were decided hard, with the gradient of
        the gates.

        Softly counted, warm gates keep a part of every token, and so do mean and deviation at the next layer: what
        meets the budget then is far from it in an evaluation.
        """
        assert self.pruner is not None
        layers, first = sorted(self.policy.row), trace.layers[0]
        width = trace.layers[layers[-1]].keep.shape[1]  # padding beyond the longest text is gone behind layer 0
        keep, decided = (first.keep[:, :width] > 0).float(), []
        position, protected = first.position[:, :width], first.protected[:, :width]
        for layer in layers:
            scores = trace.layers[layer].scores
            assert scores is not None
            scores, state = scores[:, :width], TokenState(keep, position, protected, lengths.float(), layer=layer)
            gates = self.pruner.keep(layer, scores, state, soft=True)
            keep = self.pruner.keep(layer, scores, state, soft=False)
            decided.append(keep + gates - gates.detach())
        return straight_through_counts(torch.stack(decided), lengths, layers, self.context.shape.layers)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """k, the task's parameters where there are any, and the budget's multiplier, which rises by ascent."""
        assert self.pruner is not None
        groups: list[dict[str, Any]] = []
        if self.policy.k.requires_grad:
            # half of the soft stage suffices to bring k from pruning little to pruning most
            rate = self.options.lr_k or max(0.02, 4 / max(1, self.soft_steps))
            groups.append({"params": [self.policy.k], "lr": rate, "name": "k"})
        # in short runs half of the soft stage suffices for a price that no task's loss was seen to reach
        ascent = max(0.02, 10 / max(1, self.soft_steps)) if self.options.aux_lr is None else self.options.aux_lr
        asks = self.asked is not None or self.options.keep_ratio is not None
        # a price that nobody can pay would rise for ever
        if asks and self.policy.k.requires_grad and self.options.aux == "budget" and ascent > 0:
            groups.append({"params": [self.multiplier], "lr": ascent, "maximize": True, "name": "multiplier"})
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
        most = float(self.context.lengths["validation"].max())
        wanted = 1 / self.options.keep_ratio
        tolerance = self.context.tolerance / 4
        self.policy.meet(lambda: 1 / self._kept(), wanted, least=1.0, most=most, tolerance=tolerance)

    def meet(self, measure: Callable[[], float]) -> Bisected:
        """Shifts every k."""
        assert self.asked is not None
        least, most = self.feasible(self.context, **self.given)
        return self.policy.meet(measure, self.asked, least=least, most=most, tolerance=self.context.tolerance / 4)

    def knob(self) -> str:
        """The shift."""
        return f"k {-float(self.policy.shift):+.3g}"

    def _kept(self) -> float:
        """Share of the validation tokens that may go which are left behind the last layer that prunes."""
        kept = whole = 0.0
        was_training = self.model.training
        self.model.eval()
        for batch in self.context.validation():
            here = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            trace = Trace()
            with torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
                run_encoder(self.model, here, "mask", trace=trace)
            entry = trace.layers[max(self.policy.row)]
            kept += float(((entry.keep > 0) & (entry.protected <= 0)).sum())
            whole += float((here["attention_mask"] * (entry.protected <= 0)).sum())
        self.model.train(was_training)
        return kept / max(1.0, whole)

    def meets_budget(self, reduction: float) -> bool:
        """Within the budget, and in the hard stage if there is one: only it has a best checkpoint."""
        settled = self.hard or self.hard_steps == 0 or not self.trains
        return settled and super().meets_budget(reduction)

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


def _even_counts(
    share: float, lengths: Tensor, protected: Tensor | int, least: int, deciding: Collection[int], layers: int
) -> tuple[Tensor, Tensor]:
    """Tokens in the two halves of each layer, if each deciding one leaves `share` of those that may go.

    Of these `least` stay, and the only one of a text, as every decision leaves it.
    """
    may_go = (lengths - protected).double().clamp(min=0)
    stay, tokens_in, tokens_out = lengths - may_go, [], []
    for layer in range(layers):
        tokens_in.append(stay + may_go)
        if layer in deciding:
            may_go = torch.maximum(may_go * share, may_go.clamp(max=max(1, least)))
        tokens_out.append(stay + may_go)
    return torch.stack(tokens_in), torch.stack(tokens_out)


def _even_share(context: MethodContext, pruner: TokenPruner, least: int, deciding: Collection[int]) -> float:
    """The share that meets the budget on the validation texts if each deciding layer leaves the same; 1 without one."""
    if context.budget is None:
        return 1.0
    lengths, protected = context.lengths["validation"], context.stays(pruner)

    def reached(share: float) -> float:
        tokens_in, tokens_out = _even_counts(share, lengths, protected, least, deciding, context.shape.layers)
        return context.reduction(tokens_in, tokens_out, _scoring(pruner, tokens_in))

    return bisect(reached, context.budget, low=0.0, high=1.0, tolerance=1e-6).knob


def _spent(pruner: TokenPruner, shape: Shape, counts: tuple[Tensor, Tensor]) -> Tensor:
    """MACs of a batch, its scorer's among them."""
    return (encoder_macs(shape, *counts) + _scoring(pruner, counts[0])).sum()


def _scoring(pruner: TokenPruner, tokens_in: Tensor) -> Tensor:
    """MACs of the scorer if so many tokens enter each layer's attention."""
    scored = [pruner.scorer.macs(tokens_in[layer]) for layer in sorted(pruner.layers)]
    return torch.stack(scored).sum(0)
