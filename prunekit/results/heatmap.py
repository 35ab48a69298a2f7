"""A run's texts as loggers show them: a heat map of the kept tokens, and the same as a table of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunekit.results.examples import Examples, decode_scores
from prunekit.results.fonts import families, legible

WIDE = 48  # tokens of a text that the picture has room for


def choose_texts(examples: Examples, most: int) -> list[int]:
    """Choose the texts to show, as places in `examples.index`: first those that pruning made wrong, then in order."""
    count = len(examples.labels)
    before = (examples.dense == examples.labels) if examples.classification else np.zeros(count, bool)
    lost = before & (examples.predicted != examples.labels)
    return sorted(range(len(examples.index)), key=lambda place: (not lost[examples.index[place]], place))[:most]


def token_table(examples: Examples, places: list[int]) -> tuple[list[str], list[list[Any]]]:
    """Build columns and rows, one row per token: the layers that it passed, and its score at each; None once dropped.

    A score is the attention that a token receives; 1 is uniform attention.
    """
    layers = [f"score_{layer:02d}" for layer in range(examples.layers)]
    columns = ["row", "label", "dense", "pruned", "position", "token", "layers_passed", *layers]
    pieces = dict(zip(examples.piece_ids.tolist(), examples.pieces.tolist(), strict=True))
    rows = []
    for place in places:
        row, tokens = int(examples.index[place]), examples.text(place)
        outputs = examples.outputs(row)
        scores = decode_scores(examples.scores[tokens]).tolist()
        for position, (piece, depth) in enumerate(zip(examples.ids[tokens], examples.depth[tokens], strict=True)):
            known = [round(score, 3) if score else None for score in scores[position]]
            rows.append([row, *outputs, position, pieces[int(piece)], int(depth), *known])
    return columns, rows


def heat_map(examples: Examples, places: list[int]) -> Figure:
    """Draw one panel per text, a row per layer: kept tokens coloured by their score, dropped ones white."""
    pieces = dict(zip(examples.piece_ids.tolist(), examples.pieces.tolist(), strict=True))
    figure = Figure(
        figsize=(11, (0.7 + 0.16 * examples.layers + 0.55) * max(1, len(places))), layout="constrained", dpi=90
    )
    all_axes = np.atleast_1d(figure.subplots(max(1, len(places)), 1))
    for axes, place in zip(all_axes, places, strict=False):
        row, tokens = int(examples.index[place]), examples.text(place)
        ids, depth = examples.ids[tokens][:WIDE], examples.depth[tokens][:WIDE]
        kept = np.arange(examples.layers)[:, None] < depth
        # octaves of the score, from a quarter of uniform attention to four times it
        shade = np.log2(np.clip(decode_scores(examples.scores[tokens][:WIDE].T), 0.25, 4.0))
        axes.imshow(
            np.where(kept, shade, np.nan), cmap="Blues", vmin=-5, vmax=2, aspect="auto", interpolation="nearest"
        )
        axes.set_xlim(-0.5, WIDE - 0.5)
        names = [pieces[int(piece)] for piece in ids]
        axes.set_xticks(
            range(len(ids)), [legible(name) for name in names], rotation=90, fontsize=7, fontfamily=families(names)
        )
        axes.set_yticks([0, examples.layers - 1], ["layer 0", str(examples.layers - 1)], fontsize=7)
        axes.spines[:].set_visible(False)
        more = len(examples.ids[tokens]) - len(ids)
        label, dense, pruned = examples.outputs(row)
        rest = f"; {more} more tokens" if more else ""
        title = f"test row {row}: {label}; dense says {dense}, pruned {pruned}{rest}"
        axes.set_title(legible(title), fontsize=8, loc="left", fontfamily=families([title]))
    for axes in all_axes[len(places) :]:
        axes.set_axis_off()
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """Return a figure as [height, width, 3] bytes: red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
