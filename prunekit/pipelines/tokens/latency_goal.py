"""Latency goals: `goal.latency_ms=12` becomes a budget in FLOPs on this machine, is trained to, and is measured.

Four steps: measure the machine's staircase once (runtime/staircase.py), translate, train (pipeline.py), verify. What a
run trains to is decided once and kept in its folder: a machine that is measured again changes no run that has started.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.bench.engines import PackedBenchEngine
from prunekit.bench.inputs import encode_row
from prunekit.bench.protocol import Encoded, clocks, spread
from prunekit.bench.timing import time_batches
from prunekit.config.budget import has_goal
from prunekit.config.errors import MISSED, ConfigError
from prunekit.console import say, track
from prunekit.data.encoding import EncodedSplit
from prunekit.environment import cpu_model, load_average
from prunekit.files import atomic_write_text
from prunekit.methods.base import MethodOptions
from prunekit.methods.context import MethodContext
from prunekit.runtime import latency_model
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.kernels.linears import choose, dtype_of
from prunekit.runtime.kernels.threads import threads as computing_with
from prunekit.runtime.latency_model import LatencyModel
from prunekit.tokens.pruner import TokenPruner

MARGIN = 0.03  # the prediction aims so much below what is asked: a budget is met within 2 %, and a prediction errs
TOLERANCE = 0.05  # what is measured may be so much above what is asked
MOST_TEXTS = 1024  # of validation, in whole batches: predicted and measured on the same ones
ROUNDS = 5  # over all batches, behind one that warms up
HALVINGS = 24
FILE = "goal.json"


class GoalOutOfReachError(ConfigError):
    """A goal that no schedule of the method meets on this machine."""

    exit_code = MISSED


@dataclass(frozen=True)
class Goal:
    """What was asked: the median ms of a batch of so many texts."""

    latency_ms: float
    batch: int
    threads: int
    dtype: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Goal | None:
        """The goal of a configuration; None where it has none."""
        if not has_goal(cfg):
            return None
        given = cfg["goal"]
        return cls(given["latency_ms"], given["batch"], given["threads"], given["dtype"])

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """As the protocol has it: CPU time of the process on one thread, wall time on more."""
        return "cpu" if self.threads == 1 else "wall"

    @property
    def key(self) -> str:
        """As one types it."""
        return f"goal.latency_ms={self.latency_ms:g}"


@dataclass(frozen=True)
class Aim:
    """What a goal came to: the budget, and what it was derived from; ms are medians of a batch."""

    budget: float
    predicted_ms: float
    fastest_ms: float
    dense_ms: float


def translate(
    predict: Callable[[float], float], goal: Goal, low: float, high: float, dense_ms: float, what: str
) -> Aim:
    """The smallest FLOPs reduction in [low, high] whose predicted ms are `MARGIN` below the goal.

    Where only the goal itself is in reach, and not its margin, the largest reduction. `predict` gives the ms of a
    reduction and falls with it; `dense_ms` are those of the unpruned model.

    Raises:
        ConfigError: the unpruned model is as fast already.
        GoalOutOfReachError: the largest reduction is slower than the goal.
    """
    fastest = predict(high)
    feasible = f"Feasible with {what}: {_ms(fastest, up=True)} ms (all gone that may go) to {_ms(dense_ms)} ms (dense)."
    if goal.latency_ms >= dense_ms:
        raise ConfigError(
            f"{goal.key}: the dense model is as fast already, {dense_ms:.3g} ms by the staircase; nothing has to go.\n"
            f"{feasible}\nTrain method=dense, or ask for less."
        )
    if goal.latency_ms < fastest:
        raise GoalOutOfReachError(
            f"{goal.key} is out of reach on this machine.\n{feasible}\n"
            "Ask for more, or take a smaller goal.batch, goal.dtype=bf16, or a method that decides at earlier layers."
        )
    aim = goal.latency_ms * (1 - MARGIN)
    if fastest > aim:
        return Aim(high, fastest, fastest, dense_ms)
    slow, fast = low, high  # too slow, fast enough
    if predict(low) <= aim:
        fast = low
    for _ in range(HALVINGS):
        middle = (slow + fast) / 2
        slow, fast = (slow, middle) if predict(middle) <= aim else (middle, fast)
    budget = min(high, round(fast + 5e-5, 4))  # rounded up: not slower
    return Aim(budget, predict(budget), fastest, dense_ms)


def _ms(value: float, *, up: bool = False) -> str:
    """Two decimals, rounded inwards, so that what a message offers is accepted."""
    whole = np.ceil(value * 100) if up else np.floor(value * 100)
    return f"{whole / 100:g}"


# -- before training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoalSubject:
    """What is to be as fast as asked: a method on a backbone, and the task whose texts it reads."""

    options: MethodOptions
    context: MethodContext
    model: Callable[[TokenPruner], PreTrainedModel]  # that carries a pruner; its weights play no part
    family: str  # of the model, as Hugging Face calls its type
    what: str  # all of it, for messages

    def pruner(self) -> TokenPruner:
        """A pruner as the method begins with it."""
        found = self.options.build_pruner(self.context.shape)
        assert found is not None
        return found


def aim(goal: Goal, subject: GoalSubject, folder: Path, cache: Path) -> Aim:
    """What a run trains to: as its `folder` has it, or from the staircase in `cache`, or from one measured now.

    Raises:
        ConfigError: the goal is out of reach or met already, or validation is smaller than a batch.
    """
    stored = restored(folder)
    if stored is not None:
        found, steps = stored
        say(f"goal 1/4   {folder / FILE}: derived when this run began, nothing is measured")
    else:
        pruner, context = subject.pruner(), subject.context
        whole = context.lengths["validation"].expand(context.shape.layers, -1).float()
        batches = drawn(whole.shape[1], goal)
        steps = _staircase(goal, subject, pruner, cache)
        dense = float(np.median(steps.milliseconds(whole, whole, batches)))

        def predict(reduction: float) -> float:
            counts = subject.options.likely_counts(context, reduction)
            return float(np.median(steps.milliseconds(*counts, batches, pruner.layers)))

        feasible = subject.options.feasible(context)
        found = translate(predict, goal, *feasible, dense, subject.what)
        content = {"goal": asdict(goal), "aim": asdict(found), "staircase": asdict(steps)}
        atomic_write_text(folder / FILE, json.dumps(content, indent=1) + "\n")
    say(
        f"goal 2/4   {goal.latency_ms:g} ms at batch {goal.batch} needs {found.budget:.4g}x fewer FLOPs: "
        f"{found.predicted_ms:.3g} ms predicted; feasible here: {found.fastest_ms:.3g} to {found.dense_ms:.3g} ms"
    )
    say(f"goal 3/4   training to {found.budget:.4g}x")
    return found


def restored(folder: Path) -> tuple[Aim, LatencyModel] | None:
    """What a run that has started was aimed at; None for one that has not."""
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Aim(**stored["aim"]), LatencyModel.from_json(stored["staircase"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drawn(rows: int, goal: Goal) -> Int[Tensor, "batches texts"]:
    """Whole batches of the first `rows` numbers, in one seeded order: those that are predicted, and measured later.

    Raises:
        ConfigError: there are fewer rows than a batch has.
    """
    if rows < goal.batch:
        raise ConfigError(
            f"goal.batch={goal.batch}, but validation has {rows} texts.\nAllowed: 1..{rows}.\n"
            "Give a smaller goal.batch, or more data.eval_rows."
        )
    order = np.random.default_rng(0).permutation(rows)[: max(goal.batch, MOST_TEXTS)]
    whole = len(order) // goal.batch
    return torch.from_numpy(order[: whole * goal.batch].reshape(whole, goal.batch))


def _staircase(goal: Goal, subject: GoalSubject, pruner: TokenPruner, cache: Path) -> LatencyModel:
    """The machine's staircase for these layers: read, or measured and kept."""
    longest, shape = subject.context.spec.max_length, asdict(subject.context.shape)
    known = latency_model.identity(
        pruner, cpu=cpu_model(), linears=choose(dtype_of(goal.dtype)).name, dtype=goal.dtype, threads=goal.threads,
        batch=goal.batch, longest=longest, family=subject.family, **shape,
    )  # fmt: skip
    path = latency_model.place(cache, known)
    if (stored := latency_model.load(path, known)) is not None:
        found, when = stored
        say(f"goal 1/4   the staircase of this machine, measured {when}, nothing is measured: {path}")
        return found
    how = f"{goal.dtype}, {goal.clock} time, {goal.threads} thread{'s' * (goal.threads > 1)}"
    who = f"linears {known['linears']}, attention {known['attention']}"
    say(f"goal 1/4   measuring the staircase of this machine: batches of {goal.batch}, {how}, {who}")
    shapes = latency_model.sizes(goal.batch, longest)
    found = measure(goal, subject.model(pruner), pruner, track(shapes, "staircase", len(shapes)))
    latency_model.save(path, known, found, load_average())
    say(f"goal 1/4   kept for the next run: {path}")
    return found


def measure(goal: Goal, model: PreTrainedModel, pruner: TokenPruner, shapes: Iterable[tuple[int, int]]) -> LatencyModel:
    """The staircase of a model's layers, by the goal's clock."""
    engine = PackedEngine(model.eval(), dtype=goal.dtype, threads=goal.threads)
    read = time.process_time if goal.clock == "cpu" else time.perf_counter
    return latency_model.measure(engine, pruner, goal.batch, shapes, read)


# -- after training --------------------------------------------------------------------------------------


def verify(
    goal: Goal,
    folder: Path,
    model: PreTrainedModel,
    split: EncodedSplit,
    counts: tuple[Float[Tensor, "layers rows"], Float[Tensor, "layers rows"]],
    layers: Iterable[int],
) -> dict[str, Any]:
    """Asked, predicted and measured, for the result; `counts` are tokens that entered the halves of each layer.

    The trained model runs in the packed engine on the batches that the prediction was made for. `met` says whether the
    measured median is within `TOLERANCE` of the goal.
    """
    stored = restored(folder)
    assert stored is not None, f"{folder / FILE} is gone; the budget of this run was derived from it."
    found, steps = stored
    batches = drawn(len(split), goal)
    spent = timed(goal, model, [[encode_row(split, int(row)) for row in batch] for batch in batches])
    median = spent["ms"]["median"]
    return {
        "asked_ms": goal.latency_ms,
        **{key: value for key, value in asdict(goal).items() if key != "latency_ms"},
        "device": "cpu",
        "clock": goal.clock,
        "split": "validation",
        "texts": batches.numel(),
        **asdict(found),
        "predicted_as_trained_ms": float(np.median(steps.milliseconds(*counts, batches, layers))),
        "measured_ms": median,
        **spent,
        "margin": MARGIN,
        "tolerance": TOLERANCE,
        "feasible_ms": [found.fastest_ms, found.dense_ms],
        "met": median <= goal.latency_ms * (1 + TOLERANCE),
    }


def timed(goal: Goal, model: PreTrainedModel, batches: list[list[Encoded]]) -> dict[str, Any]:
    """Ms per batch in the packed engine: median and quartiles, p95; `control` is the engine against itself."""
    engine = PackedEngine(model.eval(), dtype=goal.dtype, threads=goal.threads)
    packed = PackedBenchEngine("pruned", engine, prune=True)
    rounds = track(range(ROUNDS + 1), "goal 4/4   verify", ROUNDS + 1)
    with computing_with(goal.threads):
        spent = time_batches({"pruned": packed.logits, "control": packed.logits}, batches, rounds, clocks)
    clock = ("cpu", "wall").index(goal.clock)
    own, other = (
        np.array([[batch[clock] for batch in row] for row in spent[name][1:]]) for name in ("pruned", "control")
    )
    return {
        "ms": spread((1000 * own).ravel().tolist()).to_json(),
        "p95_ms": float(np.quantile(1000 * own, 0.95)),
        "control": float(np.median(own.sum(-1) / other.sum(-1))),
        "rounds": ROUNDS,
        "load": load_average(),
    }
