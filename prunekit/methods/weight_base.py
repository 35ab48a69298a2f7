"""The base of every weight-pruning method: its options, the statistics it needs, and a score per weight.

A method subclasses `WeightPruningMethod` and defines `needs` and `score`, with an options class of its own where its
file has keys of its own. Calibration, masks, repair, evaluation and storage are the pipeline's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunekit.data.text.samples import Stream
from prunekit.methods.keys import ConfiguredOptions
from prunekit.weights.allocation import Allocation
from prunekit.weights.importance import Metric
from prunekit.weights.masks import GroupKind, Groups

Statistic = Literal["general", "norms", "magnitude", "fisher", "signed"]


@dataclass(frozen=True, kw_only=True)
class WeightOptions(ConfiguredOptions):
    """The keys that all weight-pruning methods share, explained in conf/method/magnitude.yaml.

    A method with keys of its own adds them in a subclass. There are no defaults here: those are the file's.
    """

    sparsity: float | int
    sparsity_of: Literal["prunable", "model"]
    alloc: Allocation
    alloc_spread: float | int

    scope: str | None
    group: GroupKind
    n_blocks: int
    width: int | None
    keep: int
    of: int
    max_sparsity: float | int

    calibration: Stream
    weight_update: Literal["none", "obs"]
    update_on: Stream
    damping: float | int
    chunk: int
    stream: Literal["auto"] | bool
    save_weights: bool
    compact: bool

    @property
    def groups(self) -> Groups:
        """The groups of weights that compete with each other."""
        return Groups(self.group, self.n_blocks, self.width, self.keep, self.of, self.max_sparsity)

    @property
    def gradient_text(self) -> Stream:
        """The text of the gradients by which `alloc=rank` ranks the matrices."""
        return self.calibration


@dataclass(frozen=True)
class Need:
    """A calibration statistic and the text to collect it on.

    general: normalised reconstruction error, by `metric`; norms: L2 norms of the inputs; sums over samples of gradients
    g: magnitude |g w|, fisher g^2, signed g. Each sum takes a pass of its own, so only one is in memory at a time.
    """

    what: Statistic
    on: Stream
    metric: Metric = "obs_chol"


@dataclass(frozen=True)
class Statistics:
    """The statistics of one matrix; None for those that were not collected. Sums are over `samples` sequences."""

    general: Float[Tensor, "outputs inputs"] | None = None
    norms: Float[Tensor, "inputs"] | None = None
    magnitude: Float[Tensor, "outputs inputs"] | None = None
    fisher: Float[Tensor, "outputs inputs"] | None = None
    signed: Float[Tensor, "outputs inputs"] | None = None
    samples: int = 1


class WeightPruningMethod:
    """One way to score weights; the highest scores are kept."""

    Options: ClassVar[type[WeightOptions]] = WeightOptions  # its fields are the keys of the method's file
    adaptive: ClassVar[bool] = False  # True: masks are chosen block by block during the repair sweep, without a score

    def __init__(self, options: WeightOptions) -> None:
        self.options = options

    def needs(self) -> list[Need]:
        """Return the statistics that the score is computed from; none by default."""
        return []

    def score(self, weight: Float[Tensor, "outputs inputs"], statistics: Statistics) -> Float[Tensor, "outputs inputs"]:
        """Return the importance of each weight, without changing the arguments."""
        raise TypeError(f"{type(self).__name__} has no score; write one, or set adaptive = True.")

    def variant(self) -> list[str]:
        """Return what distinguishes this run from others of the method, as words for a row of a table.

        By default that is the calibration text, if the method uses any.
        """
        return [self.options.calibration] if self.adaptive or self.needs() else []


def require(statistic: Tensor | None) -> Tensor:
    """Return a statistic that the method has listed in `needs`, which is therefore not None."""
    assert statistic is not None
    return statistic
