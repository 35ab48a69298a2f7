"""Compare two configurations over seeds or over test examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from prunekit.report.measures import Measure
from prunekit.report.paired import p_over_rows
from prunekit.report.rows import Row
from prunekit.report.seeds import Summary, difference, holm, summary
from prunekit.results import examples
from prunekit.results.examples import Examples

# runs are compared where these agree
TOGETHER = ("task", "backbone", "budget")


@dataclass(frozen=True)
class Cell:
    """One configuration over seeds; `note` replaces a missing number, `p` is against the best of its group."""

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


# of two cells the p value of their difference, and why there is none
Test = Callable[[Cell, Cell], tuple[float | int | None, str]]


def p_over_seeds(one: Cell, other: Cell) -> tuple[float | int | None, str]:
    """Test two cells over seeds."""
    return difference(one.values, other.values), ""


def p_over_examples(measure: Measure, one: Cell, other: Cell) -> tuple[float | None, str]:
    """Test two cells over the test rows that their runs store predictions of."""
    first = (*one.runs, *other.runs)[0]
    metric = first["metric"] if measure.name == "score" else measure.name
    try:
        left, right = _stored_examples(one), _stored_examples(other)
    except ValueError as error:
        return None, str(error)
    p = p_over_rows(left, right, metric) if left and right else None
    if p is not None:
        return p, ""
    return None, (
        f"{first['task']}: {metric} is not tested over examples; that takes classes or values, predicted on "
        "the same rows and stored (examples=1) in the folders of runs"
    )


def _stored_examples(cell: Cell) -> dict[int, Examples]:
    """Load what the runs of a cell stored, by seed. Raises ValueError for a file that cannot be read."""
    loaded = {run["seed"]: examples.load(Path(run["source"])) for run in cell.runs}
    return {seed: stored for seed, stored in loaded.items() if stored is not None}


def mark_best(
    rows: Sequence[str],
    heads: Sequence[tuple[str, ...]],
    column: Sequence[Cell],
    test: Test = p_over_seeds,
    *,
    lower: bool = False,
) -> tuple[list[Cell], list[str]]:
    """Mark the best cell of each group in a column, and give the others their p value against it; dense is left out.

    Where all cells of a group are equal there is no best.
    Returns the cells, and why some could not be tested.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, (head, cell) in enumerate(zip(heads, column, strict=True)):
        if cell.values and not cell.dense:
            together = tuple(value for name, value in zip(rows, head, strict=True) if name in TOGETHER)
            groups.setdefault(together, []).append(number)
    marked, problems = list(column), []
    for members in (members for members in groups.values() if len(members) > 1):
        sign = -1 if lower else 1
        means = {number: sign * fmean(column[number].values.values()) for number in members}
        if max(means.values()) == min(means.values()):
            continue
        top = max(members, key=means.__getitem__)
        others = [number for number in members if number != top]
        marked[top] = replace(column[top], best=True)
        tests = [test(column[number], column[top]) for number in others]
        problems += [problem for _, problem in tests if problem]
        for number, p in zip(others, holm([p for p, _ in tests]), strict=True):
            marked[number] = replace(column[number], p=p)
    return marked, problems
