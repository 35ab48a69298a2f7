"""The options of a token-pruning method: a frozen dataclass whose fields are the keys of conf/method/<name>.yaml.

Everything that a method decides before its module exists is a method of this object; methods/base.py lists the order in
which the pipeline calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.cost import Shape
from prunekit.methods.context import MethodContext, Training
from prunekit.methods.keys import ConfiguredOptions
from prunekit.tokens.budget import bisect
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner

# typing.Self, which the shape checks of the tests cannot read
AnyOptions = TypeVar("AnyOptions", bound="MethodOptions")


@dataclass(frozen=True, kw_only=True)
class MethodOptions(ConfiguredOptions):
    """Options of a method without keys. Subclasses declare a field per key; defaults belong in the YAML file."""

    def completed(self: AnyOptions, context: MethodContext) -> AnyOptions:
        """Return the options with those filled in that are null and follow from the context; by default unchanged."""
        return self

    def asks(self, context: MethodContext) -> float | None:
        """Return the FLOPs reduction that the run must reach, from the budget or from a key; None if neither asks."""
        return context.budget

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the smallest and the largest FLOPs reduction that can be reached on the validation sentences."""
        return 1.0, 1.0

    def steps(self, context: MethodContext) -> Sequence[float]:
        """Return the FLOPs reductions that can be reached on the validation sentences, where they are a few.

        By default none, which means any between those of `feasible`.
        """
        return ()

    def likely_counts(
        self, context: MethodContext, reduction: float
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Predict how many tokens of each validation sentence enter the two halves of each layer at a FLOPs reduction.

        Only training decides, so this is a guess: each layer that prunes keeps the same share of the tokens that it
        receives. A latency goal is turned into a budget with it.
        """
        shape, lengths = context.shape, context.lengths["validation"]
        pruner = self.build_pruner(shape)
        layers = sorted(pruner.layers) if pruner is not None else []

        def counts(share: float) -> tuple[Tensor, Tensor]:
            policy = KeepRatio({layer: share ** (number + 1) for number, layer in enumerate(layers)})
            return policy.counts(lengths, shape.layers, context.protected_count)

        def reached(share: float) -> float:
            tokens_in, tokens_out = counts(share)
            spent = sum((pruner.scorer.macs(tokens_in[layer]) for layer in layers), 0.0) if pruner is not None else 0.0
            return context.reduction(tokens_in, tokens_out, spent)

        return counts(bisect(reached, reduction, low=0.0, high=1.0, tolerance=1e-3).knob)

    def build_pruner(self, shape: Shape) -> TokenPruner | None:
        """Build the scorer, the policy and the set of layers for a backbone of this shape; None prunes nothing."""
        return None

    def equip(
        self, model: PreTrainedModel, shape: Shape, *, prefix: int | None = None, separator: int | None = None
    ) -> PreTrainedModel:
        """Change a model in place into the one that the method trains, and return it: by default, install the pruner.

        `shape` is that of the model as it is given, and `prefix` and `separator` as `install` takes them.
        """
        return install(model, self.build_pruner(shape), prefix=prefix, separator=separator)

    def trains(self, training: Training) -> bool:
        """Return whether the run fits the model; otherwise the model is calibrated as it is."""
        return training.epochs > 0

    def count_hard_steps(self, training: Training) -> int:
        """Return how many steps at the end of the fit train the weights alone, under fixed decisions; 0 = none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class OptionalTraining(MethodOptions):
    """Options of a method that can also prune the fine-tuned model as it is."""

    train: bool

    def trains(self, training: Training) -> bool:
        """Return whether training is on, by `train` and by the number of epochs."""
        return self.train and super().trains(training)
