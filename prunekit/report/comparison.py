"""Compare two configurations over seeds or over test examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from prunekit.report.measures import Measure
from prunekit.report.paired import by_examples
from prunekit.report.rows import (
    Row,
)
from prunekit.report.seeds import Summary, difference, holm, summary
from prunekit.results import examples
from prunekit.results.examples import Examples

# runs are compared where these agree
TOGETHER = ("task", "backbone", "budget")


@dataclass(frozen=True)
class Cell:
    """One configuration over seeds; `note` stands where there is no number, `p` is against the best of its group."""

    values: Mapping[int, float | int] = field(default_factory=dict)
    dense: bool = False
    missed: bool = False
    note: str = ""
    best: bool = False
    p: float | None = None
    runs: tuple[Row, ...] = ()

    @property
    def summary(self) -> Summary | None:
        """Mean and spread over seeds; None where there is no number."""
        return summary(list(self.values.values())) if self.values else None


Test = Callable[[Cell, Cell], float | int | None]


def _by_seeds(one: Cell, other: Cell) -> float | int | None:
    return difference(one.values, other.values)


def _by_examples(shows: Measure, problems: list[str], one: Cell, other: Cell) -> float | None:
    """p over the test rows of the runs' stored predictions; None, and a problem, where these do not allow it."""
    first = (*one.runs, *other.runs)[0]
    metric = first["metric"] if shows.name == "score" else shows.name
    stored: list[dict[int, Examples]] = []
    for cell in (one, other):
        try:
            found = {run["seed"]: examples.load(Path(run["source"])) for run in cell.runs}
        except ValueError as error:
            problems.append(str(error))
            return None
        stored.append({seed: run for seed, run in found.items() if run is not None})
    left, right = stored
    p = by_examples(left, right, metric) if left and right else None
    if p is None:
        problem = (
            f"{first['task']}: {metric} is not tested over examples; that takes classes or values, predicted on "
            "the same rows and stored (examples=1) in the folders of runs"
        )
        if problem not in problems:
            problems.append(problem)
    return p


def compared(
    rows: Sequence[str],
    heads: Sequence[tuple[str, ...]],
    column: Sequence[Cell],
    test: Test = _by_seeds,
    *,
    lower: bool = False,
) -> list[Cell]:
    """A column with the best of each group marked, and the p values of the others against it; dense stays apart."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, (head, cell) in enumerate(zip(heads, column, strict=True)):
        if cell.values and not cell.dense:
            together = tuple(value for name, value in zip(rows, head, strict=True) if name in TOGETHER)
            groups.setdefault(together, []).append(number)
    found = list(column)
    for members in (members for members in groups.values() if len(members) > 1):
        sign = -1 if lower else 1
        top = max(members, key=lambda number: sign * fmean(column[number].values.values()))
        others = [number for number in members if number != top]
        found[top] = replace(column[top], best=True)
        for number, p in zip(others, holm([test(column[i], column[top]) for i in others]), strict=True):
            found[number] = replace(column[number], p=p)
    return found
