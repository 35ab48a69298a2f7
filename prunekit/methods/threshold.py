"""Manual thresholds: LTP without learning, a line of thresholds on the attention received.

Source: the ablation of LTP, arXiv:2107.00910; ltp.md 3.2.
"""

from __future__ import annotations

from typing import Any, ClassVar

from prunekit.cost import Shape
from prunekit.methods.static import ThresholdMethod
from prunekit.tokens.encoder import TokenPruner
from prunekit.tokens.policies import Threshold, linear_thresholds
from prunekit.tokens.scorers import AttentionReceived


class ManualThreshold(ThresholdMethod):
    """Layer l of L keeps what receives at least final * l / L; the budget, or a key, says how much `final` is."""

    keys: ClassVar[frozenset[str] | None] = frozenset({"train", "final_threshold", "reference_length"})

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """The canonical score, in whose unit the line ends at 1 before a budget scales it."""
        given = options["final_threshold"]
        final = 1.0 if given is None else given * options["reference_length"]
        thresholds = linear_thresholds(shape.layers, final)
        return TokenPruner(AttentionReceived(), Threshold(thresholds), thresholds)
