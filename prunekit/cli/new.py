"""`prunekit new`: write the files of a method of your own from a template."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from prunekit.cli.settings import asks_for_help, parse_settings, print_help
from prunekit.config.errors import DONE, ConfigError, shown
from prunekit.config.keys import options
from prunekit.console import typed_path
from prunekit.files import atomic_write_text

NAME = re.compile(r"[a-z][a-z0-9_]*")
SUFFIX = ".txt"  # of the templates, so that no tool takes them for what they become


def main(arguments: Sequence[str]) -> int:
    """Write the files and print what to type next. Return 0.

    Raises:
        ConfigError: not `method NAME`, a name that cannot be one or is taken, or a folder that exists.
    """
    if asks_for_help(arguments):
        return print_help("new")
    given = parse_settings("new", arguments)
    name = _checked_name(given["paths"])
    folder = Path(given["out"] or f"prunekit-{name.replace('_', '-')}")
    if folder.exists():
        raise ConfigError(
            f"{folder} exists.\nAllowed: a folder that does not, so that nothing is overwritten.\n"
            f"Type prunekit new method {name} out={folder}_2"
        )
    for path, text in method_files(name).items():
        atomic_write_text(folder / path, text)
        print(folder / path)
    print(
        f"\nnext\n cd {typed_path(folder)}\n pip install -e . pytest\n python -m pytest test_{name}.py"
        f"\n prunekit train method={name} task=bbc_news"
    )
    return DONE


def method_files(name: str) -> dict[str, str]:
    """Return the files of a new method, by path in the folder of its package."""
    title = "".join(part.capitalize() for part in name.split("_"))
    found = {}
    templates = Path(__file__).with_name("templates")
    for file in sorted(templates.rglob(f"*{SUFFIX}")):
        path = str(file.relative_to(templates)).removesuffix(SUFFIX).replace("NAME", name)
        found[path] = file.read_text(encoding="utf-8").replace("NAME", name).replace("TITLE", title)
    return found


def _checked_name(words: Sequence[str]) -> str:
    if len(words) != 2 or words[0] != "method":
        raise ConfigError(
            f"prunekit new {shown(' '.join(words))} is not complete.\n"
            "Allowed: method, and the name that it is to have.\nType prunekit new method my_method"
        )
    name = words[1]
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", name.lower()).strip("_0123456789") or "my_method"
        raise ConfigError(
            f"{shown(name)} cannot be the name of a method: it becomes that of a Python module.\n"
            "Allowed: small letters, digits and _, a letter first.\n"
            f"Type prunekit new method {f'my_{better}' if keyword.iskeyword(better) else better}"
        )
    if name in options()["method"]:
        raise ConfigError(
            f"there is a method {name} already.\nAllowed: a name that is none of {', '.join(options()['method'])}.\n"
            f"Type prunekit new method my_{name}"
        )
    return name
