"""What a task of one's own takes from the model that was given: kind and length. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.data.kinds.distilled import DISTILLED_MULTILABEL, WITHOUT_LABELS
from prunekit.data.kinds.embedding import DISTILLED_EMBEDDING, EMBEDDING
from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.registry import KINDS
from prunekit.models.sentence_folder import is_embedder, longest_text_set, scores_of
from prunekit.tokens.families.positions import count_positions

THRESHOLDS = "label_thresholds"  # of ours in config.json: a probability per output
EMBEDDING_SIZE = "vector_size"  # of ours in config.json of an embedder: how many numbers its vectors have
OF_TEXTS = (CLASSIFICATION.name, REGRESSION.name, EMBEDDING.name, DISTILLED_EMBEDDING.name)  # what an embedder may do
UNLIMITED = 10**6  # transformers writes 10**30 where a tokenizer knows no longest text


def with_settings_of(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's block with what it leaves open, as the model in a folder was trained.

    An embedder, a folder of sentence-transformers, makes a task one of vectors. A model with one output makes a task
    that names no classes a regression, one with several labels per text a multilabel task. Of texts without labels its
    outputs are learned: the classes are its own.
    """
    config, found = read_object(folder / "config.json"), dict(task)
    if found.get("kind") == "classification" and found.get("labels") is None:
        has_one = output_count(folder) == 1
        problem = config.get("problem_type")
        found["kind"] = "regression" if has_one or problem == "regression" else "classification"
        if problem == "multi_label_classification" and not has_one:
            found["kind"] = "multilabel"
    if is_embedder(folder) and found.get("kind") in OF_TEXTS:
        found |= _own_vectors(found)
    elif has_no_labels(found):
        found |= _own_answers(found, config)
    if "max_length" in found and found["max_length"] is None:
        found["max_length"] = longest_text_of(folder, config)
    return found


def has_no_labels(task: Mapping[str, Any]) -> bool:
    """Return whether a task's block says that its texts have no labels: label=null where a model could learn some."""
    names = {*WITHOUT_LABELS, *(kind.name for kind in WITHOUT_LABELS.values())}
    return task.get("label", "") is None and task.get("kind") in names


def _own_vectors(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of a task whose texts an embedder reads; metrics that vectors do not have give way to theirs."""
    kind = DISTILLED_EMBEDDING if task.get("label", "") is None else EMBEDDING
    has_own = set(task.get("metrics") or ()) <= set(kind.metrics)
    return {"kind": kind.name} | ({} if has_own else {"metrics": None, "score": None})


def _own_answers(task: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of a task without labels, and the classes and thresholds of the model that answers."""
    kind = WITHOUT_LABELS.get(task["kind"], KINDS[task["kind"]])
    if kind.predicts_value:
        return {"kind": kind.name}
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names:  # transformers writes none where they are these
        names = {number: f"LABEL_{number}" for number in range(2)}
    stored = config.get(THRESHOLDS)
    several = {"thresholds": stored} if kind is DISTILLED_MULTILABEL and isinstance(stored, list) else {}
    return {"kind": kind.name, "labels": task.get("labels") or [str(name) for name in names.values()], **several}


def output_count(folder: Path) -> int:
    """Return the number of outputs of the classifier in a folder; transformers writes no names where there are two.

    Raises:
        ConfigError: it is a CrossEncoder with modules that are not computed here.
    """
    if (scores := scores_of(folder)) is not None:
        return scores
    names = read_object(folder / "config.json").get("id2label")
    return len(names) if isinstance(names, Mapping) and names else 2


def longest_text_of(folder: Path, config: Mapping[str, Any] | None = None) -> int | None:
    """Return the number of tokens at which a model was trained or tested; else the most that it reads; None = unknown.

    It is written by prunekit, by sentence-transformers, or in tokenizer.json where a tokenizer was told to cut texts.
    """
    config = read_object(folder / "config.json") if config is None else config
    trained = read_object(folder / "prunekit.json").get("max_length")
    truncation = read_object(folder / "tokenizer.json").get("truncation")
    cut = truncation.get("max_length") if isinstance(truncation, dict) else None
    for length in (trained, longest_text_set(folder), cut):
        if isinstance(length, int) and 0 < length < UNLIMITED:
            return length
    numbers = (config.get(key) for key in ("max_position_embeddings", "pad_token_id"))
    positions, padding = (number if isinstance(number, int) else None for number in numbers)
    limits = [
        read_object(folder / "tokenizer_config.json").get("model_max_length"),
        count_positions(str(config.get("model_type")), positions, padding),
    ]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < UNLIMITED]
    return min(known, default=None)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is none: a model is checked when it is loaded."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
