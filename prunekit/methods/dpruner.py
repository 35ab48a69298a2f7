"""D-Pruner: general importance from open text and domain importance from gradients, in one score. arXiv:2405.06275.

Built from the published idea; the authors' code is not available under a licence and was not used.
"""

from jaxtyping import Float
from torch import Tensor

from prunekit.methods.weight_base import Need, Statistics, WeightPruningMethod
from prunekit.weights.importance import dual_score

SECOND_ORDER = ("dual_add", "dual_virtual", "taylor2_signed")


class DPruner(WeightPruningMethod):
    """The dual score, and its two halves alone as ablations."""

    def needs(self) -> list[Need]:
        """General importance on open text, gradients on domain text, as far as the score uses them."""
        score, found = self.options["score"], []
        if score not in ("domain_only", "taylor2_signed"):
            found.append(Need("general", self.options["general_on"]))
        if score != "general_only":
            found.append(Need("magnitude", self.options["domain_on"]))
        if score in SECOND_ORDER:
            found.append(Need("second", self.options["domain_on"]))
        return found

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
