"""Draw the panels of the dashboard, a picture per section, from the numbers that `panels.evaluate` returns."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from math import ceil
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunekit.files import json_sha256
from prunekit.loggers.panels import Panel
from prunekit.results.fonts import families, legible

COLOURS = ("#2f6db3", "#c46a1b", "#3b8f5a", "#8b5fbf", "#b3423f", "#5f7f8a", "#b08a1e", "#8a8a8a")
ACROSS = 2  # panels in a row
LINES = 12  # rows of a table that are drawn


def sections(panels: Sequence[Panel]) -> dict[str, list[Panel]]:
    """Return the panels by section, in their order."""
    return {name: list(group) for name, group in groupby(panels, key=lambda panel: panel.section)}


def draw_section(panels: Sequence[Panel]) -> Figure:
    """Draw the panels of a section beside each other."""
    down = ceil(len(panels) / ACROSS)
    figure = Figure(figsize=(5.6 * ACROSS, 3.6 * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        DRAWERS[panel.kind](axes, panel)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure


def svg(panels: Sequence[Panel]) -> bytes:
    """Return the picture of a section, which carries the digest of its numbers; the same numbers give the same file."""
    stream = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "prunekit", "svg.fonttype": "none"}):
        draw_section(panels).savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Description": digest(panels)}
        )
    return stream.getvalue()


def digest(panels: Sequence[Panel]) -> str:
    """Return the digest of the numbers of panels."""
    return json_sha256(json.loads(json.dumps([panel.to_json() for panel in panels])))


def _scatter(axes: Axes, panel: Panel) -> None:
    rows = sorted(panel.whole_rows, key=lambda row: row[1])
    across, up = [row[1] for row in rows], [row[2] for row in rows]
    axes.scatter(across, up, c=[row[3] for row in rows] if len(panel.columns) > 3 else COLOURS[0], s=28)
    if "speedup" in panel.columns[2]:
        axes.axline((1, 1), slope=1, color=COLOURS[-1], linewidth=0.8, linestyle="--")
    else:
        axes.step(across, list(accumulate(up, max)), where="post", color=COLOURS[1], linewidth=1)
    _label(axes, panel.columns[1], panel.columns[2])


def _bars(axes: Axes, panel: Panel) -> None:
    rows = sorted(panel.whole_rows, key=lambda row: row[1])
    names = [row[0] for row in rows]
    bars = axes.barh(range(len(rows)), [row[1] for row in rows], color=COLOURS[0])
    axes.bar_label(bars, fmt="%.4g", fontsize=7)
    axes.set_yticks(range(len(rows)), [legible(name) for name in names], fontsize=6, fontfamily=families(names))
    _label(axes, panel.columns[1], "")


def _lines(axes: Axes, panel: Panel) -> None:
    for place in range(len(panel.columns) - 2):
        colour = COLOURS[place % len(COLOURS)]
        for _, rows in groupby(panel.rows, key=lambda row: row[0]):
            points = [(row[1], row[2 + place]) for row in rows if row[2 + place] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.9)
    if len(panel.columns) > 3:
        axes.legend(handles=_handles(panel.columns[2:]), frameon=False, fontsize=7)
    _label(axes, panel.columns[1], panel.columns[2] if len(panel.columns) == 3 else "")


def _handles(names: Sequence[str]) -> list[Any]:
    return [
        mpl.lines.Line2D([], [], color=COLOURS[place % len(COLOURS)], label=name) for place, name in enumerate(names)
    ]


def _parallel(axes: Axes, panel: Panel) -> None:
    rows, columns = panel.whole_rows, panel.columns[1:]
    places = range(len(columns))
    scales = [sorted({row[place + 1] for row in rows}) for place in places]
    for row in rows:
        heights = [_height(scale, value) for scale, value in zip(scales, row[1:], strict=True)]
        axes.plot(places, heights, color=mpl.colormaps["viridis"](heights[-1]), linewidth=1)
    for place, scale in zip(places, scales, strict=True):
        for value in {scale[0], scale[-1]} if scale else ():
            text = legible(value) if isinstance(value, str) else f"{value:.4g}"
            axes.annotate(text, (place, _height(scale, value)), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xticks(list(places), [name.replace(".", ".\n").replace("/", "/\n") for name in columns], fontsize=6)
    axes.set_yticks([])


def _height(scale: Sequence[Any], value: Any) -> float:
    """Where a value is on its axis, 0..1: numbers by size, names by order."""
    if isinstance(value, str):
        return scale.index(value) / max(1, len(scale) - 1)
    return float((value - scale[0]) / ((scale[-1] - scale[0]) or 1))


def _importance(axes: Axes, panel: Panel) -> None:
    rows = sorted(panel.whole_rows, key=lambda row: abs(row[1]))[-LINES:]
    axes.barh([row[0] for row in rows], [row[1] for row in rows], color=COLOURS[0])
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlim(-1, 1)


def _table(axes: Axes, panel: Panel) -> None:
    cells = [["" if value is None else legible(f"{value}") for value in row] for row in panel.rows[:LINES]]
    axes.set_axis_off()
    table = axes.table(cellText=cells, colLabels=panel.columns, loc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(6)
    table.auto_set_column_width(range(len(panel.columns)))


DRAWERS: dict[str, Callable[[Axes, Panel], None]] = {
    "Scatter Plot": _scatter,
    "Bar Chart": _bars,
    "Run History Line Plot": _lines,
    "Parallel Coordinates Plot": _parallel,
    "Parameter Importance": _importance,
    "Run Comparer": _table,
    "Media Browser": _table,
    "Weave": _table,
}


def _label(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
