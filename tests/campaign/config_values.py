"""Values for a key of conf/, drawn from its comment: what it takes and what it does not, as typed and as meant.

Knows the grammar of the comments from their description alone, not by the code that checks them.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REFUSED: Any = object()  # the value must not be accepted
EITHER: Any = object()  # it may be accepted or not, by what another key holds
LARGEST = 2**63 - 1
WORDS = (
    "body",
    "Größe (cm)",
    "0",
    "007",
    "1e5",
    "no",
    "true",
    "2024-01-01",
    "a, b",
    "{a: 1}",
    "[CLS]",
    "x=y",
    "a:b",
    "#1",
)
LETTERS = "abc XYZ 019 _-.,:;!?()[]{}<>|/\\'\"`~@#$%^&*+=äß中文אב\U0001f600\u200b\t"
HALF = "\ud83d"
NEVER = ("nan", "inf", "-inf", "1e400", "'7'", "9" * 400, "9" * 5000, "{a: 1}", "[[1]]", "1 2", "0x10", "\uff11", "???")
BROKEN = ("${nonsense}", "${", "${seed", "${oc.env:NO_SUCH_VARIABLE}", "[1", "{a", "'a", "a b'c", "\\", "=")


@dataclass(frozen=True)
class Typed:
    """What is typed after key=, and the value that the key then has; REFUSED or EITHER where that is no value."""

    text: str
    value: Any


def draw(domain: str, nullable: bool, rng: random.Random) -> Typed:
    """Draw a value for a key: half of them such that it takes them."""
    if rng.random() < 0.05:
        return Typed("null", None if nullable else REFUSED)
    if rng.random() < 0.06:
        return Typed(rng.choice(BROKEN), REFUSED) if domain not in ("text", "path") else Typed("${nonsense}", REFUSED)
    if rng.random() < 0.03:
        return Typed("${seed}", EITHER)
    return _drawer(domain)(rng, rng.random() < 0.5)


Drawer = Callable[[random.Random, bool], Typed]


def _drawer(domain: str) -> Drawer:
    """Return what draws a value of a domain, or with False one that it does not take."""
    if domain == "text or list of text":
        return lambda rng, fits: _text_or_list(rng, fits)
    if domain in SIMPLE:
        return SIMPLE[domain]
    if domain.startswith("one of "):
        return lambda rng, fits: _choice(domain.removeprefix("one of ").split("|"), rng, fits)
    if domain.startswith("list of "):
        return lambda rng, fits: _list(domain.removeprefix("list of "), rng, fits)
    found = re.fullmatch(r"(int|float|layers) ([(\[]?)([-+.\de]*?)\.\.([-+.\de]*?)([)\]]?)", domain)
    assert found is not None, domain
    kind, left, low, high, right = found.groups()
    ends = float(low or "-inf"), float(high or "inf"), left == "(", right == ")"
    return lambda rng, fits: {"int": _whole, "float": _number, "layers": _layers}[kind](ends, rng, fits)


Ends = tuple[float, float, bool, bool]


def _inside(ends: Ends, value: float) -> bool:
    low, high, open_low, open_high = ends
    return (low < value or (low == value and not open_low)) and (value < high or (value == high and not open_high))


def _whole(ends: Ends, rng: random.Random, fits: bool) -> Typed:
    low, high = max(ends[0], -1000), min(ends[1], 10**6)
    if fits:
        value = int(rng.choice((low, high, rng.uniform(low, high))))
        return Typed(str(value), value if _inside(ends, value) else REFUSED)
    beyond = [str(int(end)) for end in (low - 1, ends[1] + 1) if math.isfinite(end) and not _inside(ends, end)]
    return Typed(rng.choice([*beyond, *NEVER, "1.5", "true", "abc", "[]", "", str(LARGEST + 1)]), REFUSED)


def _number(ends: Ends, rng: random.Random, fits: bool) -> Typed:
    low, high = max(ends[0], -1000.0), min(ends[1], 1e6)
    if fits:
        value = rng.choice((low, high, rng.uniform(low, high), rng.uniform(low, high)))
        text = rng.choice((repr(value), f"{value:.3e}", str(int(value)) if value == int(value) else repr(value)))
        return Typed(text, float(text) if _inside(ends, float(text)) else REFUSED)
    beyond = [repr(end) for end in (low - 0.5, ends[1] + 0.5) if math.isfinite(end) and not _inside(ends, end)]
    return Typed(rng.choice([*beyond, *NEVER, "true", "abc", "[]", ""]), REFUSED)


def _layers(ends: Ends, rng: random.Random, fits: bool) -> Typed:
    first = int(ends[0])
    layers = sorted(rng.sample(range(first, first + 12), rng.randint(1, 4)))
    if fits:
        return Typed(str(layers), layers)
    wrong: list[Any] = [[], [first - 1], [*layers, layers[-1]], [layers[-1] + 1, layers[-1]], [1.5], ["a"], [True], 3]
    return Typed(str(rng.choice(wrong)).replace("True", "true"), REFUSED)


def _boolean(rng: random.Random, fits: bool) -> Typed:
    if fits:
        value = rng.choice((True, False))
        return Typed(rng.choice((str(value), str(value).lower(), str(value).upper())), value)
    return Typed(rng.choice(("1", "0", "yes", "off", "", "[true]", "'true'", "nan", "tru", "1.0")), REFUSED)


def _choice(choices: list[str], rng: random.Random, fits: bool) -> Typed:
    if fits:
        name = rng.choice(choices)
        return Typed(name, {"true": True, "false": False, "32": 32}.get(name, name))
    name = rng.choice(choices)
    wrong = [name[:-1] or "x", f"{name}x", f"[{name}]", "", "7", "{a: 1}", "a" * 300, "nan", HALF]
    return Typed(rng.choice([text for text in wrong if text not in choices]), REFUSED)


def _list(element: str, rng: random.Random, fits: bool) -> Typed:
    drawn = [_drawer(element)(rng, True) for _ in range(rng.randint(1, 3))]
    if element == "text":
        drawn = [
            Typed(repr(word), word) for word in rng.sample(("red", "a b", "no", "0", "1.0", "Größe"), rng.randint(1, 4))
        ]
    good = [one for one in drawn if one.value is not REFUSED]
    if fits:
        return Typed(f"[{', '.join(one.text for one in good)}]", [one.value for one in good])
    if element == "text":
        return Typed(rng.choice(("5", "red", "true", "{a: 1}", f"['{HALF}']")), REFUSED)
    wrong = _drawer(element)(rng, False).text
    return Typed(rng.choice((f"[{', '.join([*(one.text for one in good), wrong or 'null'])}]", "{a: 1}", "x")), REFUSED)


def _text(rng: random.Random, fits: bool) -> Typed:
    if not fits:
        return Typed(rng.choice((f"a{HALF}b", "[a, b]", "[]", HALF)), REFUSED)
    if rng.random() < 0.5:
        word = rng.choice(WORDS)
        return Typed(word, word)
    word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 40))).strip()
    if not word or word[0] in "'\"[" or word == "null" or "${" in word:
        word = f"a{word}".replace("${", "$")
    return Typed(word, word)


def _text_or_list(rng: random.Random, fits: bool) -> Typed:
    if fits:
        return rng.choice((Typed("body", "body"), Typed("[a, b c]", ["a", "b c"]), Typed("['0', '1']", ["0", "1"])))
    return Typed(rng.choice((f"a{HALF}b", f"['{HALF}']", f"['a', '{HALF}']")), REFUSED)


def _path(rng: random.Random, fits: bool) -> Typed:
    if not fits:
        return Typed(rng.choice(("7", "true", "[a]", f"a{HALF}", "a\0b", "n" * 300, "a/" * 3000, "'a\0'")), REFUSED)
    word = rng.choice(
        ("data/a b.csv", "~/a.csv", "/tmp/Größe.csv", "a=b.csv", "a, b.csv", "x" * 255, "a(1).csv", "C:\\x")
    )
    return Typed(word, os.path.expanduser(word))


def _budget(rng: random.Random, fits: bool) -> Typed:
    if fits:
        share = rng.choice(("0.4", "1.0", "0.001"))
        return rng.choice((Typed("3x", "3x"), Typed("1.5X", "1.5X"), Typed("1x", "1x"), Typed(share, float(share))))
    wrong = (
        "3",
        "0",
        "-1",
        "0.5x",
        "x",
        "3 x",
        "1e3x",
        "0.0",
        "1.5",
        "nan",
        "true",
        "[3x]",
        f"1{'0' * 400}x",
        "0x",
        "١x",
    )
    return Typed(rng.choice(wrong), REFUSED)


def _band(rng: random.Random, fits: bool) -> Typed:
    good: tuple[list[Any], ...] = ([0, 16], [4, "max"], ["q25", "q75"], [0, "median"])
    wrong: tuple[Any, ...] = (
        [],
        [1],
        [5, 5],
        [9, 3],
        [-1, 4],
        ["max", 9],
        ["q0", 4],
        ["q100", "max"],
        [1.5, 4],
        "x",
        7,
    )
    return _written(rng.choice(good if fits else wrong), fits)


def _bands(rng: random.Random, fits: bool) -> Typed:
    good: tuple[list[Any], ...] = ([0, 8, 16], [0, "median", "q90", "max"], [0, 32])
    wrong: tuple[Any, ...] = ([], [3], [0, 8, 8], [0, "q90", "median"], ["x", 1, 2], {"a": 1}, [[0, 1], [2, 3]], True)
    return _written(rng.choice(good if fits else wrong), fits)


def _written(value: Any, fits: bool) -> Typed:
    return Typed(str(value).replace("'", "").replace("True", "true"), value if fits else REFUSED)


def _block(rng: random.Random, fits: bool) -> Typed:
    return Typed(rng.choice(("7", "x", "[]", "true", "")), REFUSED)


SIMPLE: dict[str, Drawer] = {
    "bool": _boolean,
    "text": _text,
    "path": _path,
    "budget": _budget,
    "band": _band,
    "bands": _bands,
    "block": _block,
}
