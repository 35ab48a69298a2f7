"""A baseline that every method has to beat: the fine-tuned model with some of its layers, trained like the others.

Source: sentence-transformers' example of distillation; and DistilBERT, arXiv:1910.01108, which takes every other layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, shown
from prunekit.cost import Shape
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext
from prunekit.methods.options import OptionalTraining
from prunekit.models.layers import keep_layers, middle_layers


@dataclass(frozen=True, kw_only=True)
class LayersOptions(OptionalTraining):
    """The keys of conf/method/layers.yaml, explained there."""

    kept: Sequence[int] | None

    def completed(self, context: MethodContext) -> LayersOptions:
        """Choose the layers that meet the budget: all layers cost the same, so their number follows from it.

        Raises:
            ConfigError: the layers that are named do not rise.
        """
        layers = context.shape.layers
        if self.kept is not None:
            if list(self.kept) != sorted(set(self.kept)) or not self.kept:
                raise ConfigError(
                    f"method.kept={shown(list(self.kept))} does not rise from layer to layer.\n"
                    f"Allowed: numbers from 0 to {layers - 1}, each once.\nWrite them in order, as method.kept=[1,3,5]."
                )
            return self
        if context.budget is None:
            return replace(self, kept=tuple(range(layers)))
        budget = context.budget
        number = min(range(1, layers + 1), key=lambda kept: abs(budget * kept / layers - 1))
        return replace(self, kept=middle_layers(layers, number))

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from all layers to one."""
        return 1.0, float(context.shape.layers)

    def steps(self, context: MethodContext) -> Sequence[float]:
        """Return the reduction of each number of layers."""
        layers = context.shape.layers
        return [layers / kept for kept in range(layers, 0, -1)]

    def likely_counts(
        self, context: MethodContext, reduction: float
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Return the exact counts: whole texts in each layer that is kept."""
        kept = round(context.shape.layers / reduction)
        counts = context.lengths["validation"].float().expand(kept, -1)
        return counts, counts

    def equip(
        self, model: PreTrainedModel, shape: Shape, *, prefix: int | None = None, separator: int | None = None
    ) -> PreTrainedModel:
        """Remove the other layers."""
        assert self.kept is not None
        return super().equip(keep_layers(model, self.kept), shape, prefix=prefix, separator=separator)


class Layers(TokenPruningMethod):
    """Keeps some layers, for all tokens: what is saved is an ordinary, smaller model."""

    Options = LayersOptions
