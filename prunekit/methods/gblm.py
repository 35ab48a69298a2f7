"""GBLM-Pruner: weight times input norm plus scaled gradient. arXiv:2311.04902."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistics, WeightPruningMethod, present
from prunekit.weights.importance import gblm_score


class GBLM(WeightPruningMethod):
    """|w| * (input norm + scale * root mean square gradient)."""

    def needs(self) -> list[Need]:
        """Input norms and squared gradients of the same text."""
        return [Need("norms", self.options["calibration"]), Need("fisher", self.options["calibration"])]

    def score(self, weight: Float[Tensor, "outputs inputs"], found: Statistics) -> Float[Tensor, "outputs inputs"]:
        """By the formula of the class."""
        return gblm_score(
            weight, present(found.norms), present(found.fisher), found.samples, self.options["gradient_scale"]
        )
