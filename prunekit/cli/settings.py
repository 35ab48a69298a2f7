"""The grammar of every command but train: key=value, and a YAML file whose comments explain and check each key.

A command is a verb of prunekit, whose file is beside this module, or a script, given as the path of the file beside it.
Two keys need not be named, in the commands that declare them: words without `=` are `paths`, and names that are no keys
go into the key that is a block. `prunekit table runs task=cola rows=method` has one path and one condition on runs.
"""

from __future__ import annotations

import difflib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from prunekit.config.errors import DONE, MISSED, ConfigError, shorten, shown
from prunekit.config.keys import Key, read_keys

HELP = ("-h", "--help", "help")
PATHS = "paths"


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether a command is asked to explain itself."""
    return any(argument in HELP for argument in arguments)


def print_help(command: str | Path) -> int:
    """Print the command's file: what it does, and every key with its default and what it takes. Return exit code 0."""
    print(_file(command).read_text(encoding="utf-8"), end="")
    return DONE


def summary(verb: str) -> str:
    """Return what a verb does in one line, which is the first of its file: `# prunekit VERB: what it does.`"""
    first, _, _ = _file(verb).read_text(encoding="utf-8").partition("\n")
    return first.removeprefix(f"# prunekit {verb}: ")


def parse_settings(command: str | Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of all keys of a command: its defaults, and what the arguments say instead.

    Raises:
        ConfigError: an argument that is no setting of this command, or a value that its comment does not allow.
    """
    keys = read_keys(_file(command))
    values = {name: yaml.safe_load(key.default) for name, key in keys.items()}
    block = _block(keys)
    paths: list[str] = []
    others: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if equals and name in keys and name != block:
            values[name] = _parse_value(keys[name], text, command)
        elif argument.startswith("-"):
            raise _no_flags(argument, arguments, keys, command)
        elif block is not None and equals and "/" not in name:
            others[name.removeprefix(f"{block}.")] = text
        elif PATHS in keys and (not equals or "/" in name):
            paths.append(argument)
        else:
            raise _unknown(argument, keys, command)
    if paths:
        values[PATHS] = _checked(keys[PATHS], paths, command)
    return values if block is None else values | {block: others}


def _block(keys: Mapping[str, Key]) -> str | None:
    """Return the key that takes the names that are none."""
    return next((name for name, key in keys.items() if key.domain == "block"), None)


def _parse_value(key: Key, text: str, command: str | Path) -> Any:
    """Return a value as its key's domain reads it; a list may be typed without its brackets."""
    domain = key.domain.removeprefix("list of ")
    is_list, is_text = domain != key.domain, domain in ("text", "path")
    try:
        if is_list and not text.startswith("[") and text != "null":
            parts = [part for part in (part.strip() for part in text.split(",")) if part]
            value = parts if is_text else yaml.safe_load(f"[{','.join(parts)}]")
        elif is_text and text not in ("null", ""):  # what looks like a number may be a name
            value = yaml.load(text, Loader=yaml.BaseLoader) if is_list else text
        else:
            value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # also of a number of thousands of digits
        value = text
    if domain == "path":
        value = _expand_home(value)
    return _checked(key, value, command)


def _checked(key: Key, value: Any, command: str | Path) -> Any:
    if complaint := key.complaint(value):
        raise ConfigError(
            f"{key.path}={shown(value)} {complaint}.\nAllowed: {key.allowed}.\n"
            f"{_typed(command)} --help explains every setting."
        )
    return value


def _expand_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_expand_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _unknown(argument: str, keys: Mapping[str, Key], command: str | Path) -> ConfigError:
    near = difflib.get_close_matches(argument.partition("=")[0].lstrip("-"), keys, n=1)
    advice = f"Did you mean {near[0]}=...?" if near else f"{_typed(command)} --help explains them."
    return ConfigError(
        f"Unknown setting of {_file(command).stem}: {shorten(argument)}.\nAllowed: {', '.join(keys)}.\n{advice}"
    )


def _no_flags(flag: str, arguments: Sequence[str], keys: Mapping[str, Key], command: str | Path) -> ConfigError:
    """Return what to type instead of `--key value`, for all arguments at once."""
    if not flag.startswith("--") or flag.removeprefix("--").partition("=")[0] not in keys:
        return _unknown(flag, keys, command)
    words, waiting = [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or equals or name not in keys:
            words.append(word.removeprefix("--"))
        elif keys[name].domain == "bool":
            words.append(f"{name}=true")
        elif name != _block(keys):  # whose names are typed by themselves
            words.append(f"{name}={waiting.pop(0) if waiting else '...'}")
    return ConfigError(
        f"{flag}: settings have no dashes.\nAllowed: key=value.\nType: {_typed(command)} {shlex.join(words)}"
    )


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script's `main` on what was typed and exit with its code; a ConfigError is printed without a traceback."""
    try:
        raise SystemExit(main(sys.argv[1:]))
    except ConfigError as error:
        raise SystemExit(error.tell()) from None


def train_apart(words: Sequence[str]) -> None:
    """Run `prunekit train` in a process of its own, as a script's step; a missed budget is a result, too.

    Raises:
        SystemExit: it failed, with its exit code.
    """
    code = subprocess.run([sys.executable, "-m", "prunekit", "train", *words], check=False).returncode
    if code not in (DONE, MISSED):
        raise SystemExit(code)


def _file(command: str | Path) -> Path:
    return command if isinstance(command, Path) else Path(__file__).with_name(f"{command}.yaml")


def _typed(command: str | Path) -> str:
    """Return the command as one types it."""
    return f"python {command.parent.name}/{command.stem}.py" if isinstance(command, Path) else f"prunekit {command}"
