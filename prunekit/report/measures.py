"""The measures that a comparison table can show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunekit.report.rows import Row


@dataclass(frozen=True)
class Measure:
    """A number of a run: how it is read and formatted; `tested` if differences are tested for significance.

    Higher is better, or lower where `lower`.
    """

    name: str
    read: Callable[[Row], float | int | None]
    scale: float | int = 1
    digits: int = 2
    unit: str = ""
    tested: bool = False
    lower: bool = False


def measure(name: str) -> Measure:
    """Return the measure of this name; any name that is not in `MEASURES` is a metric of the task, such as f1."""
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
    return next((entry[f"vs_{layout}"] for entry in row["speed"] if entry["batch_size"] == size), None)


def _drop(row: Row) -> float | int | None:
    return None if row["dense"] is None else row["score"] - row["dense"]


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("score", lambda row: row["score"], 100, tested=True),
        Measure("drop", _drop, 100, tested=True),
        Measure("validation", lambda row: row["validation"], 100, tested=True),
        Measure("reduction", lambda row: row["flops"]["vs_unpadded"], unit="x"),
        Measure("reduction_padded", lambda row: row["flops"]["vs_padded"], unit="x"),
        Measure("gflops", lambda row: row["flops"]["pruned_g"], digits=3),
        Measure("seconds", lambda row: row["seconds"], digits=0),
        Measure("memory", lambda row: row.get("peak_memory_mib"), digits=0, unit=" MiB"),
        Measure("kl", lambda row: row["scores"].get("kl"), digits=4, tested=True, lower=True),
    )
}
