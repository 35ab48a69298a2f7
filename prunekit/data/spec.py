"""What a task is: columns, labels, metrics, splits and lengths. A task is one file in conf/task; no code names one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from prunekit.schema import ConfigError

Kind = Literal["classification", "regression"]

CLASSIFICATION_METRICS = ("accuracy", "f1", "macro_f1", "matthews", "mean_of_accuracy_f1")
REGRESSION_METRICS = ("pearson", "spearman", "mean_of_pearson_spearman")
ALLOWED_METRICS: dict[str, tuple[str, ...]] = {
    "classification": CLASSIFICATION_METRICS,
    "regression": REGRESSION_METRICS,
}
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": REGRESSION_METRICS,
}


class DataError(ConfigError):
    """Data that cannot be used; the message names the file, the row and what to do."""


@dataclass(frozen=True)
class TaskSpec:
    """A task. The fields are the keys of conf/task/*.yaml, where each is explained.

    `labels` None means the labels are read from the training data. Lengths are in tokens, special tokens included.
    The first of `validation_splits` is called "validation" from here on, further ones keep their names.
    """

    name: str
    kind: Kind = "classification"
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    labels: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    score: str = ""
    max_length: int = 128
    padded_length: int = 128
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ()
    test_split: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    empty: Literal["error", "drop", "keep"] = "error"
    hub: str | None = None
    hub_config: str | None = None
    folder: str | None = None
    package: str | None = None
    package_folder: str | None = None
    file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    synthetic_rows: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TaskSpec:
        """The spec of a resolved `task` block; a key set to null takes the field's default.

        Raises:
            ConfigError: a key that no task has, or values that do not go together.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in config:
            if key not in known:
                close = get_close_matches(key, known, 1)
                hint = f"; did you mean task.{close[0]}?" if close else f"; known: {', '.join(sorted(known))}."
                raise ConfigError(f"task.{key} is no key of a task{hint}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in config.items()
            if value is not None
        }
        if "name" not in values:
            raise ConfigError("a task needs task.name; it names the folder of its runs.")
        kind = values.get("kind", "classification")
        if kind not in ALLOWED_METRICS:
            raise ConfigError(f"task.kind={kind}; allowed: classification, regression.")
        values["metrics"] = values.get("metrics") or DEFAULT_METRICS[kind]
        values["score"] = values.get("score") or values["metrics"][0]
        values.setdefault("padded_length", values.get("max_length", cls.max_length))
        spec = cls(**values)
        spec._check()
        return spec

    def _check(self) -> None:
        allowed = ALLOWED_METRICS[self.kind]
        for metric in (*self.metrics, self.score):
            if metric not in allowed:
                raise ConfigError(
                    f"metric {metric} is not for task.kind={self.kind}; choose from {', '.join(allowed)}."
                )
        if self.score not in self.metrics:
            raise ConfigError(
                f"task.score={self.score} is not computed; add it to task.metrics=[{', '.join(self.metrics)}] "
                f"or choose one of these."
            )
        if self.kind == "regression" and self.labels is not None:
            raise ConfigError(
                f"task.labels=[{', '.join(self.labels)}] with task.kind=regression; set task.labels=null."
            )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            twice = next(name for name in self.labels if self.labels.count(name) > 1)
            raise ConfigError(f"task.labels names {twice!r} twice; every label is named once.")
        if self.labels is not None and len(self.labels) < 2:
            raise ConfigError(f"task.labels=[{', '.join(self.labels)}] has {len(self.labels)} label; give 2 or more.")
        if "f1" in " ".join(self.metrics).replace("macro_f1", "") and self.labels and len(self.labels) != 2:
            raise ConfigError(
                f"metric f1 is of two classes, but task.labels has {len(self.labels)}; use macro_f1 instead."
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"task.validation_fraction={self.validation_fraction} and task.test_fraction={self.test_fraction} "
                f"leave nothing to train on; their sum must be below 1."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of this task must have."""
        pair = (self.text_pair,) if self.text_pair else ()
        return (self.text, *pair, self.label)
