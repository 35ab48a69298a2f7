"""Names of folders and records that fit the limits of file systems and tracking libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


def byte_size(text: str) -> int:
    """Return the length of a text in UTF-8, which is what limits the name of a folder."""
    return len(text.encode(errors="surrogatepass"))


def fit_name(text: str, most: int, size: Callable[[str], int] = len, forbidden: str = "") -> str:
    """Return a name of 1 to `most` characters, or of what `size` counts: the text itself if it is one.

    Otherwise what cannot be shown or is forbidden becomes a dash, the end is cut off, and eight digits of the text's
    hash keep names apart that would be alike. `most` is 16 or more.
    """
    plain = "".join("-" if letter in forbidden or not _shows(letter) else letter for letter in text).strip()
    if plain == text and 0 < size(text) <= most:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    start = plain[: most - 9]
    while size(start) > most - 9:
        start = start[:-1]
    return f"{start.strip(' -') or 'unnamed'}-{digest}"


def _shows(letter: str) -> bool:
    """Whether a character is text: joiners of scripts and emoji are, controls and halves of characters are not."""
    return letter.isprintable() or letter in "\u200c\u200d"
