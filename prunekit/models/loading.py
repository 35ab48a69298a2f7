"""Stock Hugging Face models, loaded with the head that a task needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, listed, shown
from prunekit.data.kinds.base import TaskKind
from prunekit.models.answers import SEVERAL
from prunekit.models.classes import class_order, shown_names
from prunekit.models.heads import CLASSIFIER, HEADS, HeadType, reorder_classes, stored_head
from prunekit.models.reading import read_config, read_model
from prunekit.models.sentence_folder import MODULES


def load_model(
    source: str | Path, kind: TaskKind, labels: Sequence[str] | None, *, new_head: bool = True
) -> PreTrainedModel:
    """Load a model with the head that a kind of task needs; `labels` are the class names, None where there are none.

    The outputs of a classifier are put into the order of `labels`. A model without a head gets one at random, unless
    `new_head` is false; a missing decoder is always an error.

    Raises:
        ConfigError: `source` has a head of another kind or size or with other classes, or lacks the head.
    """
    check_head(source, HEADS[kind], new_head=new_head)
    return _load(source, HEADS[kind], labels)


def check_head(source: str | Path, head: HeadType, *, new_head: bool = False) -> None:
    """Check that a model has this head; with `new_head`, that it has none other. Reads its configuration only.

    Raises:
        ConfigError: it has not.
    """
    stored = stored_head(source, head)
    if stored == head or (stored is None and new_head and not head.decodes):
        return
    if stored is not None:
        raise ConfigError(
            f"{source} has a head for {stored.pipeline}, but the task is {head.pipeline}.\n"
            "Allowed: a model fine-tuned on this task, or a backbone without a head.\nChoose another model."
        )
    if head.has_modules:
        raise ConfigError(
            f"{source} is no folder of a SentenceTransformer: it has no {MODULES} with a Pooling.\n"
            "Allowed: a folder that SentenceTransformer.save wrote.\nChoose such a model, or another kind of task."
        )
    what = "decoder" if head.decodes else "head"
    raise ConfigError(
        f"{source} has no {what}, but the task is {head.pipeline}: it is a {_architecture(source)}.\n"
        f"Allowed: a model that {'translates, as Marian or T5' if head.decodes else 'was fine-tuned on the task'}.\n"
        "Choose such a model" + ("." if head.decodes else ", or train the head first: method=dense backbone.path=<it>.")
    )


def check_classes(source: str | Path, labels: Sequence[str] | None, *, several: bool = False) -> None:
    """Check that a fine-tuned classifier has an output for each class; None = one output, which is a value.

    `several` means that a text may have several of the classes.

    Raises:
        ConfigError: it has others.
    """
    config = read_config(source)
    stored, asked = config.num_labels, len(labels) if labels else 1
    if stored != asked:
        classes = f": {shown_names(labels)}" if labels else ""
        names = [str(config.id2label.get(number, "")) for number in range(stored)]
        if labels and stored == 1:
            advice = "Give task.kind=regression, if its output is a value."
        elif labels and set(labels) < set(names) and several:
            advice = f"Give a file in which all of its labels occur: {listed(names)}."
        elif labels and set(labels) < set(names):
            advice = f"Name all of its classes: task.labels=[{','.join(names)}]."
        else:
            advice = "Choose another model."
        theirs = f"; the model has {shown_names(names)}" if labels and stored > 1 else ""
        raise ConfigError(
            f"{source} has a head with {stored} outputs, but the task has {asked}{classes}{theirs}.\n"
            f"Allowed: a model fine-tuned on this task, or a backbone without a head.\n{advice}"
        )
    if several != (config.problem_type == SEVERAL):
        raise _other_problem(source, config.problem_type, several=several)
    if labels:
        class_order(source, config, labels)


def _other_problem(source: str | Path, problem: str | None, *, several: bool) -> ConfigError:
    if several:
        return ConfigError(
            f"{source} does not say that a text may have several classes (problem_type={shown(problem)}).\n"
            f'Allowed with task.kind=multilabel: problem_type="{SEVERAL}" in config.json.\n'
            "Write it there if the model was trained so: each output by itself; or choose another model."
        )
    return ConfigError(
        f"{source} gives a text several classes at once (problem_type={SEVERAL}).\n"
        "Allowed: one class per text, or one value.\nChoose another model, or set task.kind=multilabel."
    )


def load_classifier(source: str | Path, *, labels: Sequence[str] | None) -> PreTrainedModel:
    """Load a sequence classifier with the weights of `source`, in float32; draw a missing head from torch's RNG.

    `labels` are the class names, or None for regression (one output).

    Raises:
        ConfigError: `source` has a head of another size, or with other classes.
    """
    return _load(source, CLASSIFIER, labels)


def load_stock(folder: str | Path) -> PreTrainedModel:
    """Load the plain Hugging Face model of a folder with the head it was saved with, in float32 and evaluation mode.

    Raises:
        ConfigError: it has no head.
    """
    return read_model(_head_of(folder).auto, folder).eval()


def _head_of(source: str | Path) -> HeadType:
    head = stored_head(source)
    if head is None:
        raise ConfigError(
            f"{source} has no head: it is a {_architecture(source)}.\n"
            f"Allowed: {', '.join(dict.fromkeys(head.pipeline for head in HEADS.values()))}.\n"
            "Give the folder of a fine-tuned model."
        )
    return head


def _architecture(source: str | Path) -> str:
    return (read_config(source).architectures or ["model that names no architecture"])[0]


def _load(source: str | Path, head: HeadType, labels: Sequence[str] | None) -> PreTrainedModel:
    has_head = stored_head(source, head) == head
    is_classifier = has_head and head.has_classes
    if is_classifier:
        check_classes(source, labels, several=head.several)
    order = class_order(source, read_config(source), labels) if is_classifier and labels else []
    model = read_model(head.auto, source, new_head=not has_head, **head.settings(labels))
    if order != sorted(order):
        reorder_classes(model, order)
    return model
