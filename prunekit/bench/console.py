"""What `prunekit bench` prints: a table for each batch size, and a verdict in two lines. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunekit.bench.result import BenchResult, BlockResult, Measurement, SizeResult
from prunekit.bench.table import list_absent

BASE = "hf"  # names of Hugging Face's own engines begin with it: what one has without prunekit
SAME = 0.99  # share of labels above which two engines give the same answers


def print_bench(result: BenchResult, console: Console | None = None) -> None:
    """Print the tables, what could not be measured, and the verdict."""
    console = console or Console(highlight=False)
    work = result.workload
    console.print(Text(f"\n {result.title}", style="bold"))
    about = f"{work.texts} texts of {result.split}, {work.mean:.0f} tokens on average, {work.max} at most"
    console.print(Text(f" {about}"))
    for block in result.blocks:
        for size in block.sizes:
            if block.clock == "cpu" or size.trusted:
                console.print()
                console.print(_table(result, block, size))
            if not size.trusted:
                console.print(Text(f" the machine was not quiet (control {_control(size)}): measure again", "bold red"))
    if result.absent:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(" not measured:", Text(list_absent(result.absent)))
        console.print()
        console.print(grid)
    console.print()
    for line in verdict(result):
        console.print(Text(f" {line}", style="bold"))


def _control(size: SizeResult) -> str:
    return "missing" if size.control is None else f"{size.control:.3f}"


def _table(result: BenchResult, block: BlockResult, size: SizeResult) -> Table:
    """Build the table of one batch size, the fastest engine first."""
    clock = "CPU time, 1 thread" if block.clock == "cpu" else f"wall time, {block.threads} threads"
    rows = sorted(_candidates(size), key=lambda row: row.ms)
    base = _base(rows)
    has_score = any(row.score is not None for row in rows)
    found = Table(
        box=HORIZONTALS,
        pad_edge=False,
        header_style="bold",
        title=Text(f" batch {size.batch_size}, {clock}"),
        title_justify="left",
        title_style="",
    )
    found.add_column("engine", overflow="fold")
    names = ["ms", "texts/s", f"vs {BASE}", *([result.metric.replace("_", " ")] if has_score else []), "same labels"]
    for name in names:
        found.add_column(name, justify="right", no_wrap=name != result.metric.replace("_", " "))
    for row in rows:
        against = "-" if base is None else f"{base.ms / row.ms:.2f}x"
        score = [] if not has_score else ["-" if row.score is None else f"{100 * row.score[result.metric]:.2f}"]
        cells = [_digits(row.ms), _digits(row.examples_per_s), against, *score, f"{100 * row.agrees:.1f} %"]
        found.add_row(Text(_short(row.name), style="bold" if _is_own(row) else ""), *cells)
    return found


def verdict(result: BenchResult) -> list[str]:
    """Return the engine to take for single requests and the one for batches, each compared with Hugging Face."""
    sizes = [size for block in result.blocks if block.clock == "cpu" for size in block.sizes]
    single = [size for size in sizes if size.batch_size == 1]
    batches = sorted((size for size in sizes if size.batch_size > 1), key=lambda size: size.batch_size)
    lines = [_best("single requests", single[0])] if single else []
    lines += [_best(f"batches of {batches[-1].batch_size}", batches[-1])] if batches else []
    return [line for line in lines if line]


def _best(what: str, size: SizeResult) -> str:
    rows = _candidates(size)
    if not rows:
        return ""
    best, base = min(rows, key=lambda row: row.ms), _base(rows)
    other = "" if best.agrees >= SAME else f"; {100 * best.agrees:.0f} % same labels"
    if base is None:
        return f"{what}: {_short(best.name)}, {_digits(best.ms)} ms{other}"
    if best.name == base.name:
        return f"{what}: {_short(best.name)} is the fastest, {_digits(best.ms)} ms{other}"
    return f"{what}: {_short(best.name)}, {base.ms / best.ms:.1f}x Hugging Face{other}"


def _short(name: str) -> str:
    """Return a candidate's name without what goes without saying."""
    return name.removeprefix("prunekit ").replace(" fp32", "")


def _candidates(size: SizeResult) -> list[Measurement]:
    return [row for row in size.candidates if row.role != "control"]


def _base(rows: Iterable[Measurement]) -> Measurement | None:
    """Return Hugging Face's own model, in float32 and on texts in the order in which they come; None without it."""
    peers = [row for row in rows if row.role == "peer" and re.match(rf"{BASE}\b", row.engine)]
    return min(peers, key=lambda row: (row.dtype != "fp32", row.order != "random"), default=None)


def _is_own(row: Measurement) -> bool:
    return row.role not in ("peer", "control")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
