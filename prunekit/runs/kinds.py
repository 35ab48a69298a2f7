"""The kinds of runs, and what each reads from a configuration.

The key `prunes` of a method's file decides the kind, together with the task; without it the method prunes tokens. What
prunes whole layers, or cuts texts before the model reads them, runs as what prunes tokens does.
Imports no torch.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prunekit.config.budget import amount_label, parse_budget
from prunekit.config.errors import ConfigError
from prunekit.config.identity import DENSE, is_dense
from prunekit.config.keys import all_keys
from prunekit.config.validation import check_layers
from prunekit.data.kinds.registry import KINDS as TASK_KINDS
from prunekit.data.reading import read_task
from prunekit.data.rows import TaskRows
from prunekit.data.sources import find_task, own_files_digest
from prunekit.data.spec import TaskSpec
from prunekit.data.text.spec import TextSpec, find_texts, text_files_digest
from prunekit.models.sources import backbone_shape

Config = Mapping[str, Any]
OWN_LOSS = "task_loss"  # of a method with a default of its own, in place of `loss`


@runtime_checkable
class RunKind(Protocol):
    """What a run needs from its kind; every check raises ConfigError before anything slow starts."""

    name: str
    tasks: tuple[str, ...]  # values of task.kind

    def spec(self, cfg: Config) -> Any:
        """Return the task of a configuration, checked."""

    def digest(self, spec: Any) -> str | None:
        """Return a digest of the files that the task names by path; None when it names none."""

    def source(self, spec: Any) -> Any:
        """Return where the task's data is."""

    def read(self, spec: Any, source: Any, cfg: Config) -> Any:
        """Return the task's data, read from there and checked."""

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """Check what the configuration asks of the backbone."""

    def without_idle_keys(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration without what has no effect in runs of this kind."""

    def label(self, cfg: Config) -> str:
        """Return how much is pruned, as a folder name."""


class TokenRuns:
    """Fine-tuning on a labelled task while tokens are dropped."""

    name: str = "tokens"
    tasks: tuple[str, ...] = tuple(name for name, kind in TASK_KINDS.items() if not kind.generates)

    def spec(self, cfg: Config) -> TaskSpec:
        """Return a TaskSpec."""
        return TaskSpec.from_config(cfg["task"] | {"protect": cfg.get("protect")})

    def digest(self, spec: TaskSpec) -> str | None:
        """Return a digest of the files named by task.file and the like."""
        return own_files_digest(spec)

    def source(self, spec: TaskSpec) -> Any:
        """Return a TaskSource."""
        return find_task(spec)

    def read(self, spec: TaskSpec, source: Any, cfg: Config) -> TaskRows:
        """Return TaskRows."""
        return read_task(spec, source, cfg["data"]["cache_dir"] and Path(cfg["data"]["cache_dir"]))

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """Check that the layers named by keys exist, and that a method that trains has epochs."""
        check_layers(cfg, backbone_shape(backbone)["num_hidden_layers"], cfg["backbone"]["name"])
        method = cfg["method"]
        if cfg["trainer"]["epochs"] == 0 and not is_dense(cfg["method"]["name"]) and method.get("train", True):
            raise ConfigError(
                f"trainer.epochs=0 trains nothing, but method={method['name']} is to be trained.\n"
                f"Allowed: 1 and more; 0 for method={DENSE}, and where method.train=false.\n"
                "Give trainer.epochs=5, or method.train=false if the method takes it."
            )
        smoothing, kind = cfg["trainer"]["label_smoothing"], TASK_KINDS.get(cfg["task"]["kind"] or "")
        if smoothing and kind is not None and not kind.predicts_class:
            raise ConfigError(
                f"trainer.label_smoothing={smoothing:g} with task.kind={kind}: only classes can be smoothed.\n"
                "Allowed: 0, or task.kind=classification.\nLeave trainer.label_smoothing out."
            )
        if _has_no_labels(cfg):
            _check_without_labels(cfg)

    def without_idle_keys(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration with `loss` in one place: the method's own key, where it has one.

        A dense run learns from labels, and texts without labels are learned from the teacher, whatever the method.
        """
        if is_dense(cfg["method"]["name"]):
            return cfg | {key: None for key in ("loss", "protect") if key in cfg}
        has_labels, loss = not _has_no_labels(cfg), cfg.get("loss")
        method = dict(cfg["method"])
        if (own := method.get(OWN_LOSS)) is not None:
            own, loss = loss or own, None
            method[OWN_LOSS] = "kd" if own == "kd+ce" and not has_labels else own
        elif loss == ("ce" if has_labels else "kd"):
            loss = None
        return cfg | {"method": method} | {key: loss for key in ("loss",) if key in cfg}

    def label(self, cfg: Config) -> str:
        """Return the budget, or the goal."""
        return DENSE if is_dense(cfg["method"]["name"]) else amount_label(cfg)


class TranslationRuns(TokenRuns):
    """Fine-tuning of a translator while its encoder drops tokens; the test is translated."""

    name: str = "translation"
    tasks: tuple[str, ...] = tuple(name for name, kind in TASK_KINDS.items() if kind.generates)

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """Check also that BLEU can be computed, before hours of training."""
        super().check(cfg, backbone)
        if importlib.util.find_spec("sacrebleu") is None:
            raise ConfigError(
                f"task={cfg['task']['name']} is scored by sacreBLEU, which is not installed.\n"
                "Allowed: tasks of another kind without it.\npip install 'prunekit[translation]'"
            )


class WeightRuns:
    """Calibration, masking and possibly repair of a language model's weights; nothing is trained."""

    name: str = "weights"
    tasks: tuple[str, ...] = ("text",)
    # the only keys of the trainer that matter
    TRAINER = ("threads", "accelerator")

    def spec(self, cfg: Config) -> TextSpec:
        """Return a TextSpec."""
        return TextSpec.from_config(cfg["task"])

    def digest(self, spec: TextSpec) -> str | None:
        """Return a digest of the corpora that are given by path."""
        return text_files_digest(spec)

    def source(self, spec: TextSpec) -> Any:
        """Return a TextSource."""
        return find_texts(spec)

    def read(self, spec: TextSpec, source: Any, cfg: Config) -> Any:
        """Return Texts."""
        from prunekit.data.text.samples import read_texts  # loads torch, and stored results are shown without it

        return read_texts(spec, source)

    def check(self, cfg: Config, backbone: Path | str) -> None:
        """Check that the scope is a regular expression, and that n:m agrees with the sparsity."""
        method = cfg["method"]
        try:
            re.compile(method["scope"] or "")
        except re.error as error:
            raise ConfigError(
                f"method.scope={method['scope']} is not a regular expression ({error}).\n"
                "Allowed: one that is found in names of matrices, as mlp|q_proj.\nCorrect it, or leave it out for all."
            ) from error
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

    def without_idle_keys(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """Leave out budget, teacher, loss, protected tokens and benchmark: dense kernels do not skip zeros."""
        idle = ("teacher", "bench", "budget_tolerance", "loss", "protect")
        kept = {key: value for key, value in cfg.items() if key not in idle}
        trainer = {key: value for key, value in cfg["trainer"].items() if key in self.TRAINER}
        return kept | {"budget": None, "trainer": trainer}

    def label(self, cfg: Config) -> str:
        """Return the sparsity."""
        return f"sparse{cfg['method']['sparsity']:g}"


def _has_no_labels(cfg: Config) -> bool:
    kind = TASK_KINDS.get(cfg["task"].get("kind") or "")
    return kind is not None and kind.asks_teacher


def _check_without_labels(cfg: Config) -> None:
    """Check that a run on texts without labels learns from the model that was given.

    Raises:
        ConfigError: it is to learn from labels, or prunes nothing.
    """
    own = cfg["method"].get(OWN_LOSS)
    wrong = f"method.{OWN_LOSS}={own}" if own == "ce" else f"loss={cfg['loss']}" if cfg.get("loss") else ""
    what = "task.label=null" if cfg["task"].get("label", "") is None else "an embedder"
    if is_dense(cfg["method"]["name"]):
        raise ConfigError(
            f"method={cfg['method']['name']} with {what}: the model would learn its own answers.\n"
            "Allowed: a method that prunes tokens, as method=topk.\n"
            "Choose one; prunekit.load(model, engine='packed') runs the model as it is."
        )
    if wrong:
        raise ConfigError(
            f"{wrong} with {what}: there are no labels to learn.\n"
            "Allowed: kd, the answers of the model that was given.\nLeave it out, or name the labels: task.label=..."
        )


# what a method may prune -> the kinds of runs that do; the task chooses among them
KINDS: dict[str, tuple[RunKind, ...]] = {
    "tokens": (TokenRuns(), TranslationRuns()),
    "layers": (TokenRuns(),),  # a decoder was trained for all of them
    "texts": (TokenRuns(),),
    "weights": (WeightRuns(),),
}


def kind_of(cfg: Config) -> RunKind:
    """Return the kind of run that the method and the task ask for.

    Raises:
        ConfigError: the method cannot run on this task.
    """
    what = cfg["method"].get("prunes", "tokens")
    kinds, given = KINDS[what], cfg["task"].get("kind") or "classification"
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
    """Return the class that `method._target_` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    target = cfg["method"]["_target_"]
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        base = "WeightPruningMethod" if cfg["method"].get("prunes") == "weights" else "TokenPruningMethod"
        raise ConfigError(
            f"method._target_={target} cannot be imported ({error}).\n"
            f"Allowed: the dotted path of a {base}.\nCorrect it, or install the package it is in."
        ) from error


def method_options(cfg: Config) -> dict[str, Any]:
    """Return the keys of the method's file that are the method's own; budgets as FLOPs reductions."""
    own = {key: value for key, value in cfg["method"].items() if key not in ("name", "_target_", "prunes")}
    budgets = {key.path for key in all_keys().values() if key.domain == "list of budget"}
    return {
        key: [parse_budget(one) for one in value] if value and f"method.{key}" in budgets else value
        for key, value in own.items()
    }
