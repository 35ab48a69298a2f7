"""The table of `prunekit bench`, from its stored timings; imports nothing slow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.files import atomic_write_text


def markdown(result: Mapping[str, Any]) -> str:
    """Everything that may be said: the texts, the four ratios, each engine's numbers, and who is not there."""
    work = result["workload"]
    lines = [
        f"**{result['title']}**: {work['texts']} texts of {result['split']}, {work['mean']:.0f} tokens on average, "
        f"{work['p90']:.0f} at the 90th percentile, {work['max']} at most",
        "",
    ]
    if "flops_ratio_executed" in result and result["flops_ratio"] != 1:
        lines += [
            f"The method leaves {result['flops_ratio']:.2f}x fewer FLOPs. Of those that the engines execute, pruned "
            f"against unpruned, it is {result['flops_ratio_executed']:.2f}x: both compute the last layer for what the "
            "head reads.",
            "",
        ]
    for block in result["blocks"]:
        lines += _block(result, block)
    if result["absent"]:
        lines += [f"Not measured: {_absent(result['absent'])}.", ""]
    machine = result["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    vectors = f" ({machine['instructions']})" if "instructions" in machine else ""
    lines += [f"{machine['cpus']} cores of {machine['cpu']}{vectors}, {result['date']}; {versions}."]
    return "\n".join(lines) + "\n"


def replaced(text: str, table: str, name: str = "bench") -> str:
    """The text with what stands between the markers of a block replaced by the table.

    Markers are lines: `<!-- NAME -->` or `<!-- NAME: any words -->`, and `<!-- end of NAME -->`.

    Raises:
        ValueError: it does not have exactly one such block.
    """
    block = re.compile(rf"(<!-- {re.escape(name)}(?::[^\n]*)? -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    found, count = block.subn(lambda match: match[1] + table + match[2], text)
    if count != 1:
        raise ValueError(f"it has {count} blocks named {name}")
    return found


def put_table(page: Path, table: str, name: str = "bench") -> None:
    """Writes a table into a block of a Markdown file, as `replaced` does.

    Raises:
        ConfigError: the file cannot be read or written, or does not have exactly one such block.
    """
    try:
        atomic_write_text(page, replaced(page.read_text(encoding="utf-8"), table, name))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"into={page} cannot take the table ({error}).\nAllowed: a file with a line `<!-- {name} -->` "
            f"and behind it one `<!-- end of {name} -->`.\n"
            "Add them where it is to stand, or give another file or block."
        ) from error


def _absent(absent: Mapping[str, str]) -> str:
    """Who is not there, those with the same reason together."""
    names: dict[str, list[str]] = {}
    for name, why in absent.items():
        names.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(found)} ({why})" for why, found in names.items())


def _block(result: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    cpu = block["clock"] == "cpu"
    what = "process CPU time, 1 thread" if cpu else f"wall time, {block['threads']} threads"
    lines = [f"Clock: {what}; medians of interleaved rounds, quartiles in the raw file.", ""]
    for size in block["sizes"]:
        padding = result["workload"]["computed_per_real_token"]
        count = size["batch_size"]
        title = f"Batch {count}"
        if count > 1:
            title += (
                f" ({padding['random'][str(count)]:.2f} tokens computed per real one by padding random batches, "
                f"{padding['sorted'][str(count)]:.2f} sorted by length)"
            )
        lines += [title, ""]
        if not size["trusted"]:
            value = "missing" if size["control"] is None else f"{size['control']:.3f}"
            lines += [f"*The control is {value}, not within 2 % of 1: the machine was not quiet.*", ""]
            if not cpu:
                lines += ["Wall times are not reported.", ""]
                continue
        lines += _ratios(size["ratios"], executed="flops_ratio_executed" in result)
        lines += _engines(size, block, result["metric"])
    return lines


def _ratios(ratios: Sequence[Mapping[str, Any]], *, executed: bool) -> list[str]:
    if not ratios:
        return []
    fewer = "fewer FLOPs executed" if executed else "fewer FLOPs"
    head = ["ours", fewer, "than ourselves unpruned", "than the best peer, sorted", "than the best unpadded peer",
            "than HF eager, padded (papers)"]  # fmt: skip
    rows = []
    for row in ratios:
        merit = row.get("vs_unpruned")
        rows.append(
            [
                row["own"],
                f"{merit['flops_ratio']:.2f}x" if merit else "-",
                f"{_times(merit)}: {100 * merit['efficiency']:.0f} % realised" if merit else "-",
                *(_against(row[name]) for name in ("vs_sorted", "vs_unpadded", "vs_padded_eager")),
            ]
        )
    each = [
        f"{row['own']} against each: " + ", ".join(f"{name} {one['median']:.2f}x" for name, one in peers.items()) + "."
        for row in ratios
        if (peers := row.get("vs_each"))
    ]
    return [*_table(head, rows), "", *(line for found in each for line in (found, ""))]


def _times(found: Mapping[str, Any]) -> str:
    value = found["median"]
    return f"{value:.2f}x faster" if value >= 1 else f"{value:.2f}x, **slower**"


def _against(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none here"
    if found["median"] < 1:
        return f"{found['median']:.2f}x: **{found['against']} is faster**"
    return f"{found['median']:.2f}x ({found['against']})"


def _engines(size: Mapping[str, Any], block: Mapping[str, Any], metric: str) -> list[str]:
    latency = size["batch_size"] == 1
    scored = any("score" in row for row in size["candidates"])
    head = ["engine", "ms per batch", "texts/s", "tokens/s", "of GEMM peak", "first pass"]
    head += ["p50 / p95 / p99 ms"] * latency + [metric] * scored + ["same labels", "peak MB"]
    rows = []
    for row in size["candidates"]:
        if row["role"] == "control":
            continue
        share, peak = row["share_of_peak"], block["engines"].get(row["engine"], {}).get("peak_mb")
        cells = [
            row["name"],
            _digits(row["ms"]),
            _digits(row["examples_per_s"]),
            f"{row['tokens_per_s']:.0f}",
            "-" if share is None else f"{100 * share:.0f} %",
            f"{row['first_over_steady']:.2f}x",
        ]
        if latency:
            cells.append(" / ".join(_digits(value) for value in row["latency_ms"].values()))
        if scored:
            cells.append(f"{100 * row['score'][metric]:.2f}" if "score" in row else "-")
        rows.append([*cells, f"{100 * row['agrees']:.1f} %", "-" if peak is None else f"{peak:.0f}"])
    return [*_table(head, rows), ""]


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "|---" + "|---:" * (len(head) - 1) + "|"
    return [f"| {' | '.join(head)} |", line, *(f"| {' | '.join(row)} |" for row in rows)]
