"""Plots of one run, each a PNG with its numbers in a JSON file next to it: kept tokens, quality by length, the budget.

A plot is a function of plain numbers; the same numbers serve a report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from prunekit.evaluation.evaluate import PerRow
from prunekit.files import atomic_write_bytes, atomic_write_text
from prunekit.results.curves import budget_over_steps
from prunekit.results.fonts import families, legible
from prunekit.runs.result import Band

DENSE, PRUNED, TARGET = "#8a8a8a", "#2f6db3", "#c46a1b"
BUCKETS = 4  # of equally many sentences


def tokens_by_layer(rows: PerRow) -> dict[str, Any]:
    """Return mean, 10th and 90th percentile over sentences of the tokens entering each layer's feed-forward half."""
    tokens = rows.tokens.float()
    return {
        "layers": list(range(tokens.shape[1])),
        "mean_length": float(rows.lengths.float().mean()),
        "mean": tokens.mean(0).tolist(),
        "p10": tokens.quantile(0.1, dim=0).tolist(),
        "p90": tokens.quantile(0.9, dim=0).tolist(),
    }


def quality_by_length(dense: PerRow, pruned: PerRow) -> dict[str, Any]:
    """Return the share of right answers, dense and pruned, for sentences in quarters of equal size by length.

    Quarters whose limits coincide, because many sentences have one length, are merged. Empty for regression.
    """
    if not dense.predictions.classes:
        return {"buckets": []}
    edges = torch.unique(dense.lengths.float().quantile(torch.linspace(0, 1, BUCKETS + 1)).ceil())
    inner = edges[1:-1]
    number = torch.bucketize(dense.lengths.float(), inner, right=True)
    buckets = []
    for place in number.unique().tolist():
        here = number == place
        buckets.append(
            {
                "from": int(dense.lengths[here].min()),
                "to": int(dense.lengths[here].max()),
                "rows": int(here.sum()),
                "dense": float(dense.predictions.right[here].float().mean()),
                "pruned": float(pruned.predictions.right[here].float().mean()),
                "tokens_kept": float((pruned.tokens[here].float().mean(1) / pruned.lengths[here]).mean()),
            }
        )
    return {"buckets": buckets}


def draw_tokens(numbers: Mapping[str, Any], title: str) -> Figure:
    """Draw the tokens kept per layer, with the spread over sentences."""
    figure, axes = _axes(title, "layer", "tokens per text")
    layers = numbers["layers"]
    axes.axhline(numbers["mean_length"], color=DENSE, linestyle="--", label="dense")
    axes.fill_between(layers, numbers["p10"], numbers["p90"], color=PRUNED, alpha=0.18, label="10 % to 90 % of texts")
    axes.plot(layers, numbers["mean"], color=PRUNED, marker="o", label="pruned, mean")
    axes.set_xticks(layers)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def draw_quality(numbers: Mapping[str, Any], title: str) -> Figure:
    """Draw right answers by length of the text, dense and pruned side by side."""
    figure, axes = _axes(title, "tokens in the text", "right answers, %")
    buckets = numbers["buckets"]
    places = range(len(buckets))
    for shift, name, colour in ((-0.2, "dense", DENSE), (0.2, "pruned", PRUNED)):
        bars = axes.bar([p + shift for p in places], [100 * b[name] for b in buckets], 0.38, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(list(places), [_span(bucket) for bucket in buckets])
    axes.set_xlim(-1, max(1, len(buckets)))
    axes.set_ylim(0, 112)
    if buckets:
        axes.legend(frameon=False, ncols=2, loc="upper left")
    return figure


def draw_budget(numbers: Mapping[str, Any], title: str) -> Figure:
    """Draw how the FLOPs reduction approached the budget."""
    figure, axes = _axes(title, "optimizer step", "FLOPs reduction against unpadded, x")
    for name, colour, style in (("target", TARGET, "--"), ("expected", PRUNED, "-"), ("measured", "black", "o")):
        if numbers[name]:
            steps, values = zip(*numbers[name], strict=True)
            axes.plot(
                steps, values, style, color=colour, label=name if name != "measured" else "measured on validation"
            )
    if numbers["asked"] is not None:
        axes.axhline(numbers["asked"], color=DENSE, linewidth=0.8, label=f"asked: {numbers['asked']:.2f}x")
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def draw_bands(score: str, bands: Sequence[Band], title: str) -> Figure:
    """Draw the score by band of lengths, dense and pruned, with the FLOPs reduction below each band."""
    figure, axes = _axes(title, "tokens in the text", score.replace("_", " "))
    places = range(len(bands))
    axes.plot(places, [band.dense for band in bands], color=DENSE, marker="o", label="dense")
    axes.plot(places, [band.pruned for band in bands], color=PRUNED, marker="o", label="pruned")
    axes.set_xticks(
        list(places),
        [f"{b.low}-{b.below - 1}\n{b.rows} texts\n{b.flops_vs_unpadded:.2f}x fewer FLOPs" for b in bands],
    )
    axes.margins(x=0.15)
    axes.legend(frameon=False)
    return figure


def write_bands(folder: Path, title: str, score: str, bands: Sequence[Band], *, drawn: bool = True) -> None:
    """Write the numbers of a test by bands of lengths, and their plot if it is to be `drawn`."""
    numbers = {"score": score, "bands": [band.to_json() for band in bands]}
    _write(folder, "bands", numbers, lambda: draw_bands(score, bands, title), drawn)


def draw_pareto(numbers: Mapping[str, Any], title: str) -> Figure:
    """Draw all schedules that a search measured, those that no other beats, and the one that was chosen."""
    figure, axes = _axes(title, "FLOPs reduction against unpadded, x", numbers["score"].replace("_", " "))

    def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        return [row["flops_vs_unpadded"] for row in rows], [row["score"] for row in rows]

    axes.plot(*columns(numbers["measured"]), "o", color=DENSE, markersize=3, alpha=0.6, label="measured")
    axes.plot(*columns(numbers["pareto"]), "o-", color=PRUNED, markersize=4, label="Pareto set")
    axes.plot(*columns([numbers["chosen"]]), "D", color=TARGET, label="taken")
    asked, width = numbers["asked"], numbers["tolerance"]
    axes.axvspan(asked / (1 + width), asked / (1 - width), color=TARGET, alpha=0.15, label=f"asked: {asked:.2f}x")
    axes.legend(frameon=False)
    return figure


def write_pareto(folder: Path, title: str, numbers: Mapping[str, Any], *, drawn: bool = True) -> None:
    """Write the numbers of a search as a method's `finalise` returned them, and their plot if it is to be `drawn`."""
    _write(folder, "pareto", numbers, lambda: draw_pareto(numbers, title), drawn)


def write_plots(
    folder: Path,
    title: str,
    dense: PerRow,
    pruned: PerRow,
    metrics: Path,
    asked: float | None,
    *,
    drawn: bool = True,
) -> None:
    """Write the numbers of a run's plots to `folder`, and the plots if they are to be `drawn`."""
    plots = [
        ("tokens_by_layer", tokens_by_layer(pruned), draw_tokens),
        ("quality_by_length", quality_by_length(dense, pruned), draw_quality),
        ("budget", budget_over_steps(metrics, asked), draw_budget),
    ]
    for name, numbers, draw in plots:
        _write(folder, name, numbers, partial(draw, numbers, title), drawn)


def _axes(title: str, across: str, up: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(legible(title), fontsize=11, loc="left", fontfamily=families([title]))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _span(bucket: Mapping[str, Any]) -> str:
    span = str(bucket["from"]) if bucket["from"] == bucket["to"] else f"{bucket['from']}-{bucket['to']}"
    return f"{span}\n{bucket['rows']} texts"


def _write(folder: Path, name: str, numbers: Mapping[str, Any], draw: Callable[[], Figure], drawn: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / f"{name}.json", json.dumps(numbers, indent=2) + "\n")
    if drawn:
        image = BytesIO()
        draw().savefig(image, format="png", dpi=130)
        atomic_write_bytes(folder / f"{name}.png", image.getvalue())
