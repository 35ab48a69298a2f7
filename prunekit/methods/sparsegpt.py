"""SparseGPT: masks chosen while the kept weights are re-fitted. arXiv:2301.00774."""

from __future__ import annotations

from prunekit.methods.weight_base import WeightPruningMethod


class SparseGPT(WeightPruningMethod):
    """Masks from the repair sweep itself; there is no score."""

    adaptive = True
