"""Latency goals: derive a FLOPs budget from `goal.latency_ms=12` on this machine, and measure the trained model.

Four steps: measure the machine's latency model once (runtime/latency_model.py), translate, train, verify. The budget is
derived once and kept in the run's folder: measuring the machine again changes no run that has started.
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
from prunekit.files import damage, write_sealed_text
from prunekit.methods.base import MethodOptions
from prunekit.methods.context import MethodContext
from prunekit.runs.storage import keep_in_cache
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
    """A goal that the method cannot meet on this machine, whatever its schedule."""

    exit_code = MISSED


@dataclass(frozen=True)
class Goal:
    """The requested median milliseconds of a batch of `batch` texts."""

    latency_ms: float
    batch: int
    threads: int
    dtype: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Goal | None:
        """Return the goal of a configuration; None if it has none."""
        if not has_goal(cfg):
            return None
        given = cfg["goal"]
        return cls(given["latency_ms"], given["batch"], given["threads"], given["dtype"])

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """The clock of the benchmark protocol: CPU time of the process on one thread, wall time on more."""
        return "cpu" if self.threads == 1 else "wall"

    @property
    def key(self) -> str:
        """The goal as it is typed."""
        return f"goal.latency_ms={self.latency_ms:g}"


@dataclass(frozen=True)
class Aim:
    """The FLOPs budget derived from a latency goal, with the predicted median batch latencies behind it."""

    budget: float
    predicted_ms: float
    fastest_ms: float
    dense_ms: float


def translate(
    predict: Callable[[float], float], goal: Goal, low: float, high: float, dense_ms: float, what: str
) -> Aim:
    """Return the smallest FLOPs reduction in [low, high] whose predicted ms are `MARGIN` below the goal.

    Where only the goal itself is in reach, and not its margin, the largest reduction. `predict` gives the ms of a
    reduction and falls with it; `dense_ms` are those of the unpruned model.

    Raises:
        ConfigError: the unpruned model is as fast already.
        GoalOutOfReachError: the largest reduction is slower than the goal.
    """
    fastest = predict(high)
    feasible = f"Feasible with {what}: {_ms(fastest, up=True)} ms (most pruned) to {_ms(dense_ms)} ms (dense)."
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
    """Format with two decimals, rounded inwards, so that the offered value is accepted."""
    whole = np.ceil(value * 100) if up else np.floor(value * 100)
    return f"{whole / 100:g}"


# -- before training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoalSubject:
    """What the goal is about: a method on a backbone, and the task with its texts."""

    options: MethodOptions
    context: MethodContext
    model: Callable[[TokenPruner], PreTrainedModel]  # that carries a pruner; its weights play no part
    family: str  # of the model, as Hugging Face calls its type
    what: str  # all of it, for messages

    def pruner(self) -> TokenPruner:
        """Return the pruner that the method starts with."""
        found = self.options.build_pruner(self.context.shape)
        assert found is not None
        return found


def aim(goal: Goal, subject: GoalSubject, folder: Path, cache: Path) -> Aim:
    """Return the budget that a run trains to, stored in its `folder` or derived from a cached or new latency model.

    Raises:
        ConfigError: the goal is out of reach or met already, or validation is smaller than a batch.
    """
    stored = load_stored_goal(folder)
    if stored is not None:
        found, steps = stored
        say(f"goal 1/4   {folder / FILE}: derived when this run began, nothing is measured")
    else:
        pruner, context = subject.pruner(), subject.context
        whole = context.lengths["validation"].expand(context.shape.layers, -1).float()
        batches = draw_batches(whole.shape[1], goal)
        steps = _staircase(goal, subject, pruner, cache)
        dense = float(np.median(steps.milliseconds(whole, whole, batches)))

        def predict(reduction: float) -> float:
            counts = subject.options.likely_counts(context, reduction)
            return float(np.median(steps.milliseconds(*counts, batches, pruner.layers)))

        feasible = subject.options.feasible(context)
        found = translate(predict, goal, *feasible, dense, subject.what)
        content = {"goal": asdict(goal), "aim": asdict(found), "staircase": asdict(steps)}
        write_sealed_text(folder / FILE, json.dumps(content, indent=1) + "\n")
    say(
        f"goal 2/4   {goal.latency_ms:g} ms at batch {goal.batch} needs {found.budget:.4g}x fewer FLOPs: "
        f"{found.predicted_ms:.3g} ms predicted; feasible here: {found.fastest_ms:.3g} to {found.dense_ms:.3g} ms"
    )
    say(f"goal 3/4   training to {found.budget:.4g}x")
    return found


def load_stored_goal(folder: Path) -> tuple[Aim, LatencyModel] | None:
    """Load the goal stored when this run first started; None if it has not started.

    Raises:
        ConfigError: it was damaged; another budget than that of the steps already trained must not be derived.
    """
    if (wrong := damage(folder / FILE)) is not None:
        raise ConfigError(
            f"{folder / FILE} {wrong}.\nAllowed: the goal as it was derived when this run began.\n"
            f"Delete the folder {folder} and give the same command again, which starts the run anew."
        )
    try:
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Aim(**stored["aim"]), LatencyModel.from_json(stored["staircase"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def draw_batches(rows: int, goal: Goal) -> Int[Tensor, "batches texts"]:
    """Return whole batches of row numbers below `rows`, in a seeded order: predicted now, and measured after training.

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
    """Return the machine's latency model for these layers: read from the cache, or measured and stored there."""
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
    if path.is_file():
        say(f"cache      {path} is damaged; it is made again.")
    how = f"{goal.dtype}, {goal.clock} time, {goal.threads} thread{'s' * (goal.threads > 1)}"
    who = f"linears {known['linears']}, attention {known['attention']}"
    say(f"goal 1/4   measuring the staircase of this machine: batches of {goal.batch}, {how}, {who}")
    shapes = latency_model.sizes(goal.batch, longest)
    found = measure(goal, subject.model(pruner), pruner, track(shapes, "staircase", len(shapes)))
    if keep_in_cache(path, lambda: latency_model.save(path, known, found, load_average())):
        say(f"goal 1/4   kept for the next run: {path}")
    return found


def measure(goal: Goal, model: PreTrainedModel, pruner: TokenPruner, shapes: Iterable[tuple[int, int]]) -> LatencyModel:
    """Measure the latency model of a model's layers with the goal's clock."""
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
    """Return requested, predicted and measured latency; `counts` are the tokens that entered each half of each layer.

    The trained model runs in the packed engine on the batches that the prediction was made for. `met` says whether the
    measured median is within `TOLERANCE` of the goal.
    """
    stored = load_stored_goal(folder)
    assert stored is not None, f"{folder / FILE} is gone; the budget of this run was derived from it."
    found, steps = stored
    batches = draw_batches(len(split), goal)
    spent = measure_latency(goal, model, [[encode_row(split, int(row)) for row in batch] for batch in batches])
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


def measure_latency(goal: Goal, model: PreTrainedModel, batches: list[list[Encoded]]) -> dict[str, Any]:
    """Time batches in the packed engine: median, quartiles and p95 in ms; `control` is the engine against itself."""
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
