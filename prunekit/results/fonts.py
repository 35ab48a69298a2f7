"""Letters of any script in plots: a font of this machine that has them, else their code points in place of boxes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"  # comes with matplotlib
# families that have a picture of a box for every letter, single symbols, or colours that matplotlib cannot draw
UNFIT = ("Last Resort", "LastResort", "STIX", "cmb", "cmex", "cmmi", "cmr", "cmss", "cmsy", "cmtt", "Color", "Colour")


def legible(text: str) -> str:
    """Return a text as matplotlib can show it: U+XXXX for a letter that no font has, no formulas between dollars."""
    heard = "".join(letter for letter in text if not _is_silent(letter))
    words = "".join(letter if font_of(letter) else f" U+{ord(letter):04X} " for letter in heard)
    return (heard if words == heard else " ".join(words.split())).replace("$", r"\$")


def families(texts: Iterable[str]) -> list[str]:
    """Return the font families that have the letters of the texts, in the order in which they are tried."""
    letters = sorted({letter for text in texts for letter in text})
    return list(dict.fromkeys([BASE, *(family for letter in letters if (family := font_of(letter)))]))


@cache
def font_of(letter: str) -> str | None:
    """Return the family of a font that has a letter, of matplotlib's own first; None where there is none."""
    for family, path in _fonts():
        if ord(letter) in _letters(path):
            return family
    return None


@cache
def _fonts() -> list[tuple[str, str]]:
    """The upright fonts of this machine that are fit for text, as family and file, matplotlib's own first."""
    found = [font for font in font_manager.fontManager.ttflist if not any(word in font.name for word in UNFIT)]
    plain = [font for font in found if font.style == "normal" and str(font.weight) in ("400", "normal", "regular")]
    ordered = sorted(plain, key=lambda font: (font.name != BASE, "Sans" not in font.name, font.name))
    return [(font.name, font.fname) for font in ordered]


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except Exception:  # of a font that is damaged or of an unknown kind
        return frozenset()


def _is_silent(letter: str) -> bool:
    """Whether a letter shows nothing by itself: joiners, marks of direction, variants of emoji."""
    return unicodedata.category(letter) == "Cf" or letter in "\ufe0e\ufe0f"
