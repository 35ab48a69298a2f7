"""D-Pruner: general importance from open text and domain importance from gradients, in one score. arXiv:2405.06275.

Built from the published idea; the authors' code is not available under a licence and was not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.data.text.samples import Stream
from prunekit.methods.weight_base import Need, Statistic, Statistics, WeightOptions, WeightPruningMethod
from prunekit.weights.importance import Metric, Score, dual_score

# the statistics of domain text that each score is computed from
DOMAIN_STATISTICS: dict[Score, tuple[Statistic, ...]] = {
    "general_only": (),
    "domain_only": ("magnitude",),
    "dual_mul": ("magnitude",),
    "dual_virtual": ("magnitude", "fisher"),
    "dual_add": ("fisher",),
    "taylor2_signed": ("fisher", "signed"),
}


@dataclass(frozen=True, kw_only=True)
class DPrunerOptions(WeightOptions):
    """The keys of conf/method/dpruner.yaml, explained there."""

    score: Score
    lambda_: float | int
    metric: Metric
    general_on: Stream
    domain_on: Stream

    @property
    def gradient_text(self) -> Stream:
        """The text of the gradients: that of domain importance."""
        return self.domain_on


class DPruner(WeightPruningMethod):
    """The dual score, and each of its halves alone as an ablation."""

    Options = DPrunerOptions
    options: DPrunerOptions

    def needs(self) -> list[Need]:
        """Return general importance on open text and gradients on domain text, as far as the score uses them."""
        options = self.options
        general = [Need("general", options.general_on, options.metric)]
        domain = [Need(what, options.domain_on) for what in DOMAIN_STATISTICS[options.score]]
        return domain if options.score in ("domain_only", "taylor2_signed") else general + domain

    def score(self, weight: Float[Tensor, "outputs inputs"], statistics: Statistics) -> Float[Tensor, "outputs inputs"]:
        """Return the importance by the formula that `method.score` names."""
        return dual_score(
            weight,
            statistics.general,
            statistics.magnitude,
            statistics.fisher,
            statistics.signed,
            samples=statistics.samples,
            score=self.options.score,
            lambda_=self.options.lambda_,
        )

    def variant(self) -> list[str]:
        """Return the score, its lambda, and the texts of its halves if they are not the usual ones."""
        options = self.options
        words: list[str] = [options.score]
        if options.score.startswith("dual"):
            words.append(f"lambda {options.lambda_:g}")
        if options.score != "domain_only" and options.general_on != "open":
            words.append(f"general importance on {options.general_on}")
        if options.score != "general_only" and options.domain_on != "domain":
            words.append(f"domain importance on {options.domain_on}")
        return words
