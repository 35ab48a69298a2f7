"""Base classes of methods that learn no decision: one knob, set to meet the budget, and training on the task alone.

No method of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, shown
from prunekit.console import PLAIN_SECONDS, clock, say
from prunekit.cost import Shape
from prunekit.data.encoding import Batch
from prunekit.data.loading import generator_of
from prunekit.evaluation.evaluate import executed_reduction
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.options import MethodOptions, OptionalTraining
from prunekit.tokens.budget import BisectionResult, InfeasibleBudgetError, bisect, check_feasible
from prunekit.tokens.policies import (
    KeepRatio,
    KeepRatioTable,
    Threshold,
    geometric_ratios,
    linear_ratios,
    published_dense_layers,
    step_ratios,
)
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer

# -- options -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StaticOptions(OptionalTraining):
    """Options of a method whose decisions are fixed from the first step on."""

    def count_hard_steps(self, training: Training) -> int:
        """Return all steps: no decision is learned."""
        return training.steps


@dataclass(frozen=True, kw_only=True)
class KeepRatioOptions(StaticOptions):
    """Options of a method that keeps the best share of each sentence, down to `rate`; subclasses name the scorer.

    The first layers keep everything, the following ones less and less: linearly, by a factor, or all the less at once.
    With a budget the rate follows from the lengths of the validation sentences; no weight affects it, so it holds
    throughout training.
    """

    rate: float | None
    schedule: Literal["linear", "geometric", "once"]
    dense_layers: int | None
    # further reductions; completed, the rate of each and first of the run's own, by name
    also: Sequence[float] | Mapping[str, float] | None = None  # methods of other packages may have no such key

    def scorer(self) -> Scorer:
        """Return the scorer that ranks the tokens."""
        raise NotImplementedError(f"{type(self).__name__} names no scorer; define scorer().")

    def completed(self, context: MethodContext) -> KeepRatioOptions:
        """Set `rate` where there is a budget, to what meets it; and the rates of further budgets.

        Raises:
            ConfigError: further budgets without a first one, or one that is out of reach.
        """
        if context.budget is None:
            if self.also:
                raise ConfigError(
                    f"method.also={shown(list(self.also))} names further budgets, but there is no first one.\n"
                    "Allowed: budget and method.also, or a rate alone.\nGive the first one as budget=3x."
                )
            return self
        found = replace(self, rate=self._rate(context, context.budget))
        return replace(found, also=self._rates(context, context.budget)) if self.also else found

    def _rates(self, context: MethodContext, first: float) -> dict[str, float]:
        """Return the rate of each budget by its name, as "3x"."""
        low, high = self.feasible(context)
        asked = {f"{reduction:.4g}x": reduction for reduction in (first, *(self.also or ()))}
        for name, reduction in asked.items():
            try:
                check_feasible(reduction, low, high, f"this method, as method.also={name} asks")
            except InfeasibleBudgetError as error:
                raise ConfigError(str(error)) from error
        return {name: self._rate(context, reduction) for name, reduction in asked.items()}

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned to the floor of the schedule at every layer that may prune."""
        return 1.0, self._reduction(context, self._lowest_rate(context.shape))

    def likely_counts(
        self, context: MethodContext, reduction: float
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Return the exact counts, those of the rate that the reduction needs."""
        return self._counts(context, self._rate(context, reduction))

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build the scorer, and a share for each layer that prunes; for all layers if the scorer reads earlier ones."""
        scorer = self.scorer()
        first = self._first_layer(shape)
        # after the only layer that drops tokens none has anything to decide
        end = min(first + 1, shape.layers) if self.schedule == "once" else shape.layers
        layers = range(0 if "previous" in scorer.needs else first, end)

        def ratios(rate: float) -> dict[int, float]:
            shares = self._shares(shape, rate)
            return {layer: shares[layer] for layer in layers}

        if isinstance(self.also, Mapping):
            table = {name: ratios(rate) for name, rate in self.also.items()}
            return TokenPruner(scorer, KeepRatioTable(table, next(iter(table))), layers)
        return TokenPruner(scorer, KeepRatio(ratios(1.0 if self.rate is None else self.rate)), layers)

    def _first_layer(self, shape: Shape) -> int:
        """Return the first layer that prunes; the number of layers if none does."""
        given = self.dense_layers
        return min(shape.layers, published_dense_layers(shape.layers) if given is None else given)

    def _shares(self, shape: Shape, rate: float) -> dict[int, float]:
        ratios = {"linear": linear_ratios, "geometric": geometric_ratios, "once": step_ratios}[self.schedule]
        return ratios(shape.layers, self._first_layer(shape), rate)

    def _lowest_rate(self, shape: Shape) -> float:
        """Return the rate at which the first layer that prunes is at the floor, and so are all layers after it."""
        return 1.0 - (shape.layers - self._first_layer(shape)) if self.schedule == "linear" else 0.0

    def _counts(self, context: MethodContext, rate: float) -> tuple[Tensor, Tensor]:
        policy = KeepRatio(self._shares(context.shape, rate), context.spec.protects_first)
        return policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)

    def _reduction(self, context: MethodContext, rate: float) -> float:
        return context.reduction(*self._counts(context, rate))

    def _rate(self, context: MethodContext, reduction: float) -> float:
        low = self._lowest_rate(context.shape)
        return bisect(partial(self._reduction, context), reduction, low=low, high=1.0, tolerance=0.0).knob


@dataclass(frozen=True, kw_only=True)
class ThresholdOptions(MethodOptions):
    """Options of a method that keeps tokens by thresholds, whose scale meets a budget."""

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned to only protected tokens kept at the first layer that prunes."""
        pruner = self.build_pruner(context.shape)
        assert pruner is not None
        only_protected = KeepRatio({min(pruner.layers): 0.0})
        lengths, layers = context.lengths["validation"], context.shape.layers
        return 1.0, context.reduction(*only_protected.counts(lengths, layers, context.protected_count))


# -- modules -------------------------------------------------------------------------------------------


class StaticMethod(TokenPruningMethod):
    """Training of the weights on the task alone, with the tokens dropped that evaluation drops."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task loss under "drop", which equals "mask" and costs less; of several budgets the mean."""
        drawn = sandwich(() if self.pruner is None else self.pruner.policy.budgets, self.global_step)
        chosen = [{} if budget is None else {"budget": budget} for budget in drawn]
        found = [self.task_terms(self(batch, "drop", **budget), batch) for budget in chosen]
        return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}


def sandwich(budgets: Sequence[str], step: int) -> Sequence[str | None]:
    """Return the budgets that one step trains: the smallest, the largest, and one between, which the step draws.

    Without several budgets, None: the model as it is. Source: the sandwich rule of universally slimmable networks,
    arXiv:1903.05134.
    """
    if not budgets:
        return (None,)
    ordered = sorted(budgets, key=lambda name: float(name.removesuffix("x")))
    between = ordered[1:-1]
    number = int(torch.randint(len(between), (), generator=generator_of(f"sandwich {step}"))) if between else 0
    return tuple(dict.fromkeys([ordered[0], *between[number : number + 1], ordered[-1]]))


class CalibratedMethod(StaticMethod):
    """A method whose knob is set by running the model on validation, because its effect depends on the weights.

    The knob is set where the hard stage begins and again before each evaluation: what an evaluation measures, and
    the checkpoint saved with it, meets the budget.
    """

    def set_knob(self, share: float) -> None:
        """Prune nothing at 0, all that `options.feasible` promises at 1, and more the larger `share` is."""
        raise NotImplementedError(f"{type(self).__name__} has no knob; define set_knob(share), or meet(measure).")

    def meet(self, measure: Callable[[], float]) -> BisectionResult:
        """Set the knob so that `measure()`, the FLOPs reduction on validation, is what is asked; by bisection."""
        assert self.asked is not None
        least, most = self.options.feasible(self.context)
        # closer than the run is checked, because the budget is measured anew under "mask"
        tolerance, known = self.context.tolerance / 4, {0.0: least, 1.0: most}
        return bisect(
            lambda _: measure(),
            self.asked,
            low=0.0,
            high=1.0,
            tolerance=tolerance,
            iterations=20,
            known=known,
            set_knob=self.set_knob,
        )

    def describe_knob(self) -> str:
        """Return the value of the knob, for the log."""
        raise NotImplementedError(f"{type(self).__name__} has no knob; define describe_knob().")

    def calibrate(self) -> None:
        """Set the knob and log the result."""
        if self.asked is None:
            return
        passes, start = 0, time.monotonic()

        def measure() -> float:
            nonlocal passes
            passes += 1
            context = self.context
            batches = report_progress(context.validation(), f"calibrate  pass {passes}")
            return executed_reduction(self.model, batches, context.shape, "pack")

        bisected = self.meet(measure)
        say(
            f"calibrate  {self.describe_knob()}: {bisected.reached:.2f}x fewer FLOPs, "
            f"{self.asked:.2f}x asked; {passes} passes over validation, {clock(time.monotonic() - start)}"
        )

    def freeze_decisions(self) -> None:
        """Set the knob."""
        self.calibrate()

    def on_validation_epoch_start(self) -> None:
        """Set the knob for the weights that are evaluated."""
        super().on_validation_epoch_start()
        self.calibrate()


class ThresholdMethod(CalibratedMethod):
    """A method with a threshold per layer, whose knob is one scale for all of them."""

    options: ThresholdOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: ThresholdOptions) -> None:
        super().__init__(model, context, options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, Threshold)
        self.policy = self.pruner.policy

    def meet(self, measure: Callable[[], float]) -> BisectionResult:
        """Scale the thresholds."""
        assert self.asked is not None
        _, most = self.options.feasible(self.context)
        # closer than the run is checked, because the budget is measured anew under "mask"
        return self.policy.meet(measure, self.asked, most=most, tolerance=self.context.tolerance / 4)

    def describe_knob(self) -> str:
        """Return the scale."""
        return f"thresholds x {float(self.policy.scale):.4g}"

    def on_validation_epoch_end(self) -> None:
        """Log the thresholds too, 1 = uniform attention."""
        super().on_validation_epoch_end()
        thresholds = {layer: float(self.policy.threshold(layer)) for layer in sorted(self.policy.thresholds)}
        self.log_dict({f"threshold/layer_{layer:02d}": value for layer, value in thresholds.items()})


def report_progress(batches: Iterable[Batch], label: str) -> Iterator[Batch]:
    """Iterate over batches and log progress every few seconds (no live display, which training may already own)."""
    due = time.monotonic() + PLAIN_SECONDS
    for number, batch in enumerate(batches):
        if time.monotonic() >= due:
            say(f"{label}, batch {number + 1}")
            due = time.monotonic() + PLAIN_SECONDS
        yield batch
