"""What a task is: columns, labels, metrics, splits and lengths. A task is one file in conf/task; no code names one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from prunekit.config.errors import ConfigError

TaskKind = Literal["classification", "regression", "span", "translation"]
CLASSIFICATION_METRICS = ("accuracy", "f1", "macro_f1", "matthews", "mean_of_accuracy_f1")
REGRESSION_METRICS = ("pearson", "spearman", "mean_of_pearson_spearman")
# HasAns and NoAns of SQuAD's own script: the same, of the questions with and without an answer
SPAN_METRICS = ("f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_f1", "no_answer_exact_match")
# of the words that teacher forcing gets right; the others are of whole translations, which only the test is given
WORD_ACCURACY = "word_accuracy"
TRANSLATION_METRICS = ("bleu", "chrf", "length_ratio", WORD_ACCURACY)

ALLOWED_METRICS: dict[str, tuple[str, ...]] = {
    "classification": CLASSIFICATION_METRICS,
    "regression": REGRESSION_METRICS,
    "span": SPAN_METRICS,
    "translation": TRANSLATION_METRICS,
}

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": REGRESSION_METRICS,
    "span": ("f1", "exact_match"),
    "translation": TRANSLATION_METRICS,
}


class DataError(ConfigError):
    """Data that cannot be used; the message names the file, the row and what to do."""


@dataclass(frozen=True)
class TaskSpec:
    """A task. The fields are the keys of conf/task/*.yaml, where each is explained.

    `labels` None means the labels are read from the training data. Lengths are in tokens, special tokens included.
    The first of `validation_splits` is called "validation" from here on, further ones keep their names.
    Of kind "span" the answer is a part of `text_pair`; a long one is read in windows that overlap by `stride` tokens.
    `null_threshold` None means the one with the best score on the validation split.
    Of kind "translation" `text` is the source and `label` the target, each cut at its longest length; a column of
    records is named with its field, as translation.en. The languages are those that a backbone's prefix names.
    """

    name: str
    kind: TaskKind = "classification"
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
    id: str | None = None
    stride: int = 128
    max_answer_tokens: int = 30
    unanswerable: bool = False
    null_threshold: float | None = None
    protect_question: bool = False
    source_language: str | None = None
    target_language: str | None = None
    max_target_length: int = 128
    beams: int = 4

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
            raise ConfigError(f"task.kind={kind}; allowed: {', '.join(ALLOWED_METRICS)}.")
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
        if self.kind != "classification" and self.labels is not None:
            raise ConfigError(
                f"task.labels=[{', '.join(self.labels)}] with task.kind={self.kind}; set task.labels=null."
            )
        if self.kind == "span":
            self._check_span()
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

    def _check_span(self) -> None:
        if self.text_pair is None:
            raise ConfigError(
                "task.text_pair=null with task.kind=span: there is no text to find answers in.\n"
                "Name its column, as task.text_pair=context."
            )
        if self.empty == "keep":
            raise ConfigError("task.empty=keep with task.kind=span: nothing is found in no text; use error or drop.")
        if self.stride >= self.max_length - 4:
            raise ConfigError(
                f"task.stride={self.stride} with task.max_length={self.max_length}: windows would not move on.\n"
                f"Set task.stride to less than {self.max_length - 4} minus the tokens of the longest question."
            )

    @property
    def chosen_by(self) -> str:
        """The metric that chooses the checkpoint: the score, or what can be known without writing translations."""
        return WORD_ACCURACY if self.kind == "translation" else self.score

    def prefix(self, template: str | None) -> str:
        """What stands before every source, from a backbone's template such as "translate {source} to {target}: ".

        Raises:
            ConfigError: it names a language that the task does not.
        """
        if not template:
            return ""
        languages = {"source": self.source_language, "target": self.target_language}
        try:
            missing = [name for name, given in languages.items() if f"{{{name}}}" in template and given is None]
            if not missing:
                return template.format(**languages)
        except (KeyError, ValueError, IndexError):
            raise ConfigError(
                f"backbone.prefix={template!r} cannot be filled in.\n"
                "Allowed: text with {source} and {target}, the languages of the task.\n"
                "Correct it, or set backbone.prefix=null."
            ) from None
        raise ConfigError(
            f"backbone.prefix={template!r} names the {missing[0]} language, which task={self.name} does not give.\n"
            "Allowed: a language as the model was trained on, as English.\n"
            f"Set task.{missing[0]}_language=..., or backbone.prefix=null."
        )

    @property
    def row_name(self) -> str:
        """What the model sees at a time, in the words of a report."""
        return "window" if self.kind == "span" else "text"

    @property
    def judged_name(self) -> str:
        """What a prediction is made for, in the words of a report."""
        return "question" if self.kind == "span" else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of this task must have."""
        pair = (self.text_pair,) if self.text_pair else ()
        return (self.text, *pair, self.label)
