"""What methods without a learned decision share: one knob, set by bisection to meet the budget, and plain training.

No method of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.console import PLAIN_SECONDS, clock, say
from prunekit.cost import Shape
from prunekit.evaluation.evaluate import Batch, executed_reduction
from prunekit.losses import task_loss
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext, Training
from prunekit.tokens.budget import Bisected, bisect
from prunekit.tokens.policies import KeepRatio, Threshold, geometric_ratios, linear_ratios, published_dense_layers
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer


class StaticMethod(TokenPruningMethod):
    """Trains the weights on the task alone, with the tokens removed that evaluation removes."""

    @classmethod
    def count_hard_steps(cls, training: Training, **options: Any) -> int:
        """All: nothing about the decisions is learned."""
        return training.steps

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The task loss under "drop", which is "mask" at less cost."""
        logits = self(batch, "drop")
        return {"task": task_loss(logits, batch["labels"], self.context.spec.kind)}


class CalibratedMethod(StaticMethod):
    """Has a knob that is found by running the model on the validation texts, because what it does hangs on the weights.

    It is set where training starts and again before each evaluation: what an evaluation measures, and the checkpoint
    of it holds, meets the budget.
    """

    def meet(self, measure: Callable[[], float]) -> Bisected:
        """Sets the knob so that `measure()`, the FLOPs reduction on validation, is what is asked."""
        raise NotImplementedError(f"{type(self).__name__} has no knob; define meet(measure).")

    def knob(self) -> str:
        """Where the knob stands, for the reader."""
        raise NotImplementedError(f"{type(self).__name__} has no knob; define knob().")

    def calibrate(self) -> None:
        """Turns the knob; says what came of it."""
        if self.asked is None:
            return
        passes, start = 0, time.monotonic()

        def measure() -> float:
            nonlocal passes
            passes += 1
            context = self.context
            batches = aloud(context.validation(), f"calibrate  pass {passes}")
            return executed_reduction(self.model, batches, context.shape, "pack")

        found = self.meet(measure)
        say(
            f"calibrate  {self.knob()}: {found.reached:.2f}x fewer FLOPs, "
            f"{self.asked:.2f}x asked; {passes} passes over validation, {clock(time.monotonic() - start)}"
        )

    def freeze_decisions(self) -> None:
        """Turns the knob."""
        self.calibrate()

    def on_validation_epoch_start(self) -> None:
        """Turns the knob to suit the weights that are evaluated."""
        super().on_validation_epoch_start()
        self.calibrate()


class ThresholdMethod(CalibratedMethod):
    """Keeps tokens by thresholds, whose scale meets a budget."""

    def __init__(self, model: PreTrainedModel, context: MethodContext, **options: Any) -> None:
        super().__init__(model, context, **options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, Threshold)
        self.policy = self.pruner.policy

    @classmethod
    def feasible(cls, context: MethodContext, **options: Any) -> tuple[float, float]:
        """From nothing pruned to everything but protected tokens gone at the first layer that prunes."""
        pruner = cls.build_pruner(context.shape, **options)
        assert pruner is not None
        only_cls = KeepRatio({min(pruner.layers): 0.0})
        lengths, layers = context.lengths["validation"], context.shape.layers
        return 1.0, context.reduction(*only_cls.counts(lengths, layers, context.protected_count))

    def meet(self, measure: Callable[[], float]) -> Bisected:
        """Scales the thresholds."""
        assert self.asked is not None
        _, most = self.feasible(self.context, **self.given)
        # closer than the run is checked, because the budget is measured anew under "mask"
        return self.policy.meet(measure, self.asked, most=most, tolerance=self.context.tolerance / 4)

    def knob(self) -> str:
        """The scale."""
        return f"thresholds x {float(self.policy.scale):.4g}"

    def on_validation_epoch_end(self) -> None:
        """Logs the thresholds too, 1 = uniform attention."""
        super().on_validation_epoch_end()
        found = {f"threshold/layer_{n:02d}": float(self.policy.threshold(n)) for n in sorted(self.policy.thresholds)}
        self.log_dict(found)


def aloud(batches: Iterable[Batch], label: str) -> Iterator[Batch]:
    """The batches, with a line now and then; no live line, because a fit may have one already."""
    due = time.monotonic() + PLAIN_SECONDS
    for number, batch in enumerate(batches):
        if time.monotonic() >= due:
            say(f"{label}, batch {number + 1}")
            due = time.monotonic() + PLAIN_SECONDS
        yield batch


class KeepRatioMethod(StaticMethod):
    """Keeps the best share of each sentence: whole in the first layers, then down to `rate`, linearly or by a factor.

    Subclasses name the scorer. With a budget the rate is found from the lengths of the validation sentences; no
    weight plays a part in it, so it holds whatever training does.
    """

    keys: ClassVar[frozenset[str] | None] = frozenset({"train", "rate", "dense_layers", "schedule"})

    def __init__(self, model: PreTrainedModel, context: MethodContext, **options: Any) -> None:
        super().__init__(model, context, **options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, KeepRatio)
        if self.asked is not None:
            shares = _shares(context.shape, options, _rate(context, options, self.asked))
            self.pruner.policy.ratios = {layer: shares[layer] for layer in sorted(self.pruner.layers)}

    @classmethod
    def scorer(cls, **options: Any) -> Scorer:
        """Who says which tokens are best."""
        raise NotImplementedError(f"{cls.__name__} names no scorer; define scorer(**options).")

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """The scorer, and shares of the layers that prune; of all layers where the scorer looks back."""
        scorer = cls.scorer(**options)
        shares = _shares(shape, options, 1.0 if options["rate"] is None else options["rate"])
        layers = range(0 if "previous" in scorer.needs else _dense(shape, options), shape.layers)
        return TokenPruner(scorer, KeepRatio({layer: shares[layer] for layer in layers}), layers)

    @classmethod
    def feasible(cls, context: MethodContext, **options: Any) -> tuple[float, float]:
        """From nothing pruned to the floor of the schedule at every layer that may prune."""
        return 1.0, _reduction(context, options, _lowest_rate(context.shape, options))

    @classmethod
    def likely_counts(
        cls, context: MethodContext, reduction: float, **options: Any
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Exact: those of the rate that the reduction needs."""
        policy = KeepRatio(_shares(context.shape, options, _rate(context, options, reduction)))
        return policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)


def _dense(shape: Shape, options: Mapping[str, Any]) -> int:
    given = options["dense_layers"]
    return min(shape.layers, published_dense_layers(shape.layers) if given is None else given)


def _shares(shape: Shape, options: Mapping[str, Any], rate: float) -> dict[int, float]:
    ratios = {"linear": linear_ratios, "geometric": geometric_ratios}[options["schedule"]]
    return ratios(shape.layers, _dense(shape, options), rate)


def _lowest_rate(shape: Shape, options: Mapping[str, Any]) -> float:
    """The rate at which the first layer that prunes is at the floor, and so are all behind it."""
    return 1.0 - (shape.layers - _dense(shape, options)) if options["schedule"] == "linear" else 0.0


def _reduction(context: MethodContext, options: Mapping[str, Any], rate: float) -> float:
    policy = KeepRatio(_shares(context.shape, options, rate))
    lengths, layers = context.lengths["validation"], context.shape.layers
    return context.reduction(*policy.counts(lengths, layers, context.protected_count))


def _rate(context: MethodContext, options: Mapping[str, Any], asked: float) -> float:
    low = _lowest_rate(context.shape, options)
    return bisect(partial(_reduction, context, options), asked, low=low, high=1.0, tolerance=0.0).knob
