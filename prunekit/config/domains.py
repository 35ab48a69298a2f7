"""The grammar of conf/: the comment that explains a key also checks its value.

    bins: 50  # int 1..1000; rank bins per location
              #   domain      ; prose

A comment is `<domain>[ or null][, machine][, knob][, before <value>][, was <value>][; <prose>]`. `machine` marks a key
that cannot change a result: the hash that names a run leaves it out. `knob` marks a method's own setting of how much to
prune, which replaces `budget`. `before` is what runs did before there was the key: the hash leaves the key out at that
value. `was` is the default before it changed: the hash counts the default as that one.
Domains: `int 1..9`, `float 0..`, `float (0..1]` (an open end excludes its number), `bool`, `text`, `path`, `budget`,
`block`, `one of a|b`, `list of <domain>`, `text or list of text`, `layers 1..` (rising layer numbers, checked against
the backbone), `class weights` (`balanced`, or a list of positive numbers), `band` and `bands`: two, or two or more,
rising lengths of texts, each a number of tokens, `q25` (a quantile), `median` or `max`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

from prunekit.config.budget import parse_budget
from prunekit.config.errors import HALF_CHARACTER, ConfigError, shown

# returns what is wrong with a value, as the words that follow "key=value"; None when nothing is
Check = Callable[[Any], str | None]
LARGEST = 2**63 - 1  # a whole number beyond fits in no tensor
TEXT_OR_LIST = "text or list of text"
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes that file systems take
RANGE = re.compile(r"(int|float|layers) ([(\[]?)([-+.\de]*?)\.\.([-+.\de]*?)([)\]]?)")


@cache
def check_of(domain: str) -> Check:
    """Return the check that a domain describes.

    Raises:
        ValueError: the text is not a domain.
    """
    if domain in SIMPLE:
        return SIMPLE[domain]
    if domain.startswith("one of "):
        choices = domain.removeprefix("one of ").split("|")
        return lambda value: None if shown(value) in choices else "is not one of the choices"
    if domain.startswith("list of "):
        return partial(_list, check_of(domain.removeprefix("list of ")))
    if match := RANGE.fullmatch(domain):
        kind, left, low, high, right = match.groups()
        interval = Interval(float(low or "-inf"), float(high or "inf"), left == "(", right == ")")
        return partial({"int": _whole, "float": _number, "layers": _layers}[kind], interval)
    raise ValueError(f"{domain!r} is not a domain; write one of {', '.join(SIMPLE)}, int 1..9, float 0..1, one of a|b.")


def length_quantile(end: int | str) -> float | None:
    """Return the share of texts shorter than an end of a band: 0.25 for q25, 1 for max; None for a number of tokens."""
    if isinstance(end, int):
        return None
    return {"median": 0.5, "max": 1.0}.get(end) or int(end[1:]) / 100


@dataclass(frozen=True)
class Interval:
    """The numbers from low to high; an open end excludes its number."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    def __contains__(self, value: int | float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)


def _whole(interval: Interval, value: Any) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return "is not a whole number"
    return None if abs(value) <= LARGEST and value in interval else "is out of range"


def _number(interval: Interval, value: Any) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "is not a number"
    if isinstance(value, int) and abs(value) > LARGEST:  # which may be more than a float holds
        return "is out of range"
    if not math.isfinite(value):
        return "is not a number"
    return None if value in interval else "is out of range"


def _list(element: Check, value: Any) -> str | None:
    if not isinstance(value, list):
        return "is not a list"
    complaints = ((item, element(item)) for item in value)
    return next((f"holds {shown(item)}, which {wrong}" for item, wrong in complaints if wrong), None)


def _layers(interval: Interval, value: Any) -> str | None:
    if wrong := _list(partial(_whole, interval), value):
        return wrong
    if not value:
        return "is empty"
    twice = [layer for layer in value if value.count(layer) > 1]
    if twice:
        return f"names layer {twice[0]} twice"
    return None if value == sorted(value) else "is not in rising order"


def _bands(one: bool, value: Any) -> str | None:
    if not isinstance(value, list) or len(value) < 2 or (one and len(value) > 2):
        return f"is not a list of two lengths{'' if one else ' or more'}"
    for end in value:
        whole = isinstance(end, int) and not isinstance(end, bool) and end >= 0
        if not whole and not (isinstance(end, str) and re.fullmatch(r"median|max|q[1-9]\d?", end)):
            return f"holds {shown(end)}, which is no length"
    tokens = [end for end in value if isinstance(end, int)]
    shares = [share for share in map(length_quantile, value) if share is not None]
    rising = all(one < other for some in (tokens, shares) for one, other in pairwise(some))
    # the data decides how quantiles and numbers compare, except that nothing is shorter than 0 or longer than max
    misplaced = 0 in value[1:] or "max" in value[:-1]
    return None if rising and not misplaced else "does not rise: a band goes from its first length up to below the next"


def _type(kind: type, phrase: str, value: Any) -> str | None:
    return None if isinstance(value, kind) else phrase


def _text(phrase: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return phrase
    return "holds half a character, which is no Unicode" if HALF_CHARACTER.search(value) else None


def _text_or_list(value: Any) -> str | None:
    if not isinstance(value, list):
        return _text("is neither text nor a list of text", value)
    return _list(SIMPLE["text"], value) if value else "is empty"


def _class_weights(value: Any) -> str | None:
    if value == "balanced":
        return None
    if not isinstance(value, list) or not value:
        return "is neither balanced nor a list of numbers"
    return _list(check_of("float (0..)"), value)


def _path(value: Any) -> str | None:
    if wrong := _text("is not a path", value):
        return wrong
    if "\0" in value:
        return "is not a path: it holds a character of number 0"
    names = [len(name.encode()) for name in re.split(r"[/\\]" if os.name == "nt" else "/", value)]
    if max(names) > LONGEST_NAME:
        return f"is not a path: a name in it has {max(names)} bytes, and file systems take {LONGEST_NAME}"
    if len(value.encode()) >= LONGEST_PATH:
        return f"is not a path: it has {len(value.encode())} bytes, and file systems take {LONGEST_PATH - 1}"
    return None


def _budget(value: Any) -> str | None:
    try:
        parse_budget(value)
    except ConfigError:
        return "is not a budget"
    return None if value is not None else "is not set"


SIMPLE: dict[str, Check] = {
    "bool": partial(_type, bool, "is not true or false"),
    "text": partial(_text, "is not text"),
    TEXT_OR_LIST: _text_or_list,
    "path": _path,
    "block": partial(_type, dict, "is not a block of keys"),
    "budget": _budget,
    "class weights": _class_weights,
    "band": partial(_bands, True),
    "bands": partial(_bands, False),
}
