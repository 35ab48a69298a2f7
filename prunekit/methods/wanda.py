"""Wanda: weight times the norm of its input, compared within a row. arXiv:2306.11695."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistics, WeightPruningMethod, present
from prunekit.weights.importance import wanda_score


class Wanda(WeightPruningMethod):
    """|w| * input norm."""

    def needs(self) -> list[Need]:
        """Input norms."""
        return [Need("norms", self.options["calibration"])]

    def score(self, weight: Float[Tensor, "outputs inputs"], found: Statistics) -> Float[Tensor, "outputs inputs"]:
        """|w| * input norm."""
        return wanda_score(weight, present(found.norms))
