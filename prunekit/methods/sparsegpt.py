"""SparseGPT: masks chosen while the weights that stay are re-fitted. arXiv:2301.00774."""

from __future__ import annotations

from prunekit.methods.weight_base import WeightPruningMethod


class SparseGPT(WeightPruningMethod):
    """The sweep does everything; there is no score."""

    adaptive = True
