"""Build and fit a tiny run of the method under test."""

from __future__ import annotations

import atexit
import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.composition import compose
from prunekit.config.validation import validate
from prunekit.data.encoding import Batch, load_tokenizer
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.methods.base import TokenPruningMethod
from prunekit.models import loading
from prunekit.models.sources import find_backbone
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens.preparation import prepare
from prunekit.runs.folder import LAST, RunFolder
from prunekit.training.fit import fit

# a whole run in a second: 16 steps in two epochs
SMALL = (
    "task=synthetic",
    "task.synthetic_rows=32",
    "backbone=tiny",
    "trainer=debug",
    "bench.enabled=false",
    "budget=1.5x",
)

INTERRUPTIONS = (5, 11)  # steps of those 16, one in each epoch: stages tend to change between epochs


@dataclass(frozen=True)
class _Built:
    """A method before training, and its data."""

    method: TokenPruningMethod
    data: TokenPruningDataModule


@dataclass(frozen=True)
class _Fitted:
    """A method after a short fit: the last checkpoint, and the names of the parameters that were ever trainable,
    held by the optimiser, or reached by a gradient.
    """

    method: TokenPruningMethod
    weights: dict[str, Tensor]
    optimizer: Any
    trainable: frozenset[str]
    held: frozenset[str]
    reached: frozenset[str]
    steps: int


class _InterruptedError(Exception):
    """An interruption that stands for a kill."""


@cache
def _workplace() -> Path:
    """Create a folder for the data, the models and the runs of this process."""
    folder = tempfile.TemporaryDirectory(prefix="prunekit-conformance-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _composed(given: tuple[str, ...]) -> dict[str, Any]:
    places = [f"data.cache_dir={_workplace() / 'cache'}", f"runs_dir={_workplace() / 'runs'}"]
    cfg, choices = compose([*given, *places])
    validate(cfg, choices)
    return cfg


def _random_classifier(backbone: Mapping[str, Any], labels: Sequence[str] | None) -> PreTrainedModel:
    """Build a random model whose attention is peaky enough for tokens to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = loading.load_classifier(find_backbone(backbone), labels=labels)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@cache
def _teacher(backbone: tuple[tuple[str, Any], ...], labels: tuple[str, ...] | None) -> Path:
    """Save a random classifier with its tokenizer, which stands for a fine-tuned model; return the folder."""
    folder = Path(tempfile.mkdtemp(dir=_workplace()))
    _random_classifier(dict(backbone), labels).save_pretrained(folder)
    load_tokenizer(find_backbone(dict(backbone))).save_pretrained(folder)
    return folder


def _inputs(given: tuple[str, ...], checkpoint_seconds: int = 3600) -> RunInputs:
    """Prepare the run of a configuration in its own folder, with a teacher that needs no training."""
    cfg = copy.deepcopy(_composed(given))
    spec = TaskSpec.from_config(cfg["task"])
    cfg["runs_dir"] = tempfile.mkdtemp(dir=_workplace())
    cfg["teacher"]["path"] = str(_teacher(tuple(cfg["backbone"].items()), spec.labels))
    cfg["trainer"]["checkpoint_seconds"] = checkpoint_seconds
    backbone = find_backbone(cfg["backbone"])
    return RunInputs(cfg, RunFolder.of(cfg), spec, find_task(spec), None, backbone, train_dense=_train_nothing)


def _train_nothing(cfg: dict[str, Any]) -> NoReturn:
    raise AssertionError(f"the suite brings its own teacher, but one was asked for: {cfg['task']['name']}")


@cache
def _build(given: tuple[str, ...]) -> _Built:
    prepared = prepare(_inputs(given))
    return _Built(prepared.method, prepared.data)


@cache
def _fit(given: tuple[str, ...], interruptions: tuple[int, ...] = ()) -> _Fitted:
    """Run a short fit, interrupted before these steps and resumed each time by a method that is built anew."""
    # 0 = a checkpoint after each step
    inputs = _inputs(given, checkpoint_seconds=0 if interruptions else 3600)
    trainable, held, reached = set[str](), set[str](), set[str]()
    for stop in (*interruptions, None):
        prepared = prepare(inputs)
        method = prepared.method
        # instance attributes, which Lightning calls in place of the methods
        train = method.training_step

        def training_step(
            batch: Batch, batch_idx: int, stop: Any = stop, train: Any = train, m: Any = method
        ) -> dict[str, Any]:
            if m.global_step == stop:
                raise _InterruptedError
            return train(batch, batch_idx)

        def look(optimizer: Any, method: TokenPruningMethod = method) -> None:
            inside = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for name, parameter in method.named_parameters():
                if parameter.requires_grad:
                    trainable.add(name)
                if id(parameter) in inside:
                    held.add(name)
                if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0):
                    reached.add(name)

        method.__dict__ |= {"training_step": training_step, "on_before_optimizer_step": look}
        try:
            fit(method, prepared.data, inputs.cfg["trainer"], inputs.folder.checkpoints)
        except _InterruptedError:
            continue
    for name in ("training_step", "on_before_optimizer_step"):
        del method.__dict__[name]
    method.trainer = None  # so that the method can be copied
    stored = torch.load(inputs.folder.checkpoints / LAST, weights_only=True)
    return _Fitted(
        method.cpu(),
        stored["state_dict"],
        stored["optimizer_states"],
        frozenset(trainable),
        frozenset(held),
        frozenset(reached),
        stored["global_step"],
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
