"""A control that every method has to beat: as many tokens as top-k keeps, chosen blindly."""

from __future__ import annotations

from typing import Any, ClassVar

from prunekit.methods.static import KeepRatioMethod
from prunekit.tokens.scorers import RandomOrder, Scorer


class Random(KeepRatioMethod):
    """Keeps tokens in a random order that the seed of the run decides."""

    keys: ClassVar[frozenset[str] | None] = frozenset({"train", "rate", "dense_layers", "schedule", "seed"})

    @classmethod
    def scorer(cls, **options: Any) -> Scorer:
        """An order that knows nothing of the tokens."""
        return RandomOrder(options["seed"])
