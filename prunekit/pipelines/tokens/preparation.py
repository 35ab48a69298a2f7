"""Everything before training: check the models, read the data, find the teacher, build the method on its model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.budget import parse_budget
from prunekit.config.errors import ConfigError, listed, shown
from prunekit.config.identity import is_dense
from prunekit.config.keys import declared
from prunekit.console import say, silence_libraries
from prunekit.cost import Shape
from prunekit.data.encoding import EncodedSplit, LabelTargets, Targets, load_tokenizer
from prunekit.data.kinds.base import TaskKind
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.spec import TaskSpec
from prunekit.data.vocabulary import left_out, remarks
from prunekit.evaluation.evaluate import protected_count
from prunekit.losses import balanced_weights
from prunekit.methods.base import MethodOptions, TokenPruningMethod
from prunekit.methods.context import MethodContext, Training
from prunekit.models.heads import HEADS, stored_head
from prunekit.models.reading import read_config
from prunekit.models.tokenizers import separator_of
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens import latency_goal
from prunekit.pipelines.tokens.checks import check_models
from prunekit.pipelines.tokens.teacher import Teacher, find_teacher, load_task_model, read_answers, read_outputs
from prunekit.runs.kinds import method_options, target_of
from prunekit.tokens.budget import InfeasibleBudgetError, check_feasible, check_reachable
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.pruner import TokenPruner
from prunekit.training.hardware import accelerator_of, use_threads

SPLITS = ("train", "validation", "test")
ROWS = 1024  # read at a time


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be trained; `seconds` says how long its slow parts took."""

    method: TokenPruningMethod
    data: TokenPruningDataModule
    teacher: Teacher | None
    goal: latency_goal.Goal | None
    seconds: dict[str, float]


def prepare(run: RunInputs) -> Prepared:
    """Read the data, train or find the teacher, and build the method on its model.

    Raises:
        ConfigError: something in the configuration cannot work, for this data or on this machine.
    """
    cfg, seconds = run.cfg, {}
    silence_libraries()
    check_models(run)
    accelerator_of(cfg["trainer"]["accelerator"])
    use_threads(cfg["trainer"]["threads"])
    L.seed_everything(cfg["seed"], verbose=False)
    data = read_data(run)
    context = build_context(run, data)
    goal = latency_goal.Goal.of(cfg)
    if goal is not None:
        start = time.monotonic()
        context = replace(context, budget=derive_budget(goal, run, context, data))
        seconds["staircase"] = time.monotonic() - start
        # a model that was built or not for the goal must not change what is drawn from here on
        L.seed_everything(cfg["seed"], verbose=False)
    options = complete_options(cfg, context)
    check_budget(cfg, context, options)
    start = time.monotonic()
    teacher = find_teacher(run)
    if teacher is not None:
        if teacher.result is not None:
            seconds["teacher"] = time.monotonic() - start
            # the teacher's run drew from the global generators: start afresh, whether it ran now or long ago
            L.seed_everything(cfg["seed"], verbose=False)
        run.folder.update_manifest({"teacher": teacher.identity()})
    method = build_method(run, context, options, teacher, data)
    if goal is not None and method.test_execution != "pack":
        raise ConfigError(
            f"{goal.key}: this method is tested under {method.test_execution!r}, which is not what the packed "
            "engine computes.\nAllowed: methods, and settings of a method, that are tested packed.\n"
            "Choose such settings, or give a budget."
        )
    return Prepared(method, data, teacher, goal, seconds)


def read_data(run: RunInputs) -> TokenPruningDataModule:
    """Read and tokenise the task; print what was read and how many texts were truncated."""
    spec, data = run.spec, build_data(run)
    data.setup()
    splits = {name: data.split(name) for name in SPLITS}
    texts = {name: {"rows": len(split), "tokens": _mean_length(split)} for name, split in splits.items()}
    run.folder.update_manifest({"data_fingerprint": data.fingerprint, "truncated": data.truncated, "texts": texts})
    rows = ", ".join(_counted(name, split, spec.kind) for name, split in splits.items())
    rows += " rows" if spec.row_name == spec.judged_name else ""
    cut = sum(found["rows"] for found in data.truncated.values())
    say(
        f"data       {spec.name}: {rows}, mean {_mean_length(splits['train']):.1f} tokens; "
        f"{cut} texts cut at {spec.max_length} tokens{_unread(data)}, {100 * data.unknown_share:.2g} % unknown tokens, "
        + left_out(data.dropped)
    )
    about_labels = filter(None, [spec.kind.remark(data.label_names)])
    for remark in (*about_labels, *remarks(data.noticed, data.unknown_share)):
        say(f"data       {remark}")
    if data.train_band is not None:
        lengths = splits["train"].lengths
        say(f"data       trained and validated on texts of {int(lengths.min())} to {int(lengths.max())} tokens")
    return data


def build_data(run: RunInputs) -> TokenPruningDataModule:
    """Return the data of a run, of which nothing is tokenised yet."""
    cfg, spec, trainer = run.cfg, run.spec, run.cfg["trainer"]
    data = TokenPruningDataModule(
        spec,
        run.source,
        run.backbone,
        task=run.data,
        batch_size=trainer["batch_size"],
        eval_batch_size=trainer["eval_batch_size"],
        seed=cfg["seed"],
        train_rows=cfg["data"]["train_rows"],
        eval_rows=cfg["data"]["eval_rows"],
        train_band=cfg["data"]["train_band"],
        eval_bands=cfg["data"]["eval_bands"],
        workers=cfg["data"]["workers"],
        num_proc=cfg["data"]["num_proc"],
        cache_dir=cfg["data"]["cache_dir"],
        prefix=spec.prefix(cfg["backbone"].get("prefix")),
        answers=(lambda name, split: read_answers(run, data, name, split)) if spec.kind.asks_teacher else None,
    )
    return data


def build_context(run: RunInputs, data: TokenPruningDataModule) -> MethodContext:
    """Return what a method is told before it is built."""
    cfg, trainer = run.cfg, run.cfg["trainer"]
    dense = is_dense(cfg["method"]["name"])
    return MethodContext(
        spec=run.spec,
        shape=Shape.from_config(read_config(run.backbone)),
        training=Training(
            epochs=trainer["epochs"],
            steps_per_epoch=math.ceil(len(data.train_dataloader()) / trainer["accumulate_grad_batches"]),
            lr=trainer["lr"] or cfg["backbone"]["lr" if dense else "pruning_lr"],
            head_lr=cfg["backbone"]["head_lr"] if dense else None,  # a teacher's head is trained already
            weight_decay=trainer["weight_decay"],
            warmup_fraction=trainer["warmup_fraction"],
            clip=trainer["clip"],
            freeze_embeddings=trainer["freeze_embeddings"],
            max_steps=trainer["max_steps"],
            schedule=trainer["schedule"],
            label_smoothing=trainer["label_smoothing"],
            class_weights=class_weights(run.spec, data.split("train").targets, data.label_names or ()),
        ),
        lengths={name: data.split(name).lengths for name in SPLITS},
        budget=parse_budget(cfg["budget"]),
        tolerance=cfg["budget_tolerance"],
        loss=cfg.get("loss") or "ce",
        validation=partial(data.loader, "validation"),
        targets=[data.split(name).targets for name in data.validation_splits],
        protected={name: protected_tokens(run, data.split(name)) for name in SPLITS},
    )


def class_weights(spec: TaskSpec, train: Targets, names: Sequence[str]) -> tuple[float, ...] | None:
    """Return the factor of each class in the loss, in the order of the classes; None where all count the same.

    Raises:
        ConfigError: there is not one for each class.
    """
    weights = spec.class_weights
    if weights == "balanced":
        assert isinstance(train, LabelTargets)
        return balanced_weights(torch.bincount(train.labels, minlength=len(names)).tolist())
    if weights is not None and len(weights) != len(names):
        raise ConfigError(
            f"task.class_weights=[{listed(map(shown, weights))}] has {len(weights)} numbers, but {spec.name} has "
            f"{len(names)} classes: {listed(names)}.\nAllowed: balanced, or a number above 0 for each class.\n"
            f"Give task.class_weights=[{', '.join('1.0' for _ in names)}], with these numbers changed."
        )
    return None if weights is None else tuple(map(float, weights))


def separator(run: RunInputs) -> int | None:
    """Return the token that ends the first of two texts, where the run protects it and token ids alone show it."""
    spec = run.spec
    return separator_of(load_tokenizer(run.backbone)) if spec.protects_first and not spec.kind.protects(spec) else None


def protected_tokens(run: RunInputs, split: EncodedSplit) -> Int[Tensor, "rows"]:
    """Return how many tokens of each row no method may drop."""
    ends = separator(run)
    if ends is None:
        return split.protected
    batches = (split.batch(rows) for rows in torch.arange(len(split)).split(ROWS))
    return torch.cat([torch.as_tensor(protected_count(batch, ends)) for batch in batches])


def derive_budget(
    goal: latency_goal.Goal, run: RunInputs, context: MethodContext, data: TokenPruningDataModule
) -> float:
    """Return the FLOPs reduction that reaches a latency goal on this machine.

    Raises:
        ConfigError: the goal is out of reach, or the dense model reaches it.
    """
    names = run.cfg["method"]["name"], run.cfg["backbone"]["name"], run.spec.name

    def model(pruner: TokenPruner) -> PreTrainedModel:
        return install(load_task_model(run.backbone, run.spec, data, new_head=True), pruner)

    subject = latency_goal.GoalSubject(
        complete_options(run.cfg, context),
        context,
        model,
        read_config(run.backbone).model_type,
        f"method={names[0]} on {names[1]} and {names[2]}",
    )
    return latency_goal.aim(goal, subject, run.folder.path, data.cache_dir / "staircases").budget


def check_budget(cfg: dict[str, Any], context: MethodContext, options: MethodOptions) -> None:
    """Check that the method can reach the requested reduction on these sentences.

    Raises:
        ConfigError: it cannot; says what is feasible.
    """
    asked = options.asks(context)
    if asked is None:
        return
    low, high = options.feasible(context)
    if context.budget is None and not low <= asked <= high:
        turned = ", ".join(f"method.{name}={value}" for name, value in set_knobs(cfg).items())
        raise ConfigError(
            f"{turned} asks for {asked:.3g}x fewer FLOPs.\n"
            f"Feasible on {cfg['backbone']['name']} and {context.spec.name}: {low:.2f}x to {high:.2f}x, "
            f"which is a sparsity of {1 - 1 / low:.2f} to {1 - 1 / high:.2f}.\n"
            "Ask for less, or let the method decide at earlier layers."
        )
    what = f"method={cfg['method']['name']} on {cfg['backbone']['name']} and {context.spec.name}"
    try:
        check_feasible(asked, low, high, what)
        if steps := options.steps(context):
            check_reachable(asked, steps, context.tolerance, what)
    except InfeasibleBudgetError as error:
        raise ConfigError(str(error)) from error


def build_method(
    run: RunInputs,
    context: MethodContext,
    options: MethodOptions,
    teacher: Teacher | None,
    data: TokenPruningDataModule,
) -> TokenPruningMethod:
    """Return the method on the teacher's model, or on the backbone where there is no teacher."""
    kind = method_class(run.cfg)
    source = teacher.folder if teacher else run.backbone
    model = load_task_model(source, run.spec, data, new_head=teacher is None)
    if stored_head(source, HEADS[run.spec.kind]) is None:
        say(f"head       {run.cfg['backbone']['name']} has none: it starts from random numbers, and is trained")
    if (kind.uses_teacher or "kd" in context.loss) and teacher is not None:
        context = replace(context, teacher=read_outputs(teacher, run.spec, data))
    model = options.equip(model, context.shape, prefix=data.prefix_tokens, separator=separator(run))
    pruner = encoder_of(model).pruner
    if pruner is not None and run.spec.protects_first:
        pruner.policy.protect_segment()
    return kind(model, context, options)


def method_class(cfg: dict[str, Any]) -> type[TokenPruningMethod]:
    """Return the class that `method._target_` names."""
    found: type[TokenPruningMethod] = target_of(cfg)
    return found


def complete_options(cfg: dict[str, Any], context: MethodContext) -> MethodOptions:
    """Return the method's options, with those filled in that follow from the texts or the budget."""
    return method_class(cfg).Options.from_config(method_options(cfg)).completed(context)


def set_knobs(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return those of the method's own knobs for the amount of pruning that are set."""
    keys = declared({"method": cfg["method"]["name"]})
    own = [key.path.partition(".")[2] for key in keys.values() if key.knob]
    return {name: cfg["method"][name] for name in own if cfg["method"].get(name) is not None}


def _counted(name: str, split: EncodedSplit, kind: TaskKind) -> str:
    if kind.row_name == kind.judged_name:
        return f"{name} {len(split)}"
    return f"{name} {split.judged} in {len(split)} {kind.row_name}s"


def _unread(data: TokenPruningDataModule) -> str:
    """Return how many labelled words are not read, where words have labels, as words after the texts that are cut."""
    words, total = (sum(found.get(key, 0) for found in data.truncated.values()) for key in ("words", "of_words"))
    return (
        f" ({words} of {total} words, {100 * words / total:.2g} %, are not read and count as missed)" if words else ""
    )


def _mean_length(split: EncodedSplit) -> float:
    return float(split.lengths.float().mean())
