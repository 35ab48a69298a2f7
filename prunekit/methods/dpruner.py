"""D-Pruner: general importance from open text and domain importance from gradients, in one score. arXiv:2405.06275.

Built from the published idea; the authors' code is not available under a licence and was not used.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistic, Statistics, WeightPruningMethod
from prunekit.weights.importance import dual_score

# the sums of gradients that each score is made of
SUMS: dict[str, tuple[Statistic, ...]] = {
    "general_only": (),
    "domain_only": ("magnitude",),
    "dual_mul": ("magnitude",),
    "dual_virtual": ("magnitude", "fisher"),
    "dual_add": ("fisher",),
    "taylor2_signed": ("fisher", "signed"),
}


class DPruner(WeightPruningMethod):
    """The dual score, and its two halves alone as ablations."""

    def needs(self) -> list[Need]:
        """General importance on open text, gradients on domain text, as far as the score uses them."""
        score, found = self.options["score"], []
        if score not in ("domain_only", "taylor2_signed"):
            found.append(Need("general", self.options["general_on"]))
        return found + [Need(what, self.options["domain_on"]) for what in SUMS[score]]

    def score(self, weight: Float[Tensor, "outputs inputs"], found: Statistics) -> Float[Tensor, "outputs inputs"]:
        """By `method.score`."""
        return dual_score(
            weight,
            found.general,
            found.magnitude,
            found.fisher,
            found.signed,
            samples=found.samples,
            score=self.options["score"],
            lambda_=self.options["lambda_"],
        )
