"""Curves of a run's training, read from its metrics.jsonl; needs nothing but the standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.files import read_jsonl


def budget_over_steps(metrics: Path, asked: float | int | None) -> dict[str, Any]:
    """Read the FLOPs reduction over training: the rising target, the method's expectation, the measured one."""
    rows = read_jsonl(metrics)

    def curve(name: str, convert: bool) -> list[tuple[int, float]]:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return [(step, 1 / (1 - value) if convert else value) for step, value in points if not convert or value < 1]

    return {
        "asked": asked,
        "target": curve("budget/target", True),
        "expected": curve("budget/expected", True),
        "measured": curve("val/flops_vs_unpadded", False),
    }
