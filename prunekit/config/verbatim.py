"""Take what is typed for a text as text, although Hydra or YAML would read a number, a boolean or a list in it.

A key whose comment says `text`, `path` or `list of text` takes the very characters: `task.text=0`, `task.text=Größe
(cm)`, `task.labels=[0,1]`, `task.domain.template={{ row["Question Text"] }}`, and `labels: [no, yes]` in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from prunekit.config.domains import TEXT_OR_LIST
from prunekit.config.keys import Key, all_keys, files_of

TEXTS, LISTS = ("text", "path", TEXT_OR_LIST), ("list of text",)
ELEMENT = re.compile(r"""\s*('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,]*?)\s*(?:,|$)""")


def quote_texts(overrides: Sequence[str], *, swept: bool = False) -> list[str]:
    """Return overrides in which the texts that Hydra would not read as text are quoted.

    With `swept`, commas separate the values of a sweep. What is quoted already, null and interpolations stay as they
    are.
    """
    if not overrides:  # the comments of all files take as long to read as the rest of a start
        return []
    try:
        keys = all_keys()
    except yaml.YAMLError:  # composing reports it, if the file is one of those that are asked for
        return list(overrides)
    return [_quote_text(override, keys, swept) for override in overrides]


def _quote_text(override: str, keys: Mapping[str, Key], swept: bool) -> str:
    name, equals, raw = override.partition("=")
    key = keys.get(name.lstrip("+"))
    if not equals or key is None or key.domain not in (*TEXTS, *LISTS) or "${" in raw:
        return override
    given = raw.strip()
    if given in ("", "null", "???") or (given[0] in "'\"" and given[0] == given[-1] and len(given) > 1):
        return override
    try:
        parsed = OverridesParser.create().parse_override(f"{name}={raw}")
        value, is_sweep = parsed.value(), parsed.is_sweep_override()
    except (HydraException, ValueError):  # a number of thousands of digits is a ValueError
        value, is_sweep = None, False
    is_list = given.startswith("[") and given.endswith("]")
    if key.domain in LISTS or (key.domain == TEXT_OR_LIST and is_list):
        plain = isinstance(value, list) and all(isinstance(item, str) or item is None for item in value)
        return f"{name}=[{', '.join(_elements(given[1:-1]))}]" if is_list and not plain else override
    if isinstance(value, str | list) or (is_sweep and swept) or (key.domain == "path" and _is_scalar(value)):
        return override  # a list is no text, and a number no path
    return f"{name}={quote(given)}"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _elements(inside: str) -> Iterator[str]:
    """Yield the elements of a list, those quoted that are not."""
    if not inside.strip():
        return
    for element in ELEMENT.findall(inside)[: _commas(inside) + 1]:
        is_quoted = len(element) > 1 and element[0] in "'\"" and element[0] == element[-1]
        yield element if is_quoted or element == "null" else quote(element)


def _commas(inside: str) -> int:
    return re.sub(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", "", inside).count(",")


def quote(text: str) -> str:
    """Return a text in quotes, as Hydra reads it."""
    # hydra takes a backslash literally, except before a quote and at the end
    inner = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{inner}'"


# -- values that were read already -------------------------------------------------------------------


def text_of(value: Any, key: Key, files: Sequence[Path]) -> Any:
    """Return the text that was written for a number or a boolean; the value itself where that is not known.

    `files` are those in which it may be written. A whole number is written in one way, a boolean in many.
    """
    if not _is_scalar(value):
        return value
    spelt = {raw for raw in _spellings(key.path, files) if _same(_safe(raw), value)}
    if len(spelt) == 1:
        return spelt.pop()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def written_in(choices: Mapping[str, Any], places: Sequence[Path]) -> list[Path]:
    """Return the files that the chosen options are read from."""
    return [file for group, chosen in choices.items() for file in files_of(group, chosen, places)]


def _spellings(path: str, files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        status = file.stat()
        content, is_global = _read_raw(file, status.st_mtime_ns)
        parts = path.split(".")
        node: Any = content
        for part in parts if is_global else parts[1:]:
            node = node.get(part) if isinstance(node, dict) else None
        yield from [node] if isinstance(node, str) else (item for item in node or () if isinstance(item, str))


@cache
def _read_raw(file: Path, changed: int) -> tuple[Any, bool]:
    text = file.read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader), "@package _global_" in text


def _safe(raw: str) -> Any:
    from omegaconf._utils import get_yaml_loader  # the loader that read the file

    try:
        return yaml.load(raw, Loader=get_yaml_loader())
    except (yaml.YAMLError, ValueError):
        return raw


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))
