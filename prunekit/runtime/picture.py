"""Draw the tokens of a text leaving layer by layer, in plain text and as SVG. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from rich.cells import cell_len, set_cell_size

COLUMNS = 80  # of a terminal
LONGEST_PIECE = 24  # columns of a token; a longer one is cut


@dataclass(frozen=True)
class Story:
    """A text's tokens, how many layers each passed whole, the number of layers, and what the model says of the text."""

    tokens: tuple[str, ...]
    depth: tuple[int, ...]
    layers: int
    answer: str
    remark: str = ""

    @property
    def counts(self) -> list[int]:
        """The tokens of the text, then those that each layer kept."""
        return [len(self.tokens), *(sum(depth > layer for depth in self.depth) for layer in range(self.layers))]

    @property
    def heading(self) -> str:
        """The answer, and how many tokens there are and a layer keeps on average."""
        mean = sum(self.counts[1:]) / max(1, self.layers)
        return f"{self.answer} | {len(self.tokens)} tokens, {mean:.1f} kept per layer on average"

    @property
    def rows(self) -> Iterator[tuple[str, int, int]]:
        """The name of each row, its count, and the depth from which a token is in it."""
        names = ["text", *(f"layer {layer}" for layer in range(self.layers))]
        return zip(names, self.counts, range(self.layers + 1), strict=True)

    @property
    def pieces(self) -> list[str]:
        """The tokens, long ones cut."""
        return [
            piece if cell_len(piece) <= LONGEST_PIECE else set_cell_size(piece, LONGEST_PIECE - 1) + "…"
            for piece in self.tokens
        ]


def broken(widths: Sequence[float | int], most: float | int) -> list[range]:
    """Break tokens of these widths into lines of at most `most`; a line has at least one token."""
    lines, start, used = [], 0, 0.0
    for at, width in enumerate(widths):
        if at > start and used + width > most:
            lines.append(range(start, at))
            start, used = at, 0.0
        used += width
    return [*lines, range(start, len(widths))]


# -- text --------------------------------------------------------------------------------------------


def plain(story: Story) -> str:
    """Return the picture as text: a row per layer, a dot for a dropped token; long texts are broken into parts."""
    pieces = story.pieces
    names = [f"{name:<9}{count:>5}  " for name, count, _ in story.rows]
    margin = max(map(len, names))
    lines = [story.heading]
    for part in broken([cell_len(piece) + 1 for piece in pieces], COLUMNS + 1 - margin):
        lines.append("")
        for name, (_, _, needed) in zip(names, story.rows, strict=True):
            words = [pieces[at] if story.depth[at] >= needed else "·" + " " * (cell_len(pieces[at]) - 1) for at in part]
            lines.append(f"{name if part.start == 0 else ' ' * margin}{' '.join(words)}".rstrip())
    return "\n".join([*lines, *([f"({story.remark})"] if story.remark else [])])


# -- SVG ---------------------------------------------------------------------------------------------

WIDTH, EDGE, MARGIN = 1000, 24, 118  # of the picture, around it, and of the names of rows
LETTER, PAD, GAP = 8.0, 14, 4  # a letter's width at size 13, around a token, between tokens
ROW, BOX = 30, 24
PAPER, INK, QUIET, LEAVING = "#fcfcfd", "#14213d", "#667085", "#b42318"
FIRST, LAST = (232, 239, 252), (130, 168, 238)  # of a kept token in the first and in the last layer
SANS = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def svg(stories: Sequence[Story]) -> str:
    """Return the pictures as one SVG: kept tokens in boxes, those that a layer drops struck out, then nothing.

    It has a background of its own, so that it reads on light pages and on dark ones.
    """
    shapes: list[str] = []
    top = EDGE
    for story in stories:
        drawn, top = _story(story, top)
        shapes += drawn
    height = top + EDGE - 16
    words = "; ".join(" ".join(story.tokens) + ": " + story.heading for story in stories)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-size="13"><title>{escape(words)}</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="{PAPER}" stroke="#d0d5dd"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _story(story: Story, top: int) -> tuple[list[str], int]:
    """Return the shapes of a text, and where the next one begins."""
    pieces = story.pieces
    widths = [LETTER * cell_len(piece) + PAD for piece in pieces]
    room = WIDTH - MARGIN - 2 * EDGE
    shapes = [_text(EDGE, top + 12, story.heading, 'font-size="14" font-weight="600"')]
    top += 30
    for part in broken([width + GAP for width in widths], room):
        for name, count, needed in story.rows:
            middle = top + ROW / 2 + 4.5
            if part.start == 0:
                shapes.append(_text(EDGE, middle, name, colour=QUIET))
                shapes.append(_text(MARGIN - 10, middle, str(count), 'text-anchor="end"', QUIET))
            left = float(EDGE + MARGIN - GAP)
            for at in part:
                shapes += _token(pieces[at], left, top, widths[at], story.depth[at] - needed, needed, story.layers)
                left += widths[at] + GAP
            top += ROW
        top += 14
    if story.remark:
        shapes.append(_text(EDGE, top + 6, story.remark, colour=QUIET))
        top += 24
    return shapes, top + 6


def _token(piece: str, left: float | int, top: int, width: float | int, beyond: int, row: int, rows: int) -> list[str]:
    """Return a token in a row: `beyond` is how many further layers it passes; -1 = this layer drops it."""
    middle = f'text-anchor="middle" font-family="{MONO}"'
    where = left + width / 2, top + ROW / 2 + 4.5
    if beyond < -1 or (row == 0 and beyond < 0):
        return []
    if beyond == -1:
        return [_text(*where, piece, f'{middle} text-decoration="line-through" opacity="0.75"', LEAVING)]
    share = (row - 1) / max(1, rows - 1)
    tone = ",".join(f"{start + share * (end - start):.0f}" for start, end in zip(FIRST, LAST, strict=True))
    box = f'<rect x="{left:.1f}" y="{top + (ROW - BOX) / 2:.1f}" width="{width:.1f}" height="{BOX}" rx="5" '
    return [*([f'{box}fill="rgb({tone})"/>'] if row else []), _text(*where, piece, middle)]


def _text(x: float | int, y: float | int, words: str, more: str = "", colour: str = INK) -> str:
    family = "" if "font-family" in more else f' font-family="{SANS}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{family} {more}>{escape(words)}</text>'
