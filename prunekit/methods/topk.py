"""Top-k: each layer keeps a fixed share of the sentence, the tokens that receive most attention.

Source: the baseline of LTP, arXiv:2107.00910; with `accumulate` the token pruning of SpAtten, arXiv:2012.09852.
"""

from __future__ import annotations

from typing import Any, ClassVar

from prunekit.methods.static import KeepRatioMethod
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived, Scorer


class TopK(KeepRatioMethod):
    """Ranks tokens by the attention they receive in the layer, or accumulated over the layers so far."""

    keys: ClassVar[frozenset[str] | None] = frozenset({"train", "rate", "dense_layers", "schedule", "accumulate"})

    @classmethod
    def scorer(cls, **options: Any) -> Scorer:
        """The canonical score, or its sum over layers."""
        return AccumulatedReceived() if options["accumulate"] else AttentionReceived()
