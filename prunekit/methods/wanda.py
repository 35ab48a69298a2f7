"""Wanda: weight times the norm of its input, compared within a row. arXiv:2306.11695."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistics, WeightPruningMethod, require
from prunekit.weights.importance import wanda_score


class Wanda(WeightPruningMethod):
    """|w| * input norm."""

    def needs(self) -> list[Need]:
        """Return the input norms."""
        return [Need("norms", self.options.calibration)]

    def score(self, weight: Float[Tensor, "outputs inputs"], statistics: Statistics) -> Float[Tensor, "outputs inputs"]:
        """Return |w| * input norm."""
        return wanda_score(weight, require(statistics.norms))
