"""`prunekit table`: finished runs as one table over seeds, with significant differences from the best marked.

prunekit table                                                 the runs in runs/
prunekit table runs task=cola,sst2 budget=2x rows=method cols=task metric=score,reduction
prunekit table runs save=results.json                          the same runs, compact, to be committed
prunekit table results.json format=latex
prunekit table runs test=examples                              marks by paired tests over the test rows, for few seeds
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from prunekit.config.errors import ConfigError, shown
from prunekit.config.identity import DENSE, is_dense
from prunekit.report.comparison import Cell, mark_best, p_over_examples, p_over_seeds
from prunekit.report.measures import MEASURES, Measure, measure
from prunekit.report.rows import (
    Row,
    check_fields,
    differences,
    one_per_seed,
    value_of,
    variant,
    with_teachers,
)

# the order of the README: these methods first, these controls last, any other between them by name
FIRST, LAST = (DENSE, "top", "ltp"), ("topk", "threshold", "random", "first", "layers", "truncate")
NOT_OF_DENSE = ("budget", "method.")  # fields that a dense run does not have


@dataclass(frozen=True)
class Column:
    """A column: the values its runs share, the measure it shows, and the task's metric where they share one."""

    head: tuple[str, ...]
    measure: Measure
    metric: str = ""


@dataclass(frozen=True)
class Table:
    """A finished table: lines of (values that its runs share, cells).

    `caption` has the values that all runs share, `problems` what was left out or could not be tested.
    """

    rows: tuple[str, ...]
    cols: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]
    caption: str
    problems: tuple[str, ...]
    test: str = "seeds"

    @property
    def cells(self) -> list[Cell]:
        """All cells, line by line."""
        return [cell for _, cells in self.lines for cell in cells]


def build(
    runs: Sequence[Row],
    rows: Sequence[str],
    cols: Sequence[str],
    metrics: Sequence[str] = ("score",),
    *,
    best: bool = False,
    order: Mapping[str, Sequence[str]] | None = None,
    test: str = "seeds",
) -> Table:
    """Sort runs into cells by the fields `rows` and `cols`, and average each cell over seeds.

    A cell whose runs differ in more than the seed has no average and a note instead, unless `best` chooses the
    configuration with the best mean validation score. `order` lists values of a field in the wanted order. `test` is
    what the best is compared over: seeds, or test examples.

    Raises:
        ConfigError: an unknown field or metric.
    """
    check_fields(runs, rows, "rows=")
    check_fields(runs, cols, "cols=")
    _check_metrics(runs, metrics)
    runs, problems = with_teachers(one_per_seed(runs))
    runs, mixed = one_metric(runs)
    problems += mixed
    heads = _heads(runs, rows, order or {})
    tops = _heads(runs, cols, order or {})
    if any(name.startswith(NOT_OF_DENSE) for name in cols):  # a dense run is in the first column of its task
        tops = [top for top in tops if DENSE not in top] or tops
    columns = [Column(top, measure(name), _metric(runs, cols, top)) for top in tops for name in metrics]
    grid = []
    for head in heads:
        here = [run for run in runs if _key(run, rows) == head]
        cells = [
            _cell(some, column.measure, best, [*zip(rows, head, strict=True), *zip(cols, column.head, strict=True)])
            for some, column in zip(_by_column(here, cols, columns), columns, strict=True)
        ]
        problems += [problem for _, problem in cells if problem]
        grid.append([cell for cell, _ in cells])
    for place, column in enumerate(columns):
        if column.measure.tested:
            tested = partial(p_over_examples, column.measure) if test == "examples" else p_over_seeds
            cells_of = [line[place] for line in grid]
            marked, untested = mark_best(rows, heads, cells_of, tested, lower=column.measure.lower)
            problems += untested
            grid = [[*line[:place], cell, *line[place + 1 :]] for line, cell in zip(grid, marked, strict=True)]
    lines = [(_displayed_head(rows, head), tuple(line)) for head, line in zip(heads, grid, strict=True)]
    caption = _shared_values(runs, [*rows, *cols])
    every = tuple(dict.fromkeys(problems))
    return Table(tuple(rows), tuple(cols), tuple(columns), tuple(lines), caption, every, test)


def _by_column(runs: Sequence[Row], cols: Sequence[str], columns: Sequence[Column]) -> list[list[Row]]:
    """Return the runs of a line that belong to each column; dense runs are shown once for each measure."""
    displayed: set[tuple[Any, ...]] = set()
    found = []
    for column in columns:
        here = [run for run in runs if _belongs(run, cols, column.head)]
        if here and all(is_dense(run["method"]) for run in here):
            once = (column.measure.name, *sorted((run["task"], run["backbone"], run["hash"]) for run in here))
            here = [] if once in displayed else here
            displayed.add(once)
        found.append(here)
    return found


def _check_metrics(runs: Sequence[Row], metrics: Sequence[str]) -> None:
    own = sorted({name for run in runs for name in run["scores"]})
    for name in metrics:
        if name not in MEASURES and all(measure(name).read(run) is None for run in runs):
            raise ConfigError(
                f"metric={name}: no run has it.\n"
                f"Allowed: {', '.join([*MEASURES, 'speedup_b1', 'speedup_b32_padded', *own])}.\n"
                "Speed-ups exist for runs with bench.enabled=true, at their bench.batch_sizes."
            )


def one_metric(runs: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the runs scored by the metric, on the rows, that most runs of their task have; and what was left out."""
    kept: list[Row] = []
    problems = []
    for task in {run["task"]: None for run in runs}:
        here = [run for run in runs if run["task"] == task]
        kinds = [f"{run['metric']} on {run['rows']} {run['split']} rows" for run in here]
        usual = max(dict.fromkeys(kinds), key=kinds.count)
        other = [
            f"{run['method']} {run['budget']} s{run['seed']}-{run['hash']} ({kind})"
            for run, kind in zip(here, kinds, strict=True)
            if kind != usual
        ]
        if other:
            listed = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
            problems.append(f"{task}: shows {usual}; left out, because these do not compare: {listed}")
        kept += [run for run, kind in zip(here, kinds, strict=True) if kind == usual]
    return kept, problems


def _key(run: Row, names: Sequence[str]) -> tuple[str, ...]:
    """Return the run's values of these fields; `dense` where a dense run has none, such as for a method's option."""

    def text(name: str) -> str:
        value = value_of(run, name)
        none = name.startswith(NOT_OF_DENSE) or value is None
        return DENSE if is_dense(run["method"]) and none else shown(value)

    return tuple(text(name) for name in names)


def _heads(runs: Sequence[Row], names: Sequence[str], order: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the values of these fields that occur, sorted; dense first, in whichever field it is."""

    def place(head: tuple[str, ...]) -> tuple[bool, list[Any]]:
        return DENSE not in head, [
            rank(name, value, order.get(name, ())) for name, value in zip(names, head, strict=True)
        ]

    return sorted({_key(run, names) for run in runs}, key=place)


def rank(name: str, value: str, wanted: Sequence[str]) -> tuple[int, float | int, str]:
    """Return a sort key for a value of a field: `wanted` values first, methods as in the README, numbers by size."""
    if value in wanted:
        return 0, wanted.index(value), value
    if name == "method" and value in LAST:
        return 3, LAST.index(value), value
    if name == "method":
        return (1, FIRST.index(value), value) if value in FIRST else (2, 0, value)
    try:
        return 1, float(value.removesuffix("x")), value
    except ValueError:
        return 2, 0, value


def _belongs(run: Row, cols: Sequence[str], top: Sequence[str]) -> bool:
    """Return whether a run belongs to a column; a dense run belongs to those of every budget and option."""
    free = [is_dense(run["method"]) and name.startswith(NOT_OF_DENSE) for name in cols]
    return all(any_ or found == value for any_, found, value in zip(free, _key(run, cols), top, strict=True))


def _metric(runs: Sequence[Row], cols: Sequence[str], top: Sequence[str]) -> str:
    names = {run["metric"] for run in runs if _belongs(run, cols, top)}
    return names.pop() if len(names) == 1 else ""


def _displayed_head(rows: Sequence[str], head: tuple[str, ...]) -> tuple[str, ...]:
    """Return a line's values as displayed: for dense no budget and no options, but `dense` once."""
    if DENSE not in head:
        return head
    hidden = ("budget", "method.", "trainer.")
    values = ["" if name.startswith(hidden) else value for name, value in zip(rows, head, strict=True)]
    if DENSE not in values:
        values[head.index(DENSE)] = DENSE
    return tuple(values)


def _shared_values(runs: Sequence[Row], displayed: Sequence[str]) -> str:
    """List the fields that are not in the table, with their values."""
    parts = []
    for name in ("task", "method", "backbone", "budget"):
        values = sorted({str(run[name]) for run in runs} - ({DENSE} if name in ("method", "budget") else set()))
        if name not in displayed and values:
            parts.append(f"{name} {', '.join(values)}")
    seeds = sorted({run["seed"] for run in runs})
    return ", ".join([*parts, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"])


def _cell(
    runs: Sequence[Row], measure: Measure, best: bool, place: Sequence[tuple[str, str]]
) -> tuple[Cell, str | None]:
    """Average runs over seeds; returns the cell, and why it has no average if it should have one."""
    if not runs:
        return Cell(), None
    groups: dict[str, list[Row]] = {}
    for run in runs:
        groups.setdefault(variant(run), []).append(run)
    different = differences(runs) if len(groups) > 1 else {}
    if len(groups) > 1 and best and not {"task", "method", "backbone", "budget"} & different.keys():
        groups = {"": max(groups.values(), key=_mean_validation)}
    if len(groups) > 1:
        where = ", ".join(f"{name}={value}" for name, value in place)
        listed = "; ".join(f"{name} is {' or '.join(values[:4])}" for name, values in list(different.items())[:3])
        return Cell(note=f"{len(groups)} configurations"), (
            f"{where}: {len(groups)} configurations are no average ({listed}); add {next(iter(different))} to rows= "
            f"or cols=, choose one with {next(iter(different))}=..., or take the best on validation with best=true"
        )
    (chosen,) = groups.values()
    values = {run["seed"]: value for run in chosen if (value := measure.read(run)) is not None and math.isfinite(value)}
    cell = Cell(
        {seed: measure.scale * value for seed, value in sorted(values.items())},
        dense=all(is_dense(run["method"]) for run in chosen),
        missed=any(run["status"] == "budget_missed" for run in chosen),
        runs=tuple(chosen),
    )
    return cell, None


def _mean_validation(runs: Sequence[Row]) -> tuple[bool, float | int]:
    """Return a sort key for a configuration: whether every seed met its budget, then the mean validation score."""
    known = [run["validation"] for run in runs if run["validation"] is not None]
    return all(run["status"] == "done" for run in runs), fmean(known) if known else -math.inf


def default_rows(runs: Sequence[Row], cols: Sequence[str]) -> list[str]:
    """Return the fields of a line when none are given: backbone and budget if there are several, then the method."""
    several = [
        name
        for name in ("backbone", "budget")
        if name not in cols and len({run[name] for run in runs if not is_dense(run["method"])}) > 1
    ]
    # runs whose results name variants are told apart by these
    named = "variant" if any("variant" in run for run in runs) else "method"
    return [*several, *([named] if not {"method", named} & set(cols) else [])] or ["seed"]
