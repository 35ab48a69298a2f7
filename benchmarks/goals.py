"""The runtime's goals, as ratios, and whether they are reached on this machine.

PRUNEKIT_DATA=... python train.py -m sweeps=goals
python benchmarks/goals.py runs=runs    # measures what is not stored yet, and writes the table
python benchmarks/goals.py              # the table again, from benchmarks/results/goals_*.json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.bench.result import BenchResult, Comparison, SizeResult, Spread
from prunekit.bench.table import put_table
from prunekit.cli import bench
from prunekit.cli.settings import asks_for_help, parse_settings, print_help, run_script
from prunekit.config.errors import DONE, ConfigError
from prunekit.console import say
from prunekit.runtime.kernels.linears import DTYPES, has_instructions

ROOT = Path(__file__).parents[1]
SETTINGS = Path(__file__).with_suffix(".yaml")
RESULTS = ROOT / "benchmarks" / "results"
# task and budgets of sweeps=goals -> texts that are read, so that a pass takes about as long for each
TEXTS = {"sst2": 128, "mrpc": 64, "bbc_news": 32}
BESIDE_PEERS = "4x"
# what else is measured at that budget, by the end of its file's name: settings of prunekit bench
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "": {"attention": "auto", "warm": "true"},
    "_torch": {"attention": "torch", "warm": "true"},
    "_cold": {"attention": "auto", "warm": "false"},
}


@dataclass(frozen=True)
class RunRatio:
    """A ratio of one run, and whether the machine was quiet when it was measured."""

    task: str
    budget: str
    ratio: float
    trusted: bool


Reader = Callable[[Sequence[BenchResult]], Iterator[RunRatio]]


@dataclass(frozen=True)
class Goal:
    """A ratio that is wanted of some runs."""

    what: str
    wanted: float
    read: Reader


def _sizes(results: Sequence[BenchResult], size: int, variant: str = "") -> Iterator[tuple[BenchResult, SizeResult]]:
    """Yield what was measured on one thread at a batch size, with the result that it belongs to."""
    for result in results:
        if {name: str(result.settings[name]).lower() for name in VARIANTS[variant]} != VARIANTS[variant]:
            continue
        yield from ((result, found) for found in result.blocks[0].sizes if found.batch_size == size)


def realised_share(size: int, dtype: str, budgets: Sequence[str], variant: str = "") -> Reader:
    """Read the packed engine's speed-up over itself unpruned, as a share of the ratio of executed FLOPs."""

    def read(results: Sequence[BenchResult]) -> Iterator[RunRatio]:
        for result, found in _sizes(results, size, variant):
            for row in found.ratios:
                if row.own == f"prunekit packed {dtype}, pruned" and result.budget in budgets:
                    assert row.vs_unpruned is not None, "a pruned engine is compared with itself"
                    yield RunRatio(result.task, str(result.budget), row.vs_unpruned.efficiency, found.trusted)

    return read


def speed_up(size: int, dtype: str, role: str, against: str | None, tasks: Sequence[str] = tuple(TEXTS)) -> Reader:
    """Read how many times as fast the best of our engines is at 4x, or unpruned, as a peer (None: the best one).

    against="itself" compares with the same engine unpruned.
    """

    def compared(row: Comparison) -> Spread | None:
        if against == "itself":
            return row.vs_unpruned
        return row.vs_unpadded if against is None else row.vs_each.get(against)

    def read(results: Sequence[BenchResult]) -> Iterator[RunRatio]:
        best: dict[str, RunRatio] = {}
        for result, found in _sizes(results, size):
            if result.budget != BESIDE_PEERS or result.task not in tasks:
                continue
            for row in found.ratios:
                ratio = compared(row) if (row.dtype, row.role) == (dtype, role) else None
                if ratio is not None and (result.task not in best or best[result.task].ratio < ratio.median):
                    best[result.task] = RunRatio(result.task, str(result.budget), ratio.median, found.trusted)
        yield from best.values()

    return read


def steady_over_first(size: int, dtype: str, variant: str) -> Reader:
    """Read a later pass's time as a share of the first one's, in which all shapes are new; the packed engine at 4x."""

    def read(results: Sequence[BenchResult]) -> Iterator[RunRatio]:
        for result, found in _sizes(results, size, variant):
            for row in found.candidates:
                if row.name == f"prunekit packed {dtype}, pruned" and result.budget == BESIDE_PEERS:
                    yield RunRatio(result.task, str(result.budget), 1 / row.first_over_steady, found.trusted)

    return read


ALL = ("2x", "4x", "8x")
GOALS = (
    Goal("batch 32, fp32: speed-up / executed FLOPs ratio, 2x to 8x", 0.95, realised_share(32, "fp32", ALL)),
    Goal("the same at 12x", 0.90, realised_share(32, "fp32", ["12x"])),
    Goal("the same in bf16, 2x to 8x", 0.90, realised_share(32, "bf16", ALL)),
    Goal("the same in int8, 2x and 4x", 0.90, realised_share(32, "int8", ["2x", "4x"])),
    Goal("the same in fp32 without the native operator, 4x", 0.85, realised_share(32, "fp32", ["4x"], "_torch")),
    Goal("4x, batch 32, fp32: a later pass / the first, after `warm()`", 0.97, steady_over_first(32, "fp32", "")),
    Goal("the same without `warm()`: all shapes are new", 0.97, steady_over_first(32, "fp32", "_cold")),
    Goal("unpruned, batch 1, fp32: as fast as the best peer", 0.97, speed_up(1, "fp32", "unpruned", None)),
    Goal("unpruned, batch 32: OpenVINO, dynamic padding", 1.5, speed_up(32, "fp32", "unpruned", "openvino fp32")),
    Goal("unpruned, batch 32: CTranslate2", 1.2, speed_up(32, "fp32", "unpruned", "ctranslate2 fp32")),
    Goal("4x, batch 32: ONNX Runtime, dynamic padding", 7, speed_up(32, "fp32", "pruned", "onnxruntime fp32")),
    Goal("4x, batch 32: ONNX Runtime, sorted by length", 5, speed_up(32, "fp32", "pruned", "onnxruntime fp32, sorted")),
    Goal("4x, batch 1: ONNX Runtime, MRPC", 2.7, speed_up(1, "fp32", "pruned", "onnxruntime fp32", ["mrpc"])),
    Goal("4x, int8, batch 32: OpenVINO int8", 4.5, speed_up(32, "int8", "pruned", "openvino int8")),
    Goal("4x, int8, batch 1: OpenVINO int8", 2, speed_up(1, "int8", "pruned", "openvino int8")),
    Goal("4x, batch 1: itself unpruned, SST-2 (25 tokens)", 1.8, speed_up(1, "fp32", "pruned", "itself", ["sst2"])),
    Goal("4x, batch 1: itself unpruned, MRPC (53 tokens)", 2.5, speed_up(1, "fp32", "pruned", "itself", ["mrpc"])),
    Goal("4x, batch 1: itself unpruned, long texts", 3.6, speed_up(1, "fp32", "pruned", "itself", ["bbc_news"])),
)


def load_training_goal(results: Path = RESULTS) -> list[tuple[str, float, list[RunRatio]]]:
    """Return the goal of training, from what benchmarks/training_step.py stored."""
    ratios = []
    for path in sorted(results.glob("training_step_*.json")):
        stored = json.loads(path.read_text())
        ratio = stored["faster_than_reference"]["hard"]
        ratios.append(RunRatio(stored["task"], stored["budget"], ratio, trusted=True))
    return [("a training step that removes tokens: the reference-style step", 10, ratios)]


def table(results: Sequence[BenchResult], steps: Sequence[tuple[str, float, list[RunRatio]]] = ()) -> str:
    """Return one row per goal: what is wanted, what was measured of each run, and whether that is enough."""
    lines = ["| goal | wanted | measured | |", "|---|---:|---|---|"]
    goals = [(goal.what, goal.wanted, list(goal.read(results))) for goal in GOALS]
    for what, wanted, ratios in [*goals, *steps]:
        cells = [
            f"{one.task} {one.budget} {_digits(one.ratio, wanted)}{'' if one.trusted else ' (not quiet)'}"
            for one in sorted(ratios, key=lambda one: (one.task, float(one.budget.rstrip("x"))))
        ]
        enough = sum(one.ratio >= wanted for one in ratios)
        verdict = "not measured" if not ratios else "reached" if enough == len(ratios) else "**missed**"
        if 0 < enough < len(ratios):
            verdict = f"{enough} of {len(ratios)}"
        lines.append(f"| {what} | {wanted:g} | {', '.join(cells) or '-'} | {verdict} |")
    machines = {
        (machine.cpus, machine.cpu, machine.instructions): result.date
        for result in results
        if (machine := result.hardware)
    }
    measured = [f"{count} cores of {cpu} ({vectors}), {day}." for (count, cpu, vectors), day in machines.items()]
    return "\n".join([*lines, "", *measured]) + "\n"


def _digits(ratio: float, wanted: float) -> str:
    """Return two digits after the point, and a third where two would show a missed goal as reached."""
    short = f"{ratio:.2f}"
    return short if (float(short) >= wanted) == (ratio >= wanted) else f"{ratio:.3f}"


def load_stored(folder: Path = RESULTS) -> list[BenchResult]:
    """Return what was measured."""
    return [BenchResult.from_json(json.loads(path.read_text())) for path in sorted(folder.glob("goals_*.json"))]


def find_checkpoints(runs: Path) -> list[tuple[str, str, Path]]:
    """Return task, budget and folder of each finished run of sweeps=goals.

    Raises:
        ConfigError: there is none, or two of one task and budget.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(runs.glob("*/topk/*/*/s*/result.json")):
        task, budget = path.parts[-6], path.parts[-3]
        if task not in TEXTS:
            continue
        if (task, budget) in found:
            raise ConfigError(
                f"runs={runs} has two runs of top-k on {task} at {budget}: {found[task, budget]} and {path.parent}.\n"
                "Allowed: those of sweeps=goals alone.\nGive them a folder of their own: runs_dir=..."
            )
        found[task, budget] = path.parent
    if not found:
        raise ConfigError(
            f"runs={runs} has no finished run of top-k on {', '.join(TEXTS)}.\n"
            "Allowed: a folder with the runs of sweeps=goals.\nRun python train.py -m sweeps=goals first."
        )
    return [(task, budget, path) for (task, budget), path in found.items()]


def measure(given: Mapping[str, Any]) -> None:
    """Measure each checkpoint that has no stored timings, in the precisions that this processor has."""
    able = [dtype for dtype in DTYPES if has_instructions(dtype)]
    for task, budget, run in find_checkpoints(Path(given["runs"])):
        for variant in VARIANTS if budget == BESIDE_PEERS else ("",):
            beside = budget == BESIDE_PEERS and not variant
            out = RESULTS / f"goals_{task}_{budget}{variant}.json"
            if out.is_file():
                say(f"stored     {out.name}")
                continue
            # no goal is set for any other batch size, nor for batch 1 at other budgets
            sizes, dtypes = "[1,32]" if beside else "[32]", able[:1] if variant else able
            arguments = [
                f"run={run}", f"examples={TEXTS[task]}", f"batch_sizes={sizes}", f"dtypes=[{','.join(dtypes)}]",
                f"peers={given['peers'] if beside else 'none'}", f"rounds={given['rounds']}",
                f"seconds={given['seconds']}", f"out={out}",
                *(f"{name}={value}" for name, value in VARIANTS[variant].items()),
            ]  # fmt: skip
            say(f"measure    {out.name}")
            bench.main(arguments)


def main(arguments: Sequence[str]) -> int:
    """Measure if asked to, and write the table. Return 0."""
    if asks_for_help(arguments):
        return print_help(SETTINGS)
    given = parse_settings(SETTINGS, arguments)
    if given["runs"] is not None:
        measure(given)
    page = ROOT / given["into"]
    put_table(page, table(load_stored(), load_training_goal()), "goals")
    print(page)
    return DONE


if __name__ == "__main__":
    run_script(main)
