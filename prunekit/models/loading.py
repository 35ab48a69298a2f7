"""Load stock Hugging Face models with the head that a task needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from prunekit.console import silenced
from prunekit.data.spec import TaskKind
from prunekit.models.heads import CLASSIFIER, HEADS, READER, TRANSLATOR, stored_head


def load_model(source: str | Path, kind: TaskKind, labels: Sequence[str] | None) -> PreTrainedModel:
    """A model with the head that a kind of task needs; `labels` are the class names, None where there are none.

    A head that is missing is new, except that nobody translates with a new decoder.

    Raises:
        ValueError: `source` has a head of another kind or size, or no decoder where one is needed.
    """
    head, stored = HEADS[kind], stored_head(source)
    if stored is not None and stored is not head:
        raise ValueError(
            f"{source} has a head for {stored.pipeline}, but the task is {head.pipeline}; "
            f"choose a model fine-tuned on this task, or a backbone without a head."
        )
    if head is TRANSLATOR:
        if stored is None:
            raise ValueError(
                f"{source} has no decoder, but the task is {head.pipeline}; "
                f"choose a model that translates, as Marian or T5."
            )
        with silenced("transformers"):  # its report about a new head, which fine-tuning expects
            return head.auto.from_pretrained(source, dtype=torch.float32)
    if head is not READER:
        return load_classifier(source, labels=labels)
    with silenced("transformers"):
        return head.auto.from_pretrained(source, num_labels=2, dtype=torch.float32)


def load_classifier(source: str | Path, *, labels: Sequence[str] | None) -> PreTrainedModel:
    """A sequence classifier with the weights of `source`, in float32; a missing head is drawn from torch's RNG.

    `labels` are the class names, or None for regression (one output).

    Raises:
        ValueError: `source` has a head of another size.
    """
    config = AutoConfig.from_pretrained(source)
    count = len(labels) if labels else 1
    stored = config.num_labels if stored_head(source) is CLASSIFIER else None
    if stored not in (None, count):
        raise ValueError(
            f"{source} has a head with {stored} outputs, but the task has {count}; "
            f"choose a model fine-tuned on this task, or a backbone without a head."
        )
    names = {i: str(name) for i, name in enumerate(labels)} if labels else {0: "score"}
    with silenced("transformers"):
        return CLASSIFIER.auto.from_pretrained(
            source,
            num_labels=count,
            id2label=names,
            label2id={name: i for i, name in names.items()},
            problem_type="single_label_classification" if labels else "regression",
            dtype=torch.float32,
        )


def load_stock(folder: str | Path) -> PreTrainedModel:
    """The plain Hugging Face model of a folder, with the head it was saved with, in float32 and evaluation mode."""
    with silenced("transformers"):
        return (stored_head(folder) or CLASSIFIER).auto.from_pretrained(folder, dtype=torch.float32).eval()
