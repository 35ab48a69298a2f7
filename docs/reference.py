"""Write docs/reference/: every key, verb and result that prunekit has, from the comments and docstrings of its code.

    python docs/reference.py

tests/test_docs.py compares the committed pages with what this writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import prunekit
from prunekit.cli.main import CODES, TRAIN, VERBS
from prunekit.cli.settings import summary
from prunekit.config.keys import Key, keys_of, options, read_keys, search_dirs
from prunekit.config.search_path import conf_dir
from prunekit.runs import result

FOLDER = Path(__file__).parent / "reference"
GROUPS = {
    "method": "what prunes, and how it is trained",
    "task": "data, columns, metrics",
    "backbone": "the model that is fine-tuned",
    "trainer": "optimisation and hardware",
    "logger": "where metrics are shown",
    "search": "how a sweep chooses its jobs",
}
MADE = "<!-- written by `python docs/reference.py` -->"


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {"keys.md": _keys(), "commands.md": _commands(), "result.md": _result(), "python.md": _python()}


# -- keys --------------------------------------------------------------------------------------------------------


def _keys() -> str:
    parts = [
        f"# Configuration keys\n\n{MADE}\n",
        "Every key of `python train.py`, as `key=value`. The comment beside a key in `conf/` is what you read here,",
        "and what checks its value. A key marked *machine* cannot change a result: it is not part of a run's hash.\n",
        "## Of every run\n",
        _table(read_keys(conf_dir() / "config.yaml").values()),
    ]
    for group, what in GROUPS.items():
        parts.append(f"## `{group}`: {what}\n")
        parts.append(f"Options: {', '.join(f'`{name}`' for name in options()[group])}.\n")
        seen: dict[str, Key] = {}
        for option in options()[group]:
            own = keys_of(group, option, search_dirs())
            new = {path: key for path, key in own.items() if path not in seen}
            if group == "method" and own:
                parts += [f"### `method={option}`\n", _table(own.values())]
            seen |= new
        if group != "method" and seen:
            parts.append(_table(seen.values()))
    return "\n".join(parts).rstrip() + "\n"


def _table(keys: typing.Iterable[Key]) -> str:
    lines = ["| key | default | takes | |", "|---|---|---|---|"]
    for key in keys:
        if key.path.rpartition(".")[2] in ("_target_", "name"):
            continue
        takes = f"{key.domain}{' or null' * key.nullable}{', *machine*' * key.machine}"
        default = f"`{key.default}`" if key.domain != "block" else ""
        lines.append(f"| `{key.path}` | {_cell(default)} | {_cell(takes)} | {_cell(key.prose)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return a text as a cell of a table, in which < and | are themselves."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


# -- commands ----------------------------------------------------------------------------------------------------


def _commands() -> str:
    parts = [f"# Commands\n\n{MADE}\n", f"Exit codes: {CODES}; 1 a crash, with its traceback.\n"]
    parts += ["`prunekit VERB --help` prints the same.\n", "## `prunekit train`\n"]
    parts.append(f"{_sentence(TRAIN)} `python train.py` is the same. Its keys: [Configuration keys](keys.md).\n")
    for verb in VERBS:
        if verb == "train":
            continue
        file = Path(prunekit.__file__).parent / "cli" / f"{verb}.yaml"
        head = [line[1:] for line in file.read_text(encoding="utf-8").split("\n") if line.startswith("#")][1:]
        parts += [f"## `prunekit {verb}`\n", f"{_sentence(summary(verb))}\n"]
        parts += (
            ["```text", *(line[3:] if line.startswith("   ") else line.strip() for line in head), "```\n"]
            if head
            else []
        )
        parts.append(_table(read_keys(file).values()))
    return "\n".join(parts).rstrip() + "\n"


def _sentence(said: str) -> str:
    return said[0].upper() + said[1:]


# -- result.json -------------------------------------------------------------------------------------------------


def _result() -> str:
    parts = [
        f"# result.json\n\n{MADE}\n",
        f"What a run leaves beside its model; schema {result.SCHEMA}. Keys with `null` may be absent.\n",
    ]
    todo, done = [result.RunResult, result.WeightRunResult], []
    while todo:
        kind = todo.pop(0)
        if kind in done:
            continue
        done.append(kind)
        parts += [f"## {kind.__name__}\n", f"{inspect.getdoc(kind)}\n", "| key | type | |", "|---|---|---|"]
        said, hints = _comments(kind), typing.get_type_hints(kind)
        for one in dataclasses.fields(kind):
            if one.name == "other":
                continue
            named = [inner for inner in _classes(hints[one.name]) if dataclasses.is_dataclass(inner)]
            todo += named
            parts.append(f"| `{one.name}` | {_cell(_type(hints[one.name]))} | {_cell(said.get(one.name, ''))} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _comments(kind: type) -> dict[str, str]:
    """Return the comments behind the fields of a class and of those that it is made from."""
    found = {}
    for base in reversed(kind.__mro__[:-1]):
        if base.__module__.startswith("prunekit"):
            found |= dict(re.findall(r"^    (\w+): [^\n#]*#\s*([^\n]+)$", inspect.getsource(base), re.MULTILINE))
    return found


def _classes(hint: typing.Any) -> Iterator[type]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _classes(inner)


def _type(hint: typing.Any) -> str:
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        named = ["null" if inner is type(None) else _type(inner) for inner in arguments]
        return " or ".join(name for name in dict.fromkeys(named) if not (name == "integer" and "number" in named))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return f"object of {_type(arguments[1])}"
    if origin is not None:
        return f"list of {' or '.join(dict.fromkeys(_type(inner) for inner in arguments if inner is not ...))}"
    return {"int": "integer", "str": "text", "float": "number", "bool": "true or false", "Any": "any"}.get(
        getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint))
    )


# -- Python ------------------------------------------------------------------------------------------------------


def _python() -> str:
    parts = [f"# Python\n\n{MADE}\n", "What `import prunekit` has. Everything else may change between versions.\n"]
    for name in prunekit.__all__:
        found = getattr(prunekit, name)
        if callable(found):
            parts += [f"## `prunekit.{name}`\n", f"```python\n{name}{_signature(found)}\n```\n", f"{_prose(found)}\n"]
    return "\n".join(parts).rstrip() + "\n"


def _signature(found: typing.Any) -> str:
    text = str(inspect.signature(found)).replace("'", "")
    return (
        text if len(text) < 100 else text.replace("(", "(\n    ", 1).replace(", ", ",\n    ").replace(") ->", "\n) ->")
    )


def _prose(found: typing.Any) -> str:
    """Return a docstring in Markdown: its errors as a list."""
    text, _, errors = (inspect.getdoc(found) or "").partition("\nRaises:\n")
    lines = [
        f"- {line.strip()}" if re.match(r"    \w+: ", line) else f"  {line.strip()}" for line in errors.splitlines()
    ]
    return text.strip() + ("\n\nRaises:\n\n" + "\n".join(lines) if errors else "")


def main() -> int:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
