"""A control that every method has to beat: the same number of tokens as top-k, taken from the beginning of the text."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.methods.static import KeepRatioOptions, StaticMethod
from prunekit.tokens.scorers import EarlierFirst, Scorer


@dataclass(frozen=True, kw_only=True)
class FirstOptions(KeepRatioOptions):
    """The keys of conf/method/first.yaml, explained there."""

    def scorer(self) -> Scorer:
        """Return the scorer that prefers earlier tokens."""
        return EarlierFirst()


class First(StaticMethod):
    """Keeps the beginning of each text."""

    Options = FirstOptions
