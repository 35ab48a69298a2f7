"""Settings of commands that are not runs: a YAML file per command, whose comments check what is given, as in conf/.

A command is a verb of prunekit, whose file is here, or a script, named by the path of the file beside it.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from prunekit.config.errors import ConfigError, shown
from prunekit.config.keys import read_keys

HELP = ("-h", "--help", "help")


def explanation(command: str | Path) -> str:
    """The command's file: what it does, and every setting with its default and what it takes."""
    return _file(command).read_text(encoding="utf-8")


def settings(command: str | Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Defaults of a command, with what `key=value` arguments say instead.

    Raises:
        ConfigError: an argument that is no setting of this command, or a value that its comment does not allow.
    """
    keys, typed = read_keys(_file(command)), _typed(command)
    found = {name: yaml.safe_load(key.default) for name, key in keys.items()}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or name not in keys:
            near = difflib.get_close_matches(name, keys, n=1)
            advice = f"Did you mean {near[0]}=...?" if near else f"{typed} --help explains them."
            called = _file(command).stem
            raise ConfigError(f"{argument} is no setting of {called}.\nAllowed: {', '.join(keys)}.\n{advice}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if keys[name].domain in ("text", "path") and text not in ("null", ""):
            value = text  # a name may look like a number
        if complaint := keys[name].complaint(value):
            raise ConfigError(
                f"{name}={shown(value)} {complaint}.\nAllowed: {keys[name].allowed}.\n"
                f"{typed} --help explains every setting."
            )
        found[name] = value
    return found


def run_script(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a script's `main` on what was typed and exits with its code; a ConfigError is told, without a traceback."""
    try:
        raise SystemExit(main(sys.argv[1:]))
    except ConfigError as error:
        raise SystemExit(error.tell()) from None


def _file(command: str | Path) -> Path:
    return command if isinstance(command, Path) else Path(__file__).with_name(f"{command}.yaml")


def _typed(command: str | Path) -> str:
    """The command as one types it."""
    return f"python {command.parent.name}/{command.stem}.py" if isinstance(command, Path) else f"prunekit {command}"
