"""A control that every method has to beat: as many tokens as top-k keeps, those at the beginning."""

from __future__ import annotations

from typing import Any

from prunekit.methods.static import KeepRatioMethod
from prunekit.tokens.scorers import EarlierFirst, Scorer


class First(KeepRatioMethod):
    """Keeps the beginning of each text."""

    @classmethod
    def scorer(cls, **options: Any) -> Scorer:
        """The earlier, the better."""
        return EarlierFirst()
