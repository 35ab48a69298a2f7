"""Fill in the block of task=hub from the dataset that it names: its columns, classes, kind and splits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.console import say
from prunekit.data.contents import content_digest
from prunekit.data.hub import is_folder
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.splits import read_all_splits
from prunekit.data.tables import Table

TEXTS = ("text", "sentence", "content", "review", "document", "body", "message", "tweet", "title", "question")
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "passage"),
)
LABELS = ("label", "labels", "class", "category", "target", "score", "stars", "coarse_label")
WORDS = ("tokens", "words")  # columns of lists of words, whose labels are in one of TAGS
TAGS = ("ner_tags", "ner", "tags", "labels", "label")
VALIDATION = ("validation", "valid", "val", "dev", "validation_matched")
Label = str | tuple[str, ...]  # a column, or several
UNKNOWN = (-1, None)  # labels of tests that are kept secret
NAMED = ("classification", "multilabel", "tokens")  # kinds whose labels have the names that a dataset gives
SAMPLE = 1000  # rows that a column is known by


def complete_task(task: Mapping[str, Any], cache_dir: Path | None = None) -> dict[str, Any]:
    """Return the block of a task with what it leaves open read from its dataset; other tasks are as they are.

    What was chosen is printed once.

    Raises:
        ConfigError: there is no such dataset, or it does not say which column is meant.
    """
    if task.get("dataset") is None or task.get("synthetic_rows"):
        return dict(task)
    given = tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in task.items()))
    files = content_digest({"dataset": task["dataset"]}) if is_folder(task["dataset"]) else ""
    return dict(task) | _completed(given, files, cache_dir)


@cache
def _completed(given: tuple[tuple[str, Any], ...], files: str, cache_dir: Path | None) -> dict[str, Any]:
    """Return what the block leaves open; `files` is a digest of a folder's, which may change under the same name."""
    task = dict(given)
    kind = task["kind"] or ("multilabel" if isinstance(task["label"], tuple) else "classification")
    spec = TaskSpec.from_config(task | {"kind": kind, "text": task["text"] or "text"})
    splits = read_all_splits(spec, find_task(spec), cache_dir)
    train = splits.get(spec.train_split)
    if train is None:
        raise ConfigError(
            f"task.dataset={spec.dataset} has no split {spec.train_split!r}; it has {', '.join(splits)}.\n"
            "Allowed: one of these.\nSet task.train_split=..."
        )
    found: dict[str, Any] = {}
    if task["name"] == "hub" and not is_folder(
        spec.dataset or ""
    ):  # a folder's copies are one run, whatever their names
        found["name"] = "_".join(part for part in (Path(spec.dataset or "").name, spec.subset) if part)
    words = _words(train, task["text"]) if task["kind"] in (None, "tokens") else None
    if words is not None:
        found["kind"], found["text"] = "tokens", words
    elif task["text"] is None:
        found["text"], found["text_pair"] = _texts(spec, train, task["text_pair"], task["label"])
    label = task["label"] or _label(spec, train, has_words=words is not None)
    found["label"] = list(label) if isinstance(label, tuple) else label
    if words is None:
        found["kind"] = task["kind"] or _kind(train, label)
    if found["kind"] in NAMED and task["labels"] is None and label in train.classes:
        found["labels"] = list(train.classes[label])
    if task["validation_splits"] is None:
        found["validation_splits"] = [name for name in VALIDATION if name in splits][:1]
    if task["test_split"] is None and "test" in splits and not _is_secret(splits["test"], label):
        found["test_split"] = "test"
    _tell(spec, task | found, splits)
    return found


def _texts(spec: TaskSpec, train: Table, pair: str | None, label: Label | None) -> tuple[str, str | None]:
    """Return the columns of the text and of the second text."""
    columns = [name for name in train.columns if name not in _columns(label) and _is_text(train.columns[name])]
    for first, second in PAIRS:
        if pair is None and first in columns and second in columns:
            return first, second
    known = [name for name in TEXTS if name in columns and name != pair]
    others = [name for name in columns if name != pair]
    if not known and len(others) != 1:
        raise _unclear(spec, train, "text", "the text")
    return (known or others)[0], pair


def _words(train: Table, text: str | None) -> str | None:
    """Return the column of lists of words, which a dataset has instead of texts; None where there is none."""
    if text is not None:
        return text if _are_lists(train.column(text)) else None
    if any(name in train.columns and _is_text(train.columns[name]) for name in TEXTS):
        return None
    return next((name for name in WORDS if name in train.columns and _are_lists(train.columns[name])), None)


def _label(spec: TaskSpec, train: Table, *, has_words: bool) -> str:
    usual, named = TAGS if has_words else LABELS, list(train.classes)
    named = [name for name in named if _are_lists(train.column(name)) or not has_words]
    known = [name for name in usual if name in train.columns] or (named if len(named) == 1 or not has_words else [])
    if not known:
        raise _unclear(spec, train, "label", "the label")
    return known[0]


def _unclear(spec: TaskSpec, train: Table, key: str, what: str) -> ConfigError:
    return ConfigError(
        f"task.dataset={spec.dataset} does not say which column is {what}.\n"
        f"Allowed: {', '.join(train.columns)}.\nSet task.{key}=..."
    )


def _are_lists(column: Any) -> bool:
    values = [value for value in column[:SAMPLE] if value is not None]
    return bool(values) and all(isinstance(value, list) for value in values)


def _is_text(column: Any) -> bool:
    values = [value for value in column[:SAMPLE] if value is not None]
    return bool(values) and all(isinstance(value, str) for value in values)


def _are_values(column: Any) -> bool:
    values = [value for value in column[:SAMPLE] if value is not None]
    return bool(values) and all(isinstance(value, float) for value in values) and not all(map(float.is_integer, values))


def _columns(label: Label | None) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else () if label is None else (label,)


def _kind(train: Table, label: Label) -> str:
    """Return the kind of task that labels are of: several columns, or lists, are several labels per text."""
    if isinstance(label, tuple):
        return "multilabel"
    column = train.column(label)
    if any(isinstance(value, list) for value in column[:SAMPLE]):
        return "multilabel"
    return "regression" if _are_values(column) else "classification"


def _is_secret(test: Table, label: Label) -> bool:
    """Return whether a test has no labels, as those of public comparisons."""
    return any(
        name not in test.columns or all(value in UNKNOWN for value in test.columns[name]) for name in _columns(label)
    )


def _tell(spec: TaskSpec, task: Mapping[str, Any], splits: Mapping[str, Table]) -> None:
    classes = f" ({', '.join(task['labels'][:6])})" if task.get("labels") else ""
    pair = f", text_pair={task['text_pair']}" if task["text_pair"] else ""
    label = f"[{','.join(task['label'])}]" if isinstance(task["label"], list) else task["label"]
    held = [*task["validation_splits"], *([task["test_split"]] if task["test_split"] else [])]
    taken = [f"{name} from {spec.train_split}" for name, own in (("validation", task["validation_splits"]),) if not own]
    where = "" if is_folder(spec.dataset or "") else f" at {spec.revision or 'main'}"
    say(
        f"data       {spec.dataset}{where}: kind={task['kind']}, text={task['text']}{pair}, label={label}"
        f"{classes}; splits {', '.join([spec.train_split, *held, *taken])}"
    )
    unused = [name for name in splits if name not in (spec.train_split, *held)]
    if unused:
        say(f"data       not used: {', '.join(unused)}")
