"""Top-k: each layer keeps a fixed share of the sentence, the tokens that receive most attention.

Source: the baseline of LTP, arXiv:2107.00910; with `accumulate` the token pruning of SpAtten, arXiv:2012.09852.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.methods.static import KeepRatioOptions, StaticMethod
from prunekit.tokens.scorers import AccumulatedReceived, AttentionReceived, Scorer


@dataclass(frozen=True, kw_only=True)
class TopKOptions(KeepRatioOptions):
    """The keys of conf/method/topk.yaml, explained there."""

    accumulate: bool

    def scorer(self) -> Scorer:
        """Return the canonical score, or its sum over the layers so far."""
        return AccumulatedReceived() if self.accumulate else AttentionReceived()


class TopK(StaticMethod):
    """Keeps the tokens that receive most attention in the layer, or accumulated over the layers so far."""

    Options = TopKOptions
