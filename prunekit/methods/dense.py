"""Plain fine-tuning: the dense baseline, and the teacher that pruning runs share."""

from __future__ import annotations

from prunekit.methods.base import TokenPruningMethod


class Dense(TokenPruningMethod):
    """Fine-tuning of the backbone on the task, without pruning."""
