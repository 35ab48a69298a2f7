"""`prunekit data`: look at a task's data before anything is trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.composition import compose
from prunekit.config.errors import DONE, ConfigError
from prunekit.config.validation import validate
from prunekit.console import silence_libraries
from prunekit.data.columns import Cells
from prunekit.data.splitting import content_hashes, distinct
from prunekit.data.vocabulary import remarks
from prunekit.models.sources import find_source
from prunekit.pipelines.inputs import RunInputs
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runs.kinds import kind_of

if TYPE_CHECKING:
    from prunekit.data.module import TokenPruningDataModule
    from prunekit.data.rows import TaskRows

CLASSES = 8  # whose shares are printed
USUAL = 3  # the FLOPs reduction that is tried first


def main(arguments: Sequence[str]) -> int:
    """Print what a task's data is like, what may go wrong with it, and what to type next. Return 0.

    Raises:
        ConfigError: a setting that is not allowed, or data that cannot be used.
    """
    if asks_for_help(arguments):
        return print_help("data")
    given = parse_settings("data", arguments)
    typed = [f"{key}={value}" for key, value in given["config"].items()]
    cfg, choices = compose(typed)
    validate(cfg, choices)
    kind = kind_of(cfg)
    if "text" in kind.tasks:
        raise ConfigError(
            f"task={cfg['task']['name']} has texts and no labels.\nAllowed: labelled tasks, as task=cola.\n"
            "Choose one, or run method=wanda, which prints its corpora."
        )
    cfg = canonical(cfg)
    spec = kind.spec(cfg)
    source = kind.source(spec)
    task = kind.read(spec, source, cfg)
    silence_libraries()
    _print_rows(spec, str(source), task)
    backbone = find_source(cfg)
    from prunekit.pipelines.tokens.preparation import build_data  # loads torch

    sampled = {"train_rows": given["sample"], "eval_rows": given["sample"], "train_band": None, "eval_bands": None}
    cfg = cfg | {"data": cfg["data"] | sampled}
    run = RunInputs(cfg, RunFolder.of(cfg), spec, source, task, backbone, _train_nothing)
    data = build_data(run)
    data.setup()
    _print_tokens(spec, task, data)
    within = _print_reductions(run, data, given["budgets"])
    budget = [] if "budget" in given["config"] else [f"budget={within}"]
    print(f"next       python train.py {shlex.join([*typed, *budget])}")
    return DONE


def _print_rows(spec: Any, source: str, task: TaskRows) -> None:
    from prunekit.data.preview import class_shares  # loads torch, and --help is printed without it

    label = f"[{','.join(spec.label_columns)}]" if spec.label_columns else spec.label
    columns = [f"text={spec.text}", *([f"text_pair={spec.text_pair}"] if spec.text_pair else [])]
    columns += [f"label={label}"] * (not spec.kind.asks_teacher)
    print(f"data       {spec.name}, {spec.kind}, from {source}; columns {', '.join(columns)}")
    print(f"rows       {', '.join(f'{name} {len(rows):,}' for name, rows in task.splits.items())}")
    if task.dropped:
        print(f"left out   {', '.join(f'{count:,} {what}' for what, count in task.dropped.items())}")
    train = task.splits["train"]
    if train.groups is not None:
        groups = {name: Cells([rows.groups]) for name, rows in task.splits.items() if rows.groups is not None}
        counts = {name: distinct(content_hashes(names)) for name, names in groups.items()}
        print(f"groups     of {spec.group}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    if spec.kind.asks_teacher:
        print("labels     none: the answers of the model are learned")
    elif task.label_names:
        shares = list(class_shares(train, task.label_names, of_words=not spec.kind.labels_texts).items())
        shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares[:CLASSES])
        print(f"labels     {shown}{f' and {len(shares) - CLASSES} more' if len(shares) > CLASSES else ''}")
    elif isinstance(train.labels[0], float):
        values = np.sort(np.fromiter(train.labels, np.float64, len(train)))
        print(f"labels     values from {values[0]:g} to {values[-1]:g}, median {values[len(values) // 2]:g}")


def _print_tokens(spec: Any, task: TaskRows, data: TokenPruningDataModule) -> None:
    from prunekit.data import preview  # loads torch

    train = data.split("train")
    lengths = preview.Lengths.of(train)
    of = "" if len(train) == len(task.splits["train"]) else f" of {len(train):,} training rows"
    print(
        f"tokens     mean {lengths.mean:.1f}, median {lengths.median}, 95 % up to {lengths.q95}, longest "
        f"{lengths.longest}{of}; {100 * lengths.cut:.1f} % cut at {spec.max_length}, "
        f"{100 * data.unknown_share:.2f} % unknown"
    )
    for line in preview.draw(preview.histogram(train.lengths.numpy())):
        print(f"           {line}")
    classes = task.label_names if spec.kind.labels_texts and not spec.kind.asks_teacher else None
    found = preview.warnings(task.splits, classes, lengths, spec.max_length)
    found += filter(None, [spec.kind.remark(task.label_names)])
    for warning in [*found, *remarks(data.noticed, data.unknown_share)]:
        print(f"warning    {warning}")


def _print_reductions(run: RunInputs, data: TokenPruningDataModule, budgets: Sequence[int | float]) -> str:
    """Print the range of FLOPs reductions that the method can reach on these lengths, and which budgets are in it.

    Return one that is: 3x, or else the largest below it, or half of what can be saved.
    """
    from prunekit.pipelines.tokens.preparation import build_context, complete_options  # loads torch

    context = build_context(run, data)
    low, high = complete_options(run.cfg, context).feasible(context)
    within = [f"{budget:g}x" for budget in budgets if low <= budget <= high]
    beyond = [f"{budget:g}x" for budget in budgets if not low <= budget <= high]
    print(
        f"reduction  {run.cfg['method']['name']} on {run.cfg['backbone']['name']}: up to {high:.2f}x fewer FLOPs; "
        f"budgets within reach: {', '.join(within) or 'none'}" + (f"; out of reach: {', '.join(beyond)}" * bool(beyond))
    )
    usual = [budget for budget in budgets if low <= budget <= min(high, USUAL)]
    return f"{max(usual, default=(max(low, 1.0) + high) / 2):.3g}x"


def _train_nothing(cfg: dict[str, Any]) -> NoReturn:
    raise AssertionError("a preview trains nothing")
