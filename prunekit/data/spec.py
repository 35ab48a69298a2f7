"""What a task is: its kind, columns, labels, metrics, splits and lengths. A task is one file in conf/task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from prunekit.config.errors import ConfigError, shown
from prunekit.data.keys import TaskKeys
from prunekit.data.kinds.base import TaskKind
from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.data.kinds.registry import KINDS


@dataclass(frozen=True)
class TaskSpec(TaskKeys):
    """A task: its keys, and the kind that decides what they mean. A file names the kind, as kind: regression."""

    kind: TaskKind = CLASSIFICATION

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TaskSpec:
        """Return the spec of a resolved `task` block; a key set to null takes the field's default.

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
        if isinstance(values.get("label"), tuple):
            values["label_columns"] = values["label"]
            values["label"] = ", ".join(values["label_columns"])
        if "name" not in values:
            raise ConfigError("a task needs task.name; it names the folder of its runs.")
        name = values.get("kind", CLASSIFICATION.name)
        if name not in KINDS:
            raise ConfigError(f"task.kind={name}; allowed: {', '.join(KINDS)}.")
        kind = values["kind"] = KINDS[name]
        values["metrics"] = values.get("metrics") or kind.default_metrics
        values["score"] = values.get("score") or values["metrics"][0]
        values.setdefault("padded_length", values.get("max_length", cls.max_length))
        spec = cls(**values)
        spec._check()
        return spec

    def _check(self) -> None:
        for metric in (*self.metrics, self.score):
            if metric not in self.kind.metrics:
                key = "metrics" if metric in self.metrics else "score"
                raise ConfigError(
                    f"task.{key}: {metric} is no metric of task.kind={self.kind}.\n"
                    f"Allowed: {', '.join(self.kind.metrics)}.\nGive task.metrics=[{self.kind.default_metrics[0]}]"
                    f" task.score={self.kind.default_metrics[0]}, or others of these."
                )
        if self.score not in self.metrics:
            raise ConfigError(
                f"task.score={self.score} is not computed; add it to task.metrics=[{', '.join(self.metrics)}] "
                f"or choose one of these."
            )
        self._check_own_keys()
        self.kind.check(self)
        if self.protects_first and self.text_pair is None:
            raise ConfigError(
                f"protect=first_segment, but task={self.name} reads one text at a time.\n"
                "Allowed: tasks of pairs of texts, of which the first, as a query, is kept whole.\n"
                "Name the column of the second texts: task.text_pair=...; or leave protect out."
            )
        if self.group is not None and self.synthetic_rows:
            raise ConfigError(
                f"task.group={self.group} with task.synthetic_rows={self.synthetic_rows}: generated rows have no "
                "groups.\nAllowed: null with generated rows.\nLeave task.group out."
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"task.validation_fraction={self.validation_fraction} and task.test_fraction={self.test_fraction} "
                f"leave nothing to train on; their sum must be below 1."
            )

    def _check_own_keys(self) -> None:
        """Check that keys that mean something to some kinds alone are left at their defaults elsewhere."""
        default = {field.name: field.default for field in dataclasses.fields(self)}
        for kind in KINDS.values():
            for key in kind.own_keys:
                value = getattr(self, key)
                if key not in self.kind.own_keys and value != default[key]:
                    typed = (
                        f"task.label=[{', '.join(value)}]" if key == "label_columns" else f"task.{key}={shown(value)}"
                    )
                    raise ConfigError(
                        f"{typed} with task.kind={self.kind}: it means something with task.kind={kind} alone.\n"
                        f"Allowed: {'one column' if key == 'label_columns' else shown(default[key])} with "
                        f"task.kind={self.kind}.\nCorrect it, or set task.kind={kind}."
                    )
        if self.unlabelled == "none" and not self.kind.may_lack_labels:
            raise ConfigError(
                f"task.unlabelled=none with task.kind={self.kind}: a text has one label.\n"
                f"Allowed: error or drop with task.kind={self.kind}.\nSet one of these, or task.kind=multilabel."
            )

    @property
    def protects_first(self) -> bool:
        """Whether no token of the first of two texts may be dropped."""
        return self.protect == "first_segment"

    @property
    def chosen_by(self) -> str:
        """The metric that chooses the checkpoint: the score, or what can be known without generating text."""
        return self.kind.checkpoint_metric or self.score

    def prefix(self, template: str | None) -> str:
        """Return what precedes every source, from a backbone's template such as "translate {source} to {target}: ".

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
        return self.kind.row_name

    @property
    def judged_name(self) -> str:
        """What a prediction is made for, in the words of a report."""
        return self.kind.judged_name

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table of this task must have."""
        return self.kind.columns(self)
