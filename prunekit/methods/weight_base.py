"""What every weight-pruning method shares: which statistics it needs, and a score per weight.

A method subclasses `WeightPruningMethod` and says what it `needs` and its `score`; calibration, masks, repair,
evaluation and storage are the pipeline's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunekit.weights.masks import Groups

Statistic = Literal["general", "norms", "magnitude", "fisher", "signed"]
Stream = Literal["open", "domain", "mixed"]


@dataclass(frozen=True)
class Need:
    """A statistic and the text that it is taken on.

    general: normalised reconstruction error; norms: of the inputs; sums over samples of gradients g: magnitude |g w|,
    fisher g^2, signed g. Each sum is a pass of its own, so that no more than one is in memory.
    """

    what: Statistic
    on: Stream


@dataclass(frozen=True)
class Statistics:
    """What was collected for one matrix; None where it was not needed. Sums are over `samples` sequences."""

    general: Float[Tensor, "outputs inputs"] | None = None
    norms: Float[Tensor, "inputs"] | None = None
    magnitude: Float[Tensor, "outputs inputs"] | None = None
    fisher: Float[Tensor, "outputs inputs"] | None = None
    signed: Float[Tensor, "outputs inputs"] | None = None
    samples: int = 1


class WeightPruningMethod:
    """One way to score weights; higher = stays. `options` are the keys of the method's file."""

    adaptive: ClassVar[bool] = False  # True: the mask is chosen during the sweep, block by block, without a score

    def __init__(self, **options: Any) -> None:
        self.options = options

    @property
    def groups(self) -> Groups:
        """Which weights compete."""
        own = self.options
        return Groups(own["group"], own["n_blocks"], own["width"], own["keep"], own["of"], own["max_sparsity"])

    def needs(self) -> list[Need]:
        """What the score is made of; none by default."""
        return []

    def score(self, weight: Float[Tensor, "outputs inputs"], found: Statistics) -> Float[Tensor, "outputs inputs"]:
        """The importance of each weight; neither argument is changed."""
        raise TypeError(f"{type(self).__name__} has no score; write one, or set adaptive = True.")


def present(values: Tensor | None) -> Tensor:
    """A statistic that the method asked for."""
    assert values is not None
    return values
