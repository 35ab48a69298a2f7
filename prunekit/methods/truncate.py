"""A baseline that every method has to beat: the fine-tuned model on shorter texts, as truncation=True makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError
from prunekit.cost import Shape
from prunekit.methods.context import MethodContext
from prunekit.methods.static import StaticMethod, StaticOptions
from prunekit.tokens.budget import bisect
from prunekit.tokens.encoder import install

LEAST = {False: 3, True: 6}  # tokens of a text, and of a pair: one of each, besides the special ones


@dataclass(frozen=True, kw_only=True)
class TruncateOptions(StaticOptions):
    """The keys of conf/method/truncate.yaml, explained there."""

    tokens: int | None

    def completed(self, context: MethodContext) -> TruncateOptions:
        """Choose the length whose cost on the validation texts is nearest to the budget.

        Raises:
            ConfigError: a task that asks about tokens which would be cut.
        """
        if not context.spec.kind.labels_texts and not context.spec.kind.gives_vectors:
            raise ConfigError(
                f"method=truncate cuts texts, but task={context.spec.name} asks about each of their tokens.\n"
                "Allowed: tasks with one answer per text.\nChoose a method that drops tokens inside the encoder."
            )
        if context.budget is None:
            return self
        return replace(self, tokens=self._length(context, context.budget))

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from whole texts to one word of each."""
        return 1.0, self._reduction(context, float(self._least(context)))

    def steps(self, context: MethodContext) -> Sequence[float]:
        """Return the reductions of the length that was chosen, and of one token less and one more."""
        assert self.tokens is not None
        lengths = range(max(self._least(context), self.tokens - 1), min(context.spec.max_length, self.tokens + 1) + 1)
        return [self._reduction(context, float(length)) for length in lengths]

    def likely_counts(
        self, context: MethodContext, reduction: float
    ) -> tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]]:
        """Return the exact counts, the same in all layers."""
        return self._counts(context, self._length(context, reduction))

    def equip(
        self, model: PreTrainedModel, shape: Shape, *, prefix: int | None = None, separator: int | None = None
    ) -> PreTrainedModel:
        """Make the model read cut texts."""
        return install(model, None, prefix=prefix, longest=self.tokens)

    def _least(self, context: MethodContext) -> int:
        # an embedder reads the texts of a pair one by one
        has_pairs = context.spec.text_pair is not None and not context.spec.kind.gives_vectors
        return min(LEAST[has_pairs], context.spec.max_length)

    def _counts(self, context: MethodContext, length: float) -> tuple[Tensor, Tensor]:
        counts = context.lengths["validation"].clamp(max=round(length)).float().expand(context.shape.layers, -1)
        return counts, counts

    def _reduction(self, context: MethodContext, length: float) -> float:
        return context.reduction(*self._counts(context, length))

    def _length(self, context: MethodContext, reduction: float) -> int:
        low, high = float(self._least(context)), float(context.spec.max_length)
        return round(bisect(partial(self._reduction, context), reduction, low=low, high=high, tolerance=0.0).knob)


class Truncate(StaticMethod):
    """Reads the beginning of each text; of a pair, of the longer one first."""

    Options = TruncateOptions
