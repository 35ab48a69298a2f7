"""GBLM-Pruner: weight times input norm plus scaled gradient. arXiv:2311.04902."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistics, WeightOptions, WeightPruningMethod, require
from prunekit.weights.importance import gblm_score


@dataclass(frozen=True, kw_only=True)
class GBLMOptions(WeightOptions):
    """The keys of conf/method/gblm.yaml, explained there."""

    gradient_scale: float | int


class GBLM(WeightPruningMethod):
    """|w| * (input norm + scale * root mean square gradient)."""

    Options = GBLMOptions
    options: GBLMOptions

    def needs(self) -> list[Need]:
        """Return the input norms and the squared gradients of the same text."""
        return [Need("norms", self.options.calibration), Need("fisher", self.options.calibration)]

    def score(self, weight: Float[Tensor, "outputs inputs"], statistics: Statistics) -> Float[Tensor, "outputs inputs"]:
        """Return |w| * (input norm + scale * root mean square gradient)."""
        norms, fisher = require(statistics.norms), require(statistics.fisher)
        return gblm_score(weight, norms, fisher, statistics.samples, self.options.gradient_scale)
