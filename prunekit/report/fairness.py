"""Checks that compared runs had the same conditions: teacher, lengths, trials, seeds, data, epochs, measured cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.config.errors import shown
from prunekit.config.identity import is_dense
from prunekit.report.rows import Row, variant

CHECKED = "teacher, data, rows and metric, max length, seeds, tuning trials, epochs, measured FLOPs, hardware"
# kinds of differences, the gravest first, and the subjects of each but the last
GRAVITIES = ("The scores cannot be compared", "Methods had unequal chances", "The measurements are of different kinds")
SUBJECTS = (("teacher", "data", "score", "max length"), ("seeds", "tuning trials", "training"))
FEW = 3  # seeds below which a spread means little
APART = 0.05  # share by which measured FLOPs reductions of one budget may differ


@dataclass(frozen=True)
class Difference:
    """One difference between runs: its subject, the task and backbone, and a sentence for the page."""

    subject: str
    where: str
    sentence: str

    @property
    def gravity(self) -> int:
        """The place of its kind in `GRAVITIES`."""
        return next((place for place, subjects in enumerate(SUBJECTS) if self.subject in subjects), len(SUBJECTS))


def lint(runs: Sequence[Row]) -> list[Difference]:
    """List the differences between runs of one task and backbone, among what is `CHECKED`."""
    found: list[Difference] = []
    pruned = [row for row in runs if not is_dense(row["method"])]
    for task, backbone in {(row["task"], row["backbone"]): None for row in pruned}:
        here = [row for row in pruned if (row["task"], row["backbone"]) == (task, backbone)]
        found += [Difference(subject, f"{task}, {backbone}", text) for check in CHECKS for subject, text in check(here)]
    return found


def _name(row: Row) -> str:
    return f"{row['method']} {row['budget']}"


def _group(runs: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in runs:
        groups.setdefault(key(row), []).append(row)
    return groups


def _list_groups(groups: Mapping[Any, Sequence[Row]]) -> str:
    """List the methods of each value: 0.6: topk 2x, top 2x; 0.7: ltp 2x."""
    parts = []
    for value, rows in groups.items():
        names = list(dict.fromkeys(_name(row) for row in rows))
        parts.append(f"{value}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
    return "; ".join(parts[:4])


def _teacher(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    for seed, rows in sorted(_group(runs, lambda row: row["seed"]).items()):
        known = [row for row in rows if row["teacher"]]
        groups = _group(known, lambda row: row["teacher"][:8])
        if len(groups) < 2:
            groups = _group(
                [row for row in rows if row["dense"] is not None], lambda row: f"scoring {100 * row['dense']:.2f}"
            )
        if len(groups) > 1:
            yield "teacher", f"seed {seed}: runs start from different teachers ({_list_groups(groups)})."


def _data(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    for seed, rows in sorted(_group(runs, lambda row: row["seed"]).items()):
        groups = _group([row for row in rows if row["data"]], lambda row: row["data"][:8])
        if len(groups) > 1:
            yield "data", f"seed {seed}: the data fingerprints differ ({_list_groups(groups)})."
    groups = _group(runs, lambda row: f"{row['metric']} on {row['rows']} {row['split']} rows")
    if len(groups) > 1:
        yield "score", f"the scores are not of one kind ({_list_groups(groups)})."


def _same_key(key: str, subject: str, sentence: str) -> Callable[[Sequence[Row]], Iterable[tuple[str, str]]]:
    def check(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
        groups = _group([row for row in runs if key in row["config"]], lambda row: shown(row["config"][key]))
        if len(groups) > 1:
            yield subject, f"{sentence} ({_list_groups(groups)})."

    return check


def _seeds(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    sets = {
        name: tuple(sorted({row["seed"] for row in rows})) for name, rows in _group(runs, _name).items()
    }  # of a method at a budget
    different = _names_by_value(sets)
    if len(different) > 1:
        listed = "; ".join(
            f"{', '.join(map(str, seeds))}: {', '.join(names[:4])}" for seeds, names in different.items()
        )
        yield "seeds", f"methods ran with different seeds ({listed})."
    few = [name for name, seeds in sets.items() if len(seeds) < FEW]
    if few:
        yield "seeds", f"fewer than {FEW} seeds, so that no spread can be trusted: {', '.join(few[:8])}."


def _names_by_value(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    names: dict[Any, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return names


def _trials(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    counts = {name: len({variant(row) for row in rows}) for name, rows in _group(runs, _name).items()}
    different = _names_by_value(counts)
    if len(different) > 1:
        listed = "; ".join(f"{count}: {', '.join(names[:4])}" for count, names in sorted(different.items()))
        yield "tuning trials", f"methods were tried in different numbers of configurations ({listed})."


def _epochs(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    def training(row: Row) -> str:
        config = row["config"]
        return "0 epochs" if config.get("method.train") is False else f"{config.get('trainer.epochs')} epochs"

    groups = _group([row for row in runs if "trainer.epochs" in row["config"]], training)
    if len(groups) > 1:
        yield "training", f"methods were trained for different times ({_list_groups(groups)})."


def _cost(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    for budget, rows in _group(runs, lambda row: row["budget"]).items():
        reductions = {name: [row["flops"]["vs_unpadded"] for row in some] for name, some in _group(rows, _name).items()}
        means = {name: sum(values) / len(values) for name, values in reductions.items()}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        if budget != "own" and means[high] > (1 + APART) * means[low]:
            yield (
                "cost",
                f"one budget, different cost on the test: {low} {means[low]:.2f}x, {high} {means[high]:.2f}x fewer "
                "FLOPs.",
            )


def _hardware(runs: Sequence[Row]) -> Iterable[tuple[str, str]]:
    groups = _group([row for row in runs if row["speed"] and row["hardware"]], lambda row: row["hardware"])
    if len(groups) > 1:
        yield "hardware", f"speed was measured on different machines ({_list_groups(groups)})."


CHECKS: tuple[Callable[[Sequence[Row]], Iterable[tuple[str, str]]], ...] = (
    _teacher,
    _data,
    _same_key("task.max_length", "max length", "texts are cut at different lengths"),
    _same_key("task.padded_length", "padded length", "flops_vs_padded compares with different lengths"),
    _seeds,
    _trials,
    _epochs,
    _cost,
    _hardware,
)
