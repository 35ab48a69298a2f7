"""What loggers show of a run's texts: a heat-map of the tokens that stayed, and the same as a table of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunekit.results.examples import Examples, decoded

WIDE = 48  # tokens of a text that the picture has room for


def chosen(found: Examples, most: int) -> list[int]:
    """Places in `found.index` of the texts to show: those that pruning made wrong first, then the first ones."""
    before = (found.dense == found.labels) if found.classification else np.zeros(len(found.labels), bool)
    lost = before & (found.predicted != found.labels)
    return sorted(range(len(found.index)), key=lambda place: (not lost[found.index[place]], place))[:most]


def token_table(found: Examples, places: list[int]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: one row per token, with the layers that it passed and its score at each (None: was gone).

    A score is the attention that a token receives, 1 where everyone gets the same.
    """
    layers = [f"score_{layer:02d}" for layer in range(found.layers)]
    columns = ["row", "label", "dense", "pruned", "position", "token", "layers_passed", *layers]
    pieces = dict(zip(found.piece_ids.tolist(), found.pieces.tolist(), strict=True))
    rows = []
    for place in places:
        row, tokens = int(found.index[place]), found.text(place)
        said = found.said(row)
        scores = decoded(found.scores[tokens]).tolist()
        for position, (piece, depth) in enumerate(zip(found.ids[tokens], found.depth[tokens], strict=True)):
            known = [round(score, 3) if score else None for score in scores[position]]
            rows.append([row, *said, position, pieces[int(piece)], int(depth), *known])
    return columns, rows


def heat_map(found: Examples, places: list[int]) -> Figure:
    """One panel per text, a row per layer: who entered its feed-forward half is coloured, by score; gone is white."""
    pieces = dict(zip(found.piece_ids.tolist(), found.pieces.tolist(), strict=True))
    figure = Figure(
        figsize=(11, (0.7 + 0.16 * found.layers + 0.55) * max(1, len(places))), layout="constrained", dpi=90
    )
    all_axes = np.atleast_1d(figure.subplots(max(1, len(places)), 1))
    for axes, place in zip(all_axes, places, strict=False):
        row, tokens = int(found.index[place]), found.text(place)
        ids, depth = found.ids[tokens][:WIDE], found.depth[tokens][:WIDE]
        stayed = np.arange(found.layers)[:, None] < depth
        # octaves of the score, from a quarter of an even share to four times it
        shade = np.log2(np.clip(decoded(found.scores[tokens][:WIDE].T), 0.25, 4.0))
        axes.imshow(
            np.where(stayed, shade, np.nan), cmap="Blues", vmin=-5, vmax=2, aspect="auto", interpolation="nearest"
        )
        axes.set_xlim(-0.5, WIDE - 0.5)
        names = [_plain(pieces[int(piece)]) for piece in ids]
        axes.set_xticks(range(len(ids)), names, rotation=90, fontsize=7)
        axes.set_yticks([0, found.layers - 1], ["layer 0", str(found.layers - 1)], fontsize=7)
        axes.spines[:].set_visible(False)
        more = len(found.ids[tokens]) - len(ids)
        label, dense, pruned = found.said(row)
        rest = f"; {more} more tokens" if more else ""
        title = f"test row {row}: {label}; dense says {dense}, pruned {pruned}{rest}"
        axes.set_title(_plain(title), fontsize=8, loc="left")
    for axes in all_axes[len(places) :]:
        axes.set_axis_off()
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as [height, width, 3] bytes, red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read formulas
