"""A control that every method has to beat: the same number of tokens as top-k, chosen at random."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.methods.static import KeepRatioOptions, StaticMethod
from prunekit.tokens.scorers import RandomOrder, Scorer


@dataclass(frozen=True, kw_only=True)
class RandomOptions(KeepRatioOptions):
    """The keys of conf/method/random.yaml, explained there."""

    seed: int

    def scorer(self) -> Scorer:
        """Return the scorer that ranks by position, length and `seed` alone."""
        return RandomOrder(self.seed)


class Random(StaticMethod):
    """Keeps tokens in a random order that depends on the seed of the run."""

    Options = RandomOptions
