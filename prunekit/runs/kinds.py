"""The kinds of runs that a method may ask for, and what each reads from a configuration.

A method's file says its kind by the key `prunes`; without it, it prunes tokens. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prunekit.config.budget import amount_label
from prunekit.config.errors import ConfigError
from prunekit.config.validation import check_layers
from prunekit.data.sources import find_task, own_files_digest
from prunekit.data.spec import TaskSpec
from prunekit.data.text.spec import TextSpec, find_texts, text_files_digest
from prunekit.models.sources import backbone_shape

Config = Mapping[str, Any]


@runtime_checkable
class RunKind(Protocol):
    """What a run asks of its kind; every check raises ConfigError before anything slow starts."""

    name: str
    tasks: tuple[str, ...]  # values of task.kind

    def spec(self, task: Config) -> Any:
        """The task block, checked."""

    def digest(self, spec: Any) -> str | None:
        """Of the content of files that the task names by path; None when it names none."""

    def source(self, spec: Any) -> Any:
        """Where the task's data is."""

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """What the configuration asks of the backbone."""

    def named(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """The configuration without what plays no part in runs of this kind."""

    def label(self, cfg: Config) -> str:
        """How much is pruned, as a folder name."""


class TokenRuns:
    """Fine-tuning with tokens removed, on a labelled task."""

    name: str = "tokens"
    tasks: tuple[str, ...] = ("classification", "regression", "span")

    def spec(self, task: Config) -> TaskSpec:
        """A TaskSpec."""
        return TaskSpec.from_config(task)

    def digest(self, spec: TaskSpec) -> str | None:
        """Of task.file and its kin."""
        return own_files_digest(spec)

    def source(self, spec: TaskSpec) -> Any:
        """A TaskSource."""
        return find_task(spec)

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """Layers that a key names must exist, and what is to be trained needs epochs."""
        check_layers(cfg, backbone_shape(backbone)["num_hidden_layers"], cfg["backbone"]["name"])
        method = cfg["method"]
        if cfg["trainer"]["epochs"] == 0 and method["name"] != "dense" and method.get("train", True):
            raise ConfigError(
                f"trainer.epochs=0 trains nothing, but method={method['name']} is to be trained.\n"
                "Allowed: 1 and more; 0 for method=dense, and where method.train=false.\n"
                "Give trainer.epochs=5, or method.train=false if the method takes it."
            )

    def named(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """All of it."""
        return cfg

    def label(self, cfg: Config) -> str:
        """The budget, or the goal."""
        return "dense" if cfg["method"]["name"] == "dense" else amount_label(cfg)


class TranslationRuns(TokenRuns):
    """The same with a decoder behind the encoder; the test is translated."""

    name: str = "translation"
    tasks: tuple[str, ...] = ("translation",)

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """What BLEU is computed by must be there before hours of training."""
        super().check(cfg, backbone)
        if importlib.util.find_spec("sacrebleu") is None:
            raise ConfigError(
                f"task={cfg['task']['name']} is scored by sacreBLEU, which is not installed.\n"
                "Allowed: tasks of another kind without it.\npip install 'prunekit[translation]'"
            )


class WeightRuns:
    """Calibration, a mask and perhaps a repair of a language model's weights; nothing is trained."""

    name: str = "weights"
    tasks: tuple[str, ...] = ("text",)
    # of the trainer only these matter
    TRAINER = ("threads", "accelerator")

    def spec(self, task: Config) -> TextSpec:
        """A TextSpec."""
        return TextSpec.from_config(task)

    def digest(self, spec: TextSpec) -> str | None:
        """Of the files of the corpora that are given by path."""
        return text_files_digest(spec)

    def source(self, spec: TextSpec) -> Any:
        """A TextSource."""
        return find_texts(spec)

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """A scope is a regular expression, SparseGPT has groups and a repair of its own, n:m has one sparsity."""
        method = cfg["method"]
        try:
            re.compile(method["scope"] or "")
        except re.error as error:
            raise ConfigError(
                f"method.scope={method['scope']} is no regular expression ({error}).\n"
                "Allowed: one that is found in names of matrices, as mlp|q_proj.\nCorrect it, or leave it out for all."
            ) from error
        if method["name"] == "sparsegpt" and method["group"] not in ("column_block", "nm"):
            raise ConfigError(
                f"method=sparsegpt chooses within blocks of columns, not method.group={method['group']}.\n"
                "Allowed: method.group=column_block, whose width is method.width; or nm.\nSet one of these."
            )
        if method["name"] == "sparsegpt" and method["weight_update"] != "none":
            raise ConfigError(
                f"method=sparsegpt re-fits what stays already; method.weight_update={method['weight_update']} would be "
                "a second time.\nAllowed: method.weight_update=none.\nLeave it out."
            )
        if method["group"] != "nm":
            return
        if method["keep"] >= method["of"]:
            raise ConfigError(
                f"method.keep={method['keep']} of method.of={method['of']} removes nothing.\n"
                f"Allowed: keep 1..{method['of'] - 1}.\nSet method.keep and method.of, as 2 and 4."
            )
        share = 1 - method["keep"] / method["of"]
        if abs(method["sparsity"] - share) > 1e-6 or method["sparsity_of"] == "model" or method["alloc"] != "uniform":
            raise ConfigError(
                f"method.group=nm with {method['keep']}:{method['of']} removes {share:g} of every matrix, "
                f"not method.sparsity={method['sparsity']:g} of {method['sparsity_of']}, alloc={method['alloc']}.\n"
                f"Allowed: method.sparsity={share:g} method.sparsity_of=prunable method.alloc=uniform.\n"
                "Set these, or choose another method.group."
            )

    def named(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """No FLOPs budget, teacher or speed: dense kernels do not see zeros."""
        kept = {key: value for key, value in cfg.items() if key not in ("teacher", "bench", "budget_tolerance")}
        trainer = {key: value for key, value in cfg["trainer"].items() if key in self.TRAINER}
        return kept | {"budget": None, "trainer": trainer}

    def label(self, cfg: Config) -> str:
        """The sparsity."""
        return f"sparse{cfg['method']['sparsity']:g}"


# what a method may prune, and the kinds of runs that do, told apart by their tasks
KINDS: dict[str, tuple[RunKind, ...]] = {"tokens": (TokenRuns(), TranslationRuns()), "weights": (WeightRuns(),)}


def kind_of(cfg: Config) -> RunKind:
    """The kind that the method and the task ask for.

    Raises:
        ConfigError: the task is not for it.
    """
    what = cfg["method"].get("prunes", "tokens")
    kinds, given = KINDS[what], cfg["task"].get("kind", "classification")
    for kind in kinds:
        if given in kind.tasks:
            return kind
    allowed = [name for kind in kinds for name in kind.tasks]
    example = "domain_legal" if "text" in allowed else "bbc_news"
    raise ConfigError(
        f"method={cfg['method']['name']} prunes {what}, and task={cfg['task']['name']} is of kind {given}.\n"
        f"Allowed: tasks of kind {', '.join(allowed)}.\nChoose another task, as task={example}."
    )


def target_of(cfg: Config) -> Any:
    """The class that `method._target_` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    target = cfg["method"]["_target_"]
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        base = "WeightPruningMethod" if cfg["method"].get("prunes") == "weights" else "TokenPruningMethod"
        raise ConfigError(
            f"method._target_={target} cannot be imported ({error}).\n"
            f"Allowed: the dotted path of a {base}.\nCorrect it, or install the package it is in."
        ) from error


def method_options(cfg: Config) -> dict[str, Any]:
    """The keys of the method's file that are the method's own."""
    return {key: value for key, value in cfg["method"].items() if key not in ("name", "_target_", "prunes")}
