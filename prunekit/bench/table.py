"""The table of `prunekit bench` in Markdown, from its stored timings. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.bench.result import (
    BenchResult,
    BlockResult,
    Comparison,
    EngineRecord,
    PeerRatio,
    SizeResult,
    Spread,
)
from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text


def markdown(result: BenchResult) -> str:
    """Render the benchmark as Markdown: workload, the four ratios, per-engine numbers, skipped engines with reasons."""
    work = result.workload
    lines = [
        f"**{result.title}**: {work.texts} texts of {result.split}, {work.mean:.0f} tokens on average, "
        f"{work.p90:.0f} at the 90th percentile, {work.max} at most",
        "",
    ]
    if result.flops_ratio_executed is not None and result.flops_ratio != 1:
        lines += [
            f"The method leaves {result.flops_ratio:.2f}x fewer FLOPs. Of those that the engines execute, pruned "
            f"against unpruned, it is {result.flops_ratio_executed:.2f}x: both compute the last layer for what the "
            "head reads.",
            "",
        ]
    for block in result.blocks:
        lines += _render_block(result, block)
    if result.absent:
        lines += [f"Not measured: {list_absent(result.absent)}.", ""]
    machine = result.hardware
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items() if number)
    vectors = "" if machine.instructions is None else f" ({machine.instructions})"
    lines += [f"{machine.cpus} cores of {machine.cpu}{vectors}, {result.date}; {versions}."]
    return "\n".join(lines) + "\n"


def replace_block(text: str, table: str, name: str = "bench") -> str:
    """Return the text with the table between the markers of a block.

    Markers are lines: `<!-- NAME -->` or `<!-- NAME: any words -->`, and `<!-- end of NAME -->`.

    Raises:
        ValueError: the text does not have exactly one such block.
    """
    block = re.compile(rf"(<!-- {re.escape(name)}(?::[^\n]*)? -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    filled, count = block.subn(lambda match: match[1] + table + match[2], text)
    if count != 1:
        raise ValueError(f"it has {count} blocks named {name}")
    return filled


def put_table(page: Path, table: str, name: str = "bench") -> None:
    """Write a table into a block of a Markdown file, as `replace_block` does.

    Raises:
        ConfigError: the file cannot be read or written, or does not have exactly one such block.
    """
    try:
        atomic_write_text(page, replace_block(page.read_text(encoding="utf-8"), table, name))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"into={page} cannot take the table ({error}).\nAllowed: a file with a line `<!-- {name} -->` "
            f"and after it one `<!-- end of {name} -->`.\n"
            "Add them where the table belongs, or give another file or block."
        ) from error


def put_table_and_figure(page: Path, table: str, name: str, file: Path, figure: Any) -> None:
    """Write a table into a block of a Markdown file, and a figure of matplotlib as SVG: the same file for the same one.

    Raises:
        ConfigError: as for `put_table`.
    """
    import matplotlib  # heavy

    put_table(page, table, name)
    with matplotlib.rc_context({"svg.hashsalt": "prunekit", "svg.fonttype": "none"}), file.open("wb") as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None})


def list_absent(absent: Mapping[str, str]) -> str:
    """Return the engines that were not measured, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for name, why in absent.items():
        names.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(same)} ({why})" for why, same in names.items())


def _render_block(result: BenchResult, block: BlockResult) -> list[str]:
    is_cpu = block.clock == "cpu"
    clock = "process CPU time, 1 thread" if is_cpu else f"wall time, {block.threads} threads"
    lines = [f"Clock: {clock}; medians of interleaved rounds, quartiles in the raw file.", ""]
    for size in block.sizes:
        padding, count = result.workload.computed_per_real_token, size.batch_size
        title = f"Batch {count}"
        if count > 1:
            title += (
                f" ({padding.random[str(count)]:.2f} tokens computed per real one by padding random batches, "
                f"{padding.sorted[str(count)]:.2f} sorted by length)"
            )
        lines += [title, ""]
        if not size.trusted:
            value = "missing" if size.control is None else f"{size.control:.3f}"
            lines += [f"*The control is {value}, not within 2 % of 1: the machine was not quiet.*", ""]
            if not is_cpu:
                lines += ["Wall times are not reported.", ""]
                continue
        lines += _render_ratios(size.ratios, is_executed=result.flops_ratio_executed is not None)
        lines += _render_engines(size, block.engines, result.metric)
    return lines


def _render_ratios(ratios: Sequence[Comparison], *, is_executed: bool) -> list[str]:
    """Return the four ratios; `is_executed` says whether FLOPs are those that the engines execute."""
    if not ratios:
        return []
    fewer = "fewer FLOPs executed" if is_executed else "fewer FLOPs"
    head = ["ours", fewer, "than ourselves unpruned", "than the best peer, sorted", "than the best unpadded peer",
            "than HF eager, padded (papers)"]  # fmt: skip
    rows = []
    for row in ratios:
        merit = row.vs_unpruned
        rows.append(
            [
                row.own,
                f"{merit.flops_ratio:.2f}x" if merit else "-",
                f"{_times(merit)}: {100 * merit.efficiency:.0f} % realised" if merit else "-",
                *(_against(peer) for peer in (row.vs_sorted, row.vs_unpadded, row.vs_padded_eager)),
            ]
        )
    each = [
        f"{row.own} against each: "
        + ", ".join(f"{name} {peer.median:.2f}x" for name, peer in row.vs_each.items())
        + "."
        for row in ratios
        if row.vs_each
    ]
    return [*_table(head, rows), "", *(line for sentence in each for line in (sentence, ""))]


def _times(ratio: Spread) -> str:
    return f"{ratio.median:.2f}x faster" if ratio.median >= 1 else f"{ratio.median:.2f}x, **slower**"


def _against(ratio: PeerRatio | None) -> str:
    if ratio is None:
        return "none here"
    if ratio.median < 1:
        return f"{ratio.median:.2f}x: **{ratio.against} is faster**"
    return f"{ratio.median:.2f}x ({ratio.against})"


def _render_engines(size: SizeResult, engines: Mapping[str, EngineRecord], metric: str) -> list[str]:
    has_latency = size.batch_size == 1
    has_score = any(row.score is not None for row in size.candidates)
    head = ["engine", "ms per batch", "texts/s", "tokens/s", "of GEMM peak", "first pass"]
    head += ["p50 / p95 / p99 ms"] * has_latency + [metric] * has_score + ["same labels", "peak MB"]
    rows = []
    for row in size.candidates:
        if row.role == "control":
            continue
        share, peak = row.share_of_peak, engines[row.engine].peak_mb if row.engine in engines else None
        cells = [
            row.name,
            _digits(row.ms),
            _digits(row.examples_per_s),
            f"{row.tokens_per_s:.0f}",
            "-" if share is None else f"{100 * share:.0f} %",
            f"{row.first_over_steady:.2f}x",
        ]
        if has_latency:
            cells.append(" / ".join(_digits(value) for value in (row.latency_ms or {}).values()))
        if has_score:
            cells.append("-" if row.score is None else f"{100 * row.score[metric]:.2f}")
        rows.append([*cells, f"{100 * row.agrees:.1f} %", "-" if peak is None else f"{peak:.0f}"])
    return [*_table(head, rows), ""]


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "|---" + "|---:" * (len(head) - 1) + "|"
    return [f"| {' | '.join(head)} |", line, *(f"| {' | '.join(row)} |" for row in rows)]
