"""What is wrong with a cell of a table, and whether it holds nothing; no class is chosen here."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from prunekit.config.errors import HALF_CHARACTER, quoted

ARRAY = re.compile(r"\[[-+.\s\de]*\]")  # of numbers, as numpy writes it
FLAGS = re.compile(r"[01]([ ,;][01])+")  # 0 and 1, one for each class
UNTYPED = ("nan", "<na>", "nat")  # how programs write nothing where it has become text


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: null, or not a number."""
    if value is None or isinstance(value, str):
        return value is None
    return (value != value) is True or type(value).__name__ == "NAType"  # of pandas, which is equal to nothing


def present(values: Iterable[Any]) -> Iterator[Any]:
    """Yield values with None for every one that is missing."""
    return (None if is_missing(value) else value for value in values)


def has_half_character(text: str) -> bool:
    """Return whether a text holds one of a pair of surrogates, as "\\ud83d" in JSON is: no file can hold it."""
    return not text.isascii() and HALF_CHARACTER.search(text) is not None


def text_fault(value: Any) -> str:
    """Return what is wrong with the text of a cell, as the words after "column 'x' holds"; "" if nothing is."""
    if value is None or isinstance(value, str):
        if value and has_half_character(value):
            return f"half a character, in {quoted(_around_half(value))}, which is no Unicode"
        return ""
    if isinstance(value, bytes | bytearray):
        return f"bytes, {quoted(bytes(value))}, which are not text"
    return f"{quoted(value)}, which is not text"


def _around_half(text: str) -> str:
    found = HALF_CHARACTER.search(text)
    assert found is not None
    return text[max(0, found.start() - 20) : found.end() + 20]


def label_fault(value: Any) -> str:
    """Return what is wrong with a label, as the words after "label x is"; "" if nothing is.

    Texts that a program wrote for a list are lists, too.
    """
    if isinstance(value, bytes | bytearray):
        return "bytes, which are not text"
    if isinstance(value, Mapping):
        return "an object, and a text has one label"
    if isinstance(value, list | tuple | set | frozenset) or hasattr(value, "__array__"):
        return "a list, and a text has one label"
    if isinstance(value, str):
        if has_half_character(value):
            return "half a character, which is no Unicode"
        stripped = value.strip()
        if (stripped[:1] + stripped[-1:] in ("[]", "{}", "()") and _is_list(stripped)) or FLAGS.fullmatch(stripped):
            return "a list, and a text has one label"
    if isinstance(value, float) and math.isinf(value):
        return "infinite, which is no label"
    return ""


def _is_list(text: str) -> bool:
    if ARRAY.fullmatch(text):
        return True
    try:
        return isinstance(ast.literal_eval(text), list | tuple | dict | set)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def scalar(value: Any) -> Any:
    """Return a number of numpy or pandas as Python's; any other value as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def spelling(label: Any) -> str:
    """Return a label as the name of a class: whole floats are integers, and booleans are as in JSON."""
    label = scalar(label)
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float | Decimal) and math.isfinite(label) and label % 1 == 0:
        return str(int(label))
    return label.strip() if isinstance(label, str) else str(label)


def is_unlabelled(label: Any) -> bool:
    """Return whether a cell holds no label: nothing, or a blank text."""
    return is_missing(label) or (isinstance(label, str) and not label.strip())
