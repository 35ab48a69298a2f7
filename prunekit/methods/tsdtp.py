"""TS-DTP: attention received plus task attention received, summed over layers, against a threshold per sentence.

Paper: "Dynamic token pruning for LLMs: leveraging task-specific attention and adaptive thresholds", Knowledge and
Information Systems 2025, doi 10.1007/s10115-025-02450-1. The published notebook computes an importance that is the same
for every token; this is the method as it is described. docs/methods/tsdtp.md lists what differs and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.cost import Shape, dense_macs, encoder_macs, straight_through_counts
from prunekit.data.encoding import Batch
from prunekit.losses import candidate_share, consistency
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.options import MethodOptions, OptionalTraining
from prunekit.methods.static import CalibratedMethod
from prunekit.models.forward import evaluating, on_device, run_encoder
from prunekit.tokens.budget import BisectionResult, bisect
from prunekit.tokens.policies import MeanMinusStd
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AccumulatedReceived, Scorer
from prunekit.tokens.state import TokenState, Trace
from prunekit.tokens.task_attention import TaskImportance

# the start of k if nothing is asked: that of the notebook, which prunes a sixth of normally distributed scores
PUBLISHED_K = 1.0


@dataclass(frozen=True, kw_only=True)
class SharedOptions(MethodOptions):
    """The keys that conf/method/dtp.yaml and conf/method/tsdtp.yaml share, explained there."""

    keep_ratio: float | None
    fixed_k: float | None
    aux: Literal["budget", "consistency", "none"]
    aux_weight: float
    aux_lr: float | None
    hard_fraction: float
    prune_layers: tuple[int, ...] | None
    space: Literal["log", "linear"]
    k_init: float | None
    learn_k: bool
    lr_k: float | None
    min_keep: int
    temperature: tuple[float, ...]  # first, last
    temperature_fraction: float

    def completed(self, context: MethodContext) -> SharedOptions:
        """Set `k_init`, where null, to what would meet the budget, or `keep_ratio`, with normally distributed scores
        and the same share kept at each decision layer. A start far from what is asked costs steps of the weights.
        """
        if self.k_init is not None or self.fixed_k is not None:
            return self
        layers = self.decision_layers(context.shape)
        if self.keep_ratio is not None:
            share = self.keep_ratio ** (1 / len(layers))
        elif context.budget is not None:
            share = _even_share(context, self.build_pruner(context.shape), self.min_keep, layers)
        else:
            return replace(self, k_init=PUBLISHED_K)
        return replace(self, k_init=NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned, at the cost of the scorer, to the protected and `min_keep` tokens kept
        after the first decision layer.
        """
        layers, first = context.shape.layers, min(self.decision_layers(context.shape))
        pruner = self.build_pruner(context.shape)
        lengths = context.lengths["validation"].double()
        fewest = torch.as_tensor(context.protected_count_with(pruner) + self.min_keep).double()
        least = lengths.minimum(fewest)
        unpruned = torch.stack([lengths] * layers)
        tokens_in = torch.stack([lengths] * (first + 1) + [least] * (layers - first - 1))
        tokens_out = torch.stack([lengths] * first + [least] * (layers - first))
        return (
            context.reduction(unpruned, unpruned, _scorer_macs(pruner, unpruned)),
            context.reduction(tokens_in, tokens_out, _scorer_macs(pruner, tokens_in)),
        )

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build an importance summed over all layers up to the last decision; a fractional keep biases attention."""
        layers = self.decision_layers(shape)
        given = self.k_init if self.fixed_k is None else self.fixed_k
        start = PUBLISHED_K if given is None else given
        policy = MeanMinusStd(dict.fromkeys(layers, start), self.space, self.min_keep, self.temperature[0])
        policy.k.requires_grad_(self.learn_k and self.fixed_k is None)
        return TokenPruner(self.scorer(shape), policy, range(max(layers) + 1), soft_form="bias", protect_last=True)

    def count_hard_steps(self, training: Training) -> int:
        """Return the steps of the last `hard_fraction` of the training."""
        return round(self.hard_fraction * training.steps)

    def decision_layers(self, shape: Shape) -> list[int]:
        """Return the layers that prune; by default 2, 4, 6 and 8 of twelve, at the same depths of any other number."""
        if self.prune_layers is not None:
            return list(self.prune_layers)
        step = max(1, shape.layers // 6)
        return list(range(step, math.ceil(0.75 * shape.layers), step)) or [shape.layers - 1]

    def scorer(self, shape: Shape) -> Scorer:
        """Build the scorer: the attention received, summed over the layers so far."""
        return AccumulatedReceived()


@dataclass(frozen=True, kw_only=True)
class DTPOptions(SharedOptions, OptionalTraining):
    """The keys of conf/method/dtp.yaml: the shared ones, and whether to train."""


@dataclass(frozen=True, kw_only=True)
class TSDTPOptions(SharedOptions):
    """The keys of conf/method/tsdtp.yaml: the shared ones, and those of the task's attention, which must be trained."""

    gamma: float
    task_attention: Literal["bilinear", "frozen", "none"]
    features: int | None
    lr_task: float

    def scorer(self, shape: Shape) -> Scorer:
        """Build the scorer: the sum of both attentions over the layers so far; without task attention that of DTP."""
        if self.gamma == 0 or self.task_attention == "none":
            return super().scorer(shape)
        features = self.features or max(1, shape.hidden // 6)
        scorer = TaskImportance(shape.hidden, features, range(max(self.decision_layers(shape)) + 1), self.gamma)
        return scorer.requires_grad_(self.task_attention == "bilinear")


class DTP(CalibratedMethod):
    """General DTP, the part of TS-DTP that knows no task: trains k and the weights softly, then the weights alone."""

    Options: ClassVar[type[SharedOptions]] = DTPOptions
    options: SharedOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: SharedOptions) -> None:
        super().__init__(model, context, options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, MeanMinusStd)
        self.policy = self.pruner.policy
        self.multiplier = nn.Parameter(torch.zeros(()))
        self.share = _even_share(context, self.pruner, self.policy.least, self.policy.row)

    # -- training --------------------------------------------------------------------------------------

    def temperature(self, step: int) -> float:
        """Return that of the gates, which falls linearly over the first `temperature_fraction` of the soft stage."""
        first, last = self.options.temperature
        passed = min(1.0, step / max(1.0, self.options.temperature_fraction * self.soft_steps))
        return first + (last - first) * passed

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task loss; in the soft stage also the auxiliary loss."""
        if self.hard:
            return super().terms(batch)
        self.policy.temperature = self.temperature(self.global_step)
        trace = Trace()
        logits = self(batch, "soft", trace)
        terms = self.task_terms(logits, batch)
        auxiliary = self._auxiliary(trace, batch)
        if auxiliary is not None:
            terms["aux"] = auxiliary
        return terms

    def _auxiliary(self, trace: Trace, batch: Batch) -> Tensor | None:
        """Return the auxiliary loss of the soft gates; None without one.

        The published form, a weight times the distance from what is asked, is bounded; a task loss that rises faster
        than that per token (as in translation) drives k until nothing is pruned. So a multiplier learns the price.
        """
        options = self.options
        if options.aux == "none":
            return None
        if options.aux == "consistency":
            return options.aux_weight * consistency(self._shares(trace))
        if self.asked is not None:
            gap = self._excess(trace, batch)
        elif options.keep_ratio is not None:
            gap = self._shares(trace).mean() - options.keep_ratio
        else:
            return None
        self.log_dict({"budget/multiplier": self.multiplier.detach()})
        return options.aux_weight * gap.abs() + self.multiplier * gap

    def _shares(self, trace: Trace) -> Tensor:
        """Return the share of each text's candidates that the gates of the last decision layer keep."""
        entry = trace.layers[max(self.policy.row)]
        return candidate_share(entry.keep, (entry.keep > 0) & (entry.protected <= 0))

    def _excess(self, trace: Trace, batch: Batch) -> Tensor:
        """Return the share of the unpadded FLOPs spent on a batch, less the share that the budget allows it.

        What the budget allows depends on the lengths of the texts: most tokens of a short text are protected.
        """
        assert self.pruner is not None
        shape, lengths = self.context.shape, batch["attention_mask"].sum(-1)
        spent = _total_macs(self.pruner, shape, self._hard_counts(trace, lengths))
        protected = trace.layers[0].protected.sum(-1)
        even = _even_counts(self.share, lengths, protected, self.policy.least, self.policy.row, shape.layers)
        allowed = _total_macs(self.pruner, shape, even)
        dense = dense_macs(shape, lengths).sum()
        self.log_dict({"budget/expected": 1 - (spent / dense).float().detach(), "budget/target": 1 - allowed / dense})
        return ((spent - allowed) / dense).float()

    def _hard_counts(self, trace: Trace, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens in the two halves of each layer under hard decisions on the scores of a soft pass, with the
        gradient of the gates.

        A soft count includes a part of every token, and so do mean and deviation at the next layer: what meets the
        budget by it is far from the budget in an evaluation.
        """
        assert self.pruner is not None
        layers, first = sorted(self.policy.row), trace.layers[0]
        width = trace.layers[layers[-1]].keep.shape[1]  # padding beyond the longest text is dropped after layer 0
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
        """Return k, and the multiplier of the budget, which is trained by ascent."""
        groups: list[dict[str, Any]] = []
        if self.policy.k.requires_grad:
            # half of the soft stage must suffice to move k from pruning little to pruning most
            rate = self.options.lr_k or max(0.02, 4 / max(1, self.soft_steps))
            groups.append({"params": [self.policy.k], "lr": rate, "name": "k"})
        # in short runs half of the soft stage must suffice for a price above what any task's loss has needed
        ascent = max(0.02, 10 / max(1, self.soft_steps)) if self.options.aux_lr is None else self.options.aux_lr
        asks = self.asked is not None or self.options.keep_ratio is not None
        # without a k that learns, the price would rise for ever
        if asks and self.policy.k.requires_grad and self.options.aux == "budget" and ascent > 0:
            groups.append({"params": [self.multiplier], "lr": ascent, "maximize": True, "name": "multiplier"})
        return groups

    # -- the budget ------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Shift every k once they are learned; before that, an evaluation uses them as they are."""
        if not (self.hard or self.hard_steps == 0 or not self.trains):
            return
        if self.options.keep_ratio is None:
            super().calibrate()
            return
        most = float(self.context.lengths["validation"].max())
        wanted = 1 / self.options.keep_ratio
        tolerance = self.context.tolerance / 4
        self.policy.meet(lambda: 1 / self._kept_share(), wanted, least=1.0, most=most, tolerance=tolerance)

    def meet(self, measure: Callable[[], float]) -> BisectionResult:
        """Shift every k."""
        assert self.asked is not None
        least, most = self.options.feasible(self.context)
        return self.policy.meet(measure, self.asked, least=least, most=most, tolerance=self.context.tolerance / 4)

    def describe_knob(self) -> str:
        """Return the shift."""
        return f"k {-float(self.policy.shift):+.3g}"

    def _kept_share(self) -> float:
        """Return the share of the unprotected validation tokens that is kept after the last decision layer."""
        kept = whole = 0.0
        for batch in self.context.validation():
            here, trace = on_device(batch, self.model.device), Trace()
            with evaluating(self.model):
                run_encoder(self.model, here, "mask", trace=trace)
            entry = trace.layers[max(self.policy.row)]
            kept += float(((entry.keep > 0) & (entry.protected <= 0)).sum())
            whole += float((here["attention_mask"] * (entry.protected <= 0)).sum())
        return kept / max(1.0, whole)

    def meets_budget(self, reduction: float) -> bool:
        """Return whether the budget is met in the hard stage, if there is one: only that has a best checkpoint."""
        settled = self.hard or self.hard_steps == 0 or not self.trains
        return settled and super().meets_budget(reduction)

    def budget_report(self, reduction: float) -> dict[str, Any]:
        """Report the budget; with `keep_ratio` also that knob, asked and reached."""
        report, asked = super().budget_report(reduction), self.options.keep_ratio
        if asked is None:
            return report
        return report | {"knob": {"name": "keep ratio", "asked": asked, "reached": self._kept_share()}}

    def on_validation_epoch_end(self) -> None:
        """Log k of each layer too, as decisions use it."""
        super().on_validation_epoch_end()
        k = (self.policy.k - self.policy.shift).tolist()
        self.log_dict({f"k/layer_{layer:02d}": k[row] for layer, row in self.policy.row.items()})


class TSDTP(DTP):
    """TS-DTP: General DTP with a task's attention, whose parameters a task may carry to a shared backbone."""

    Options = TSDTPOptions
    options: TSDTPOptions

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return those of General DTP, and the parameters of the task's attention where they are learned."""
        groups = super().parameter_groups()
        assert self.pruner is not None
        learned = [parameter for parameter in self.pruner.scorer.parameters() if parameter.requires_grad]
        if learned:
            groups.append({"params": learned, "lr": self.options.lr_task, "name": "task attention"})
        return groups


def _even_counts(
    share: float, lengths: Tensor, protected: Tensor | int, least: int, deciding: Collection[int], layers: int
) -> tuple[Tensor, Tensor]:
    """Return the tokens in the two halves of each layer, if each decision layer keeps `share` of its candidates.

    At least `least` candidates are kept, and the only one of a text, as in every decision.
    """
    candidates = (lengths - protected).double().clamp(min=0)
    fixed, tokens_in, tokens_out = lengths - candidates, [], []
    for layer in range(layers):
        tokens_in.append(fixed + candidates)
        if layer in deciding:
            candidates = torch.maximum(candidates * share, candidates.clamp(max=max(1, least)))
        tokens_out.append(fixed + candidates)
    return torch.stack(tokens_in), torch.stack(tokens_out)


def _even_share(context: MethodContext, pruner: TokenPruner, least: int, deciding: Collection[int]) -> float:
    """Return the share that, kept at each decision layer, meets the budget on the validation texts; 1 without one."""
    if context.budget is None:
        return 1.0
    lengths, protected = context.lengths["validation"], context.protected_count_with(pruner)

    def reached(share: float) -> float:
        tokens_in, tokens_out = _even_counts(share, lengths, protected, least, deciding, context.shape.layers)
        return context.reduction(tokens_in, tokens_out, _scorer_macs(pruner, tokens_in))

    return bisect(reached, context.budget, low=0.0, high=1.0, tolerance=1e-6).knob


def _total_macs(pruner: TokenPruner, shape: Shape, counts: tuple[Tensor, Tensor]) -> Tensor:
    """Return the MACs of a batch, those of the scorer included."""
    return (encoder_macs(shape, *counts) + _scorer_macs(pruner, counts[0])).sum()


def _scorer_macs(pruner: TokenPruner, tokens_in: Tensor) -> Tensor:
    """Return the MACs of the scorer for these tokens entering the attention of each layer."""
    scored = [pruner.scorer.macs(tokens_in[layer]) for layer in sorted(pruner.layers)]
    return torch.stack(scored).sum(0)
