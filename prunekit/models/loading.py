"""Stock Hugging Face models, loaded with the head that a task needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from prunekit.console import silence
from prunekit.data.kinds.base import TaskKind
from prunekit.models.heads import CLASSIFIER, HEADS, HeadType, stored_head


def load_model(source: str | Path, kind: TaskKind, labels: Sequence[str] | None) -> PreTrainedModel:
    """Load a model with the head that a kind of task needs; `labels` are the class names, None where there are none.

    A missing head is initialised at random, but a missing decoder is an error.

    Raises:
        ValueError: `source` has a head of another kind or size, or lacks the decoder that translation needs.
    """
    head, stored = HEADS[kind], stored_head(source)
    if stored is not None and stored != head:
        raise ValueError(
            f"{source} has a head for {stored.pipeline}, but the task is {head.pipeline}; "
            f"choose a model fine-tuned on this task, or a backbone without a head."
        )
    if stored is None and head.decodes:
        raise ValueError(
            f"{source} has no decoder, but the task is {head.pipeline}; "
            f"choose a model that translates, as Marian or T5."
        )
    return _load(source, head, labels)


def load_classifier(source: str | Path, *, labels: Sequence[str] | None) -> PreTrainedModel:
    """Load a sequence classifier with the weights of `source`, in float32; draw a missing head from torch's RNG.

    `labels` are the class names, or None for regression (one output).

    Raises:
        ValueError: `source` has a head of another size.
    """
    return _load(source, CLASSIFIER, labels)


def load_stock(folder: str | Path) -> PreTrainedModel:
    """Load the plain Hugging Face model of a folder with the head it was saved with, in float32 and evaluation mode."""
    with silence("transformers"):  # its report of a new head, which fine-tuning expects
        return (stored_head(folder) or CLASSIFIER).auto.from_pretrained(folder, dtype=torch.float32).eval()


def _load(source: str | Path, head: HeadType, labels: Sequence[str] | None) -> PreTrainedModel:
    config, settings = AutoConfig.from_pretrained(source), head.settings(labels)
    count = settings.get("num_labels", config.num_labels)
    if stored_head(source) == head and config.num_labels != count:
        raise ValueError(
            f"{source} has a head with {config.num_labels} outputs, but the task has {count}; "
            f"choose a model fine-tuned on this task, or a backbone without a head."
        )
    with silence("transformers"):  # its report of a new head, which fine-tuning expects
        return head.auto.from_pretrained(source, **settings, dtype=torch.float32)
