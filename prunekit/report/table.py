"""`prunekit table`: finished runs as one table, over seeds, with what differs significantly from the best marked.

prunekit table                                                 what lies in runs/
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
from prunekit.report.comparison import Cell, _by_examples, _by_seeds, compared
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

# methods in the order of the README, whatever else between them and the controls
FIRST, LAST = (DENSE, "top", "ltp"), ("topk", "threshold", "random", "first")
NOT_OF_DENSE = ("budget", "method.")  # fields that a run of nothing pruned does not have


@dataclass(frozen=True)
class Column:
    """A column: what its runs share, what is shown of them, and what the task's score is where they share it."""

    head: tuple[str, ...]
    measure: Measure
    metric: str = ""


@dataclass(frozen=True)
class Table:
    """A finished table: lines of (what its runs share, cells).

    `caption` says what all runs share, `notes` what the marks mean, `problems` what was left out.
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
        """All cells."""
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
    """Puts runs into cells by the fields `rows` and `cols`, and averages each over seeds.

    A cell whose runs differ in more than the seed is no average and says so, unless `best` chooses the configuration
    with the best mean validation score. `order` gives values of a field in the order wanted. `test` says over what the
    best is compared: seeds, or test examples.

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
    if any(name.startswith(NOT_OF_DENSE) for name in cols):  # a dense run stands in the first column of its task
        tops = [top for top in tops if DENSE not in top] or tops
    columns = [Column(top, measure(name), _metric(runs, cols, top)) for top in tops for name in metrics]
    grid = []
    for head in heads:
        shown_once: set[tuple[Any, ...]] = set()
        line = []
        for column in columns:
            here = [run for run in runs if _key(run, rows) == head and _belongs(run, cols, column.head)]
            if here and all(is_dense(run["method"]) for run in here):
                once = (column.measure.name, *sorted((run["task"], run["backbone"], run["hash"]) for run in here))
                here = [] if once in shown_once else here
                shown_once.add(once)
            where = ", ".join(
                f"{name}={value}" for name, value in zip([*rows, *cols], [*head, *column.head], strict=True)
            )
            line.append(_cell(here, column.measure, best, where, problems))
        grid.append(line)
    for place, column in enumerate(columns):
        if column.measure.tested:
            tested = partial(_by_examples, column.measure, problems) if test == "examples" else _by_seeds
            cells = [line[place] for line in grid]
            for line, cell in zip(grid, compared(rows, heads, cells, tested, lower=column.measure.lower), strict=True):
                line[place] = cell
    lines = [(_head_shown(rows, head), tuple(line)) for head, line in zip(heads, grid, strict=True)]
    caption = _shared(runs, [*rows, *cols])
    return Table(tuple(rows), tuple(cols), tuple(columns), tuple(lines), caption, tuple(problems), test)


def _check_metrics(runs: Sequence[Row], metrics: Sequence[str]) -> None:
    own = sorted({name for run in runs for name in run["scores"]})
    for name in metrics:
        if name not in MEASURES and all(measure(name).read(run) is None for run in runs):
            raise ConfigError(
                f"metric={name}: no run has it.\n"
                f"Allowed: {', '.join([*MEASURES, 'speedup_b1', 'speedup_b32_padded', *own])}.\n"
                "Speed-ups are there for runs with bench.enabled=true, and for their bench.batch_sizes."
            )


def one_metric(runs: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The runs whose score is the metric, on the rows, that most runs of their task have; and who was left out."""
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
    """The run's values of these fields; `dense` where a dense one has none, as of a budget or a method's option."""

    def value(name: str) -> str:
        found = value_of(run, name)
        none = name.startswith(NOT_OF_DENSE) or found is None
        return DENSE if is_dense(run["method"]) and none else shown(found)

    return tuple(value(name) for name in names)


def _heads(runs: Sequence[Row], names: Sequence[str], order: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """What occurs of these fields, sorted; the dense model first, wherever its method stands."""

    def place(head: tuple[str, ...]) -> tuple[bool, list[Any]]:
        return DENSE not in head, [
            rank(name, value, order.get(name, ())) for name, value in zip(names, head, strict=True)
        ]

    return sorted({_key(run, names) for run in runs}, key=place)


def rank(name: str, value: str, wanted: Sequence[str]) -> tuple[int, float | int, str]:
    """Where a value stands among those of its field."""
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
    """Whether a run is of a column; a dense one is of every budget's and every option's."""
    free = [is_dense(run["method"]) and name.startswith(NOT_OF_DENSE) for name in cols]
    return all(any_ or found == value for any_, found, value in zip(free, _key(run, cols), top, strict=True))


def _metric(runs: Sequence[Row], cols: Sequence[str], top: Sequence[str]) -> str:
    names = {run["metric"] for run in runs if _belongs(run, cols, top)}
    return names.pop() if len(names) == 1 else ""


def _head_shown(rows: Sequence[str], head: tuple[str, ...]) -> tuple[str, ...]:
    """A dense run has no budget and no options to show; where its method is not shown, `dense` stands once for them."""
    if DENSE not in head:
        return head
    hidden = ("budget", "method.", "trainer.")
    found = ["" if name.startswith(hidden) else value for name, value in zip(rows, head, strict=True)]
    if DENSE not in found:
        found[head.index(DENSE)] = DENSE
    return tuple(found)


def _shared(runs: Sequence[Row], shown_fields: Sequence[str]) -> str:
    """The fields that are not in the table, with their values."""
    parts = []
    for name in ("task", "method", "backbone", "budget"):
        values = sorted({str(run[name]) for run in runs} - ({DENSE} if name in ("method", "budget") else set()))
        if name not in shown_fields and values:
            parts.append(f"{name} {', '.join(values)}")
    seeds = sorted({run["seed"] for run in runs})
    return ", ".join([*parts, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"])


def _cell(runs: Sequence[Row], shows: Measure, best: bool, where: str, problems: list[str]) -> Cell:
    if not runs:
        return Cell()
    groups: dict[str, list[Row]] = {}
    for run in runs:
        groups.setdefault(variant(run), []).append(run)
    if len(groups) > 1 and best and not {"task", "method", "backbone", "budget"} & differences(runs).keys():
        groups = {"": max(groups.values(), key=_mean_validation)}
    if len(groups) > 1:
        different = differences(runs)
        listed = "; ".join(f"{name} is {' or '.join(values[:4])}" for name, values in list(different.items())[:3])
        problem = (
            f"{where}: {len(groups)} configurations are no average ({listed}); add {next(iter(different))} to rows= "
            f"or cols=, choose one with {next(iter(different))}=..., or take the best on validation with best=true"
        )
        if problem not in problems:
            problems.append(problem)
        return Cell(note=f"{len(groups)} configurations")
    (chosen,) = groups.values()
    values = {run["seed"]: value for run in chosen if (value := shows.read(run)) is not None and math.isfinite(value)}
    return Cell(
        {seed: shows.scale * value for seed, value in sorted(values.items())},
        dense=all(is_dense(run["method"]) for run in chosen),
        missed=any(run["status"] == "budget_missed" for run in chosen),
        runs=tuple(chosen),
    )


def _mean_validation(runs: Sequence[Row]) -> tuple[bool, float | int]:
    """A configuration that met its budget with all seeds comes before one that did not."""
    known = [run["validation"] for run in runs if run["validation"] is not None]
    return all(run["status"] == "done" for run in runs), fmean(known) if known else -math.inf


def default_rows(runs: Sequence[Row], cols: Sequence[str]) -> list[str]:
    """Backbone and budget where there are several, then the method."""
    several = [
        name
        for name in ("backbone", "budget")
        if name not in cols and len({run[name] for run in runs if not is_dense(run["method"])}) > 1
    ]
    # runs whose results name variants are told apart by these
    named = "variant" if any("variant" in run for run in runs) else "method"
    return [*several, *([named] if not {"method", named} & set(cols) else [])] or ["seed"]
