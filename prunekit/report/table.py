"""`prunekit table`: finished runs as one table, over seeds, with what differs significantly from the best marked.

prunekit table                                                 what lies in runs/
prunekit table runs --where task=cola,sst2 budget=2x --rows method --cols task --metric score,reduction
prunekit table runs --save results.json                        the same runs, compact, to be committed
prunekit table results.json --format latex
prunekit table runs --test examples                            marks by paired tests over the test rows, for few seeds
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from prunekit.report import examples
from prunekit.report.examples import Examples
from prunekit.report.paired import by_examples
from prunekit.report.results import (
    DENSE,
    FIELDS,
    Row,
    check_fields,
    collect,
    differences,
    matching,
    one_per_seed,
    save,
    value_of,
    variant,
    with_teachers,
)
from prunekit.report.seeds import LEVEL, Summary, difference, holm, summary
from prunekit.schema import ConfigError, shown

FORMATS = ("markdown", "latex", "csv")
SPREADS = ("ci", "sd", "none")
TESTS = ("seeds", "examples")

# methods in the order of the README, whatever else between them and the controls
FIRST, LAST = (DENSE, "top", "ltp"), ("topk", "threshold", "random", "first")
NOT_OF_DENSE = ("budget", "method.")  # fields that a run of nothing pruned does not have

# runs are compared where these agree
TOGETHER = ("task", "backbone", "budget")


# -- what is shown of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A number of a run: how it is read, worded and titled; `tested` where seeds are compared.

    More is better, or less where `lower`.
    """

    name: str
    read: Callable[[Row], float | int | None]
    scale: float | int = 1
    digits: int = 2
    unit: str = ""
    tested: bool = False
    lower: bool = False


def measure(name: str) -> Measure:
    """The measure of this name; a name that is none of the fixed ones is a metric of the task, as f1."""
    if name in MEASURES:
        return MEASURES[name]
    if name.startswith("speedup_b"):
        size, _, layout = name.removeprefix("speedup_b").partition("_")
        if size.isdigit() and layout in ("", "packed", "padded"):
            return Measure(name, lambda row: _speedup(row, int(size), layout or "packed"), unit="x")
    if name.endswith("perplexity"):
        return Measure(name, lambda row: row["scores"].get(name), tested=True, lower=True)
    return Measure(name, lambda row: row["scores"].get(name), 100, tested=True)


def _speedup(row: Row, size: int, layout: str) -> float | int | None:
    found = [entry[f"vs_{layout}"] for entry in row["speed"] if entry["batch_size"] == size]
    return found[0] if found else None


def _drop(row: Row) -> float | int | None:
    return None if row["dense"] is None else row["score"] - row["dense"]


MEASURES = {
    found.name: found
    for found in (
        Measure("score", lambda row: row["score"], 100, tested=True),
        Measure("drop", _drop, 100, tested=True),
        Measure("validation", lambda row: row["validation"], 100, tested=True),
        Measure("reduction", lambda row: row["flops"]["vs_unpadded"], unit="x"),
        Measure("reduction_padded", lambda row: row["flops"]["vs_padded"], unit="x"),
        Measure("gflops", lambda row: row["flops"]["pruned_g"], digits=3),
        Measure("seconds", lambda row: row["seconds"], digits=0),
        Measure("memory", lambda row: row.get("peak_memory_mib"), digits=0, unit=" MiB"),
    )
}


# -- the table -----------------------------------------------------------------------------------------


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
    check_fields(runs, rows, "--rows")
    check_fields(runs, cols, "--cols")
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
            if here and all(run["method"] == DENSE for run in here):
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
                f"--metric {name}: no run has it.\n"
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
        return DENSE if run["method"] == DENSE and none else shown(found)

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
    free = [run["method"] == DENSE and name.startswith(NOT_OF_DENSE) for name in cols]
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
            f"{where}: {len(groups)} configurations are no average ({listed}); add {next(iter(different))} to --rows "
            "or --cols, choose with --where, or take the best on validation with --best"
        )
        if problem not in problems:
            problems.append(problem)
        return Cell(note=f"{len(groups)} configurations")
    (chosen,) = groups.values()
    values = {run["seed"]: value for run in chosen if (value := shows.read(run)) is not None and math.isfinite(value)}
    return Cell(
        {seed: shows.scale * value for seed, value in sorted(values.items())},
        dense=all(run["method"] == DENSE for run in chosen),
        missed=any(run["status"] == "budget_missed" for run in chosen),
        runs=tuple(chosen),
    )


def _mean_validation(runs: Sequence[Row]) -> tuple[bool, float | int]:
    """A configuration that met its budget with all seeds comes before one that did not."""
    known = [run["validation"] for run in runs if run["validation"] is not None]
    return all(run["status"] == "done" for run in runs), fmean(known) if known else -math.inf


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


# -- in words ------------------------------------------------------------------------------------------


def notes(table: Table, spread: str) -> list[str]:
    """What the marks and numbers mean, as far as they occur."""
    cells = [cell for cell in table.cells if cell.values]
    counts = sorted({len(cell.values) for cell in cells})
    many = counts[-1:] > [1]
    found = []
    if spread != "none" and many:
        what = "half the 95 % interval of the mean (Student's t)" if spread == "ci" else "standard deviation"
        found.append(f"mean ± {what} over seeds; n = {', '.join(map(str, counts))}")
    elif many:
        found.append(f"mean over seeds; n = {', '.join(map(str, counts))}")
    if any(cell.best for cell in cells):
        group = " and ".join(["column", *(name for name in table.rows if name in TOGETHER)])
        text = f"bold: best of its {group}, dense apart"
        if any(cell.p is not None for cell in cells) and table.test == "examples":
            text += (
                f"; * worse than it, p < {LEVEL}, on other texts with these seeds: paired bootstrap over test examples "
                "(one seed and accuracy: McNemar's exact test), corrected for the number of comparisons (Holm)"
            )
        elif table.test == "examples":
            text += "; no test: it needs the predictions that runs store"
        elif any(cell.p is not None for cell in cells):
            text += (
                f"; * worse than it, p < {LEVEL}: paired t-test over the seeds that both have, Welch's where they "
                "share fewer than two, corrected for the number of comparisons (Holm)"
            )
        else:
            text += "; no test: it needs two seeds or more"
        found.append(text)
    if any(cell.missed for cell in cells):
        found.append("† a run of it missed its budget")
    if len(counts) > 1:
        found.append("(n) over that many seeds, where some have more")
    return found


def words(cell: Cell, shows: Measure, spread: str, most: int) -> str:
    """A cell in plain characters: 61.20 ± 0.85*."""
    found = cell.summary
    if found is None:
        return cell.note or "-" * bool(cell.dense)
    text = f"{found.mean:.{shows.digits}f}{shows.unit}"
    width = {"ci": found.half, "sd": found.sd, "none": None}[spread]
    if width is not None:
        text += f" ± {width:.{shows.digits}f}"
    if cell.p is not None and cell.p < LEVEL:
        text += "*"
    if cell.missed:
        text += "†"
    return text + f" ({found.n})" * (found.n < most)


def title(table: Table, column: Column) -> str:
    """What stands above a column: the value of its fields, then the metric."""
    several = len({found.measure.name for found in table.columns}) > 1
    parts = [part for part in column.head if part]
    name = column.measure.name.replace("_", " ")
    if column.measure.name in ("score", "drop", "validation") and column.metric:
        shows = column.metric.replace("_", " ")
        name = shows if column.measure.name == "score" else f"{shows}, {name}"
    if not parts:
        return name
    return (
        f"{' '.join(parts)} {name}"
        if several or column.measure.tested or column.measure.name == "score"
        else " ".join(parts)
    )


def _most(table: Table) -> int:
    return max((len(cell.values) for cell in table.cells), default=1)


def markdown(table: Table, spread: str = "ci") -> str:
    """The table in Markdown, caption above and notes below."""
    heads = [*table.rows, *(title(table, column) for column in table.columns)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(table.rows) + "---:|" * len(table.columns)]
    for head, cells in table.lines:
        texts = [
            words(cell, column.measure, spread, _most(table)) for cell, column in zip(cells, table.columns, strict=True)
        ]
        bold = [
            f"**{text}**" if cell.best else text.replace("*", "\\*") for text, cell in zip(texts, cells, strict=True)
        ]
        lines.append(f"| {' | '.join([*head, *bold])} |")
    below = [f"- {note.replace('*', chr(92) + '*')}" for note in notes(table, spread)]
    return "\n".join([table.caption, "", *lines, *([""] * bool(below)), *below]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
}


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def latex(table: Table, spread: str = "ci") -> str:
    """The table in LaTeX, for the packages booktabs and, in the preamble, nothing else."""
    heads = [*table.rows, *(title(table, column) for column in table.columns)]
    lines = [
        f"% {table.caption}; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{{'l' * len(table.rows)}{'r' * len(table.columns)}}}",
        "\\toprule",
        " & ".join(map(_latex, heads)) + r" \\",
        "\\midrule",
    ]
    for head, cells in table.lines:
        texts = []
        for cell, column in zip(cells, table.columns, strict=True):
            text = _latex(words(cell, column.measure, spread, _most(table))).replace("*", "$^*$")
            texts.append(f"\\textbf{{{text}}}" if cell.best else text)
        lines.append(" & ".join([*map(_latex, head), *texts]) + r" \\")
    below = [f"% {note}" for note in notes(table, spread)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *below]) + "\n"


def as_csv(table: Table, spread: str = "ci") -> str:
    """A line per cell with all that is known of it, whatever `spread`; p is corrected, and against the best."""
    stream = io.StringIO()
    found = csv.writer(stream, lineterminator="\n")
    found.writerow(
        [*table.rows, *table.cols, "measure", "metric", "n", "mean", "sd", "low", "high", "best", "p", "missed", "note"]
    )
    for head, cells in table.lines:
        for cell, column in zip(cells, table.columns, strict=True):
            if not cell.values and not cell.note:
                continue
            numbers = ["", "", "", "", ""]
            if (one := cell.summary) is not None:
                numbers = [
                    str(one.n),
                    *("" if x is None else f"{x:.6g}" for x in (one.mean, one.sd, one.low, one.high)),
                ]
            p = "" if cell.p is None else f"{cell.p:.4g}"
            marks = [str(int(cell.best)), p, str(int(cell.missed)), cell.note]
            found.writerow([*head, *column.head, column.measure.name, column.metric, *numbers, *marks])
    return stream.getvalue()


WRITERS: dict[str, Callable[[Table, str], str]] = {"markdown": markdown, "latex": latex, "csv": as_csv}


# -- the command ---------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse whose complaints end as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise ConfigError(f"{self.prog}: {message}.\nAllowed: {usage}\n{self.prog} --help explains each.")


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def conditions(given: Sequence[str], flag: str = "--where") -> dict[str, list[str]]:
    """`task=cola,sst2` as {"task": ["cola", "sst2"]}. Raises ConfigError for another form."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals or not names(values):
            raise ConfigError(
                f"{flag} {text} is no condition.\nAllowed: name=value, or name=value,value.\n"
                f"Write it as {flag} task=cola,sst2 budget=2x."
            )
        found[name] = names(values)
    return found


def parser() -> Parser:
    """What the command takes."""
    found = Parser("prunekit table", description="Finished runs as one table over seeds.")
    found.add_argument("paths", nargs="*", default=None, metavar="PATH", help="run folders or results files; runs")
    found.add_argument("--where", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                       help="only these runs: task=cola,sst2 budget=2x trainer.lr=1e-4; * and ? match")  # fmt: skip
    found.add_argument("--rows", type=names, metavar="NAMES", help="fields of a line; budget,method")
    found.add_argument("--cols", type=names, default=["task"], metavar="NAMES", help="fields of a column; task")
    found.add_argument("--metric", type=names, default=["score"], metavar="NAMES",
                       help=f"{', '.join(MEASURES)}, speedup_b1, speedup_b32_padded, or a metric as f1")  # fmt: skip
    found.add_argument("--spread", choices=SPREADS, default="ci", help="95 %% interval, standard deviation or nothing")
    found.add_argument("--best", action="store_true", help="of several configurations the best on validation")
    found.add_argument(
        "--test", choices=TESTS, default="seeds", help="what * is tested over; examples need run folders"
    )
    found.add_argument("--format", choices=FORMATS, default="markdown", help="markdown, latex or csv")
    found.add_argument("--save", type=Path, metavar="FILE", help="write the chosen runs into one JSON file")
    return found


def main(arguments: Sequence[str]) -> int:
    """The command `prunekit table`; the table goes to stdout, what was left out to stderr.

    Returns 0. Raises ConfigError where there is nothing to show.
    """
    given = parser().parse_args(list(arguments))
    wanted = conditions(given.where)
    found = collect(given.paths or ["runs"])
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if found.unfinished:
        many = "s" * (len(found.unfinished) > 1)
        print(f"not finished: {len(found.unfinished)} run{many}, as {found.unfinished[0]}", file=sys.stderr)
    if not found.rows:
        raise nothing_finished(given.paths)
    runs = matching(found.rows, wanted)
    if not runs:
        raise no_match(given.where)
    if given.save:
        save(with_teachers(one_per_seed(runs))[0], given.save)
        print(f"saved: {given.save}", file=sys.stderr)
    rows = given.rows or default_rows(runs, given.cols)
    table = build(runs, rows, given.cols, given.metric, best=given.best, order=wanted, test=given.test)
    for problem in table.problems:
        print(f"note: {problem}", file=sys.stderr)
    print(WRITERS[given.format](table, given.spread), end="")
    return 0


def nothing_finished(paths: Sequence[str]) -> ConfigError:
    """Nothing was found to show."""
    return ConfigError(
        f"{', '.join(map(str, paths or ['runs']))} holds no finished run.\n"
        "Allowed: folders of runs, and files written by prunekit table --save.\nTrain first, as python train.py."
    )


def no_match(where: Sequence[str]) -> ConfigError:
    """The conditions exclude each other."""
    return ConfigError(
        f"--where {' '.join(where)}: no run meets all of it.\n"
        f"Allowed: any of {', '.join(FIELDS)} and the configuration's keys.\nLeave one condition out."
    )


def default_rows(runs: Sequence[Row], cols: Sequence[str]) -> list[str]:
    """Backbone and budget where there are several, then the method."""
    several = [
        name
        for name in ("backbone", "budget")
        if name not in cols and len({run[name] for run in runs if run["method"] != DENSE}) > 1
    ]
    # runs whose results name variants are told apart by these
    named = "variant" if any("variant" in run for run in runs) else "method"
    return [*several, *([named] if not {"method", named} & set(cols) else [])] or ["seed"]
