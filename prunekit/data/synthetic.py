"""The words of generated data, so that every path of the code can be tested without a download.

A sentence is filler words and a few marker words, and the label depends on the markers alone. So there is something to
learn, and something to prune.
"""

from __future__ import annotations

import string
from random import Random

SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su")
FILLERS = tuple(first + second for first in SYLLABLES for second in SYLLABLES[:4])
MARKERS = tuple(first + second + "x" for first in SYLLABLES for second in SYLLABLES[4:8])
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentence(random: Random, markers: list[str]) -> str:
    """Return these markers among 4 to 16 filler words, shuffled."""
    words = [random.choice(FILLERS) for _ in range(random.randint(4, 16))] + markers
    random.shuffle(words)
    return " ".join(words)


def tiny_vocabulary() -> dict[str, int]:
    """Return WordPiece entries: specials, the generator's words, and characters, so that real text is spelt out."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{c}" for c in characters), *string.punctuation]
    return {piece: number for number, piece in enumerate([*SPECIALS, *FILLERS, *MARKERS, *pieces])}
