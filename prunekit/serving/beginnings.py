"""The beginning of a long text whose tokens are the first tokens of the whole text, so that the rest need not be read.

Tokenizers that divide texts at blanks before anything else give every word its tokens, whatever the next word is. Their
tokens of a text that ends before a blank are those with which any continuation begins.
"""

from __future__ import annotations

from typing import Any

PROBE = "a b, c! d's e 1 2x (f) é _ .g"  # letters, digits and signs on both sides of a blank


def divides_at_blanks(tokenizer: Any) -> bool:
    """Return whether a blank always ends a token, and whether the tokenizer cuts texts at their end."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None or tokenizer.truncation_side != "right":
        return False
    text = PROBE if backend.normalizer is None else backend.normalizer.normalize_str(PROBE)
    if text.count(" ") != PROBE.count(" ") or any(" " in token for token in tokenizer.get_added_vocab()):
        return False
    words = [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]
    return not any(" " in word.lstrip(" ") for word in words)


def beginning(text: str, characters: int) -> str:
    """Return the words at a text's beginning that fit into some characters; the whole text if it has no such words."""
    if len(text) <= characters:
        return text
    end = characters + 1
    while (end := text.rfind(" ", 1, end)) > 0:
        if not text[end - 1].isspace():
            return text[:end]
    return text
