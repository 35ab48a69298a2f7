"""Magnitude pruning: remove the smallest weights. The baseline that needs no data."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Statistics, WeightPruningMethod
from prunekit.weights.importance import magnitude_score


class Magnitude(WeightPruningMethod):
    """|w|."""

    def score(self, weight: Float[Tensor, "outputs inputs"], statistics: Statistics) -> Float[Tensor, "outputs inputs"]:
        """Return |w|."""
        return magnitude_score(weight)
