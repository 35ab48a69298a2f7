"""The keys of conf/: their defaults, and the comments that say what each takes."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from prunekit.config.domains import TEXT_OR_LIST, check_of
from prunekit.config.errors import ConfigError, shorten
from prunekit.config.search_path import conf_dir, plugin_dirs, sweeps_dir

# libyaml reads ten times as fast, and every start reads the comments of all files
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
COMMENT = re.compile(
    r"(?P<domain>.+?)(?P<null> or null)?(?P<flags>(?:, (?:machine|knob))*)(?:, before (?P<before>[^,;]+))?"
    r"(?:, was (?P<was>[^,;]+))?(?:; (?P<prose>.*))?"
)


@dataclass(frozen=True)
class Key:
    """A declared key: its path, its default as written, and what its comment says."""

    path: str
    default: str
    domain: str
    nullable: bool
    machine: bool
    knob: bool
    prose: str
    file: Path
    before: str | None = None  # what runs from before the key did, as written
    was: str | None = None  # the default of runs from before it changed, as written

    @property
    def allowed(self) -> str:
        """What the key takes, in the words of its comment."""
        return f"{self.domain}{' or null' * self.nullable}{'; ' * bool(self.prose)}{self.prose}"

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with a value; None when nothing is."""
        return None if value is None and self.nullable else check_of(self.domain)(value)


# -- the keys of configurations ----------------------------------------------------------------------


def declared(choices: Mapping[str, Any], folders: Sequence[Path] | None = None) -> dict[str, Key]:
    """Return every key that the chosen files declare, by dotted path; a group may have several options, in a list."""
    places = search_dirs() if folders is None else folders
    keys: dict[str, Key] = {}
    for folder in places:
        if (folder / "config.yaml").is_file():
            keys = read_keys(folder / "config.yaml") | keys
    for group, chosen in choices.items():
        for option in [chosen] if isinstance(chosen, str) else chosen or []:
            inherited = keys_of(group, option, places)
            if any(path.startswith(f"{group}.") for path in inherited):
                file = next(iter(inherited.values())).file
                keys[group] = Key(group, option, "block", False, False, False, "", file)
            keys |= inherited
    return keys


def search_dirs() -> list[Path]:
    """Return the folders of configurations; the first that has a file is used."""
    return [conf_dir(), *plugin_dirs()]


def options() -> dict[str, list[str]]:
    """Return the options of every group by its name: prunekit's, those of plug-ins, and the published grids.

    Read from the folders, because Hydra copies all its configurations for each group that it is asked for.
    """
    named: dict[str, set[str]] = {"sweeps": {file.stem for file in sweeps_dir().glob("*.yaml")}}
    for place in search_dirs():
        for file in place.glob("*/*.yaml"):
            named.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(named[group]) for group in sorted(named)}


def files_of(group: str, chosen: Any, places: Sequence[Path]) -> list[Path]:
    """Return the files of a group's chosen option, or options; those that do not exist are left out."""
    options = [chosen] if isinstance(chosen, str) else chosen or []
    return [file for option in options if (file := _file_of(group, option, places)) is not None]


def _file_of(group: str, option: str, places: Sequence[Path]) -> Path | None:
    files = [place / group / f"{option}.yaml" for place in places]
    return next((file for file in files if file.is_file()), None)


def keys_of(group: str, option: str, places: Sequence[Path]) -> dict[str, Key]:
    """Return the keys of an option and of the options of its group that it builds on."""
    file = _file_of(group, option, places)
    if file is None:
        return {}
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER) or {}
    keys: dict[str, Key] = {}
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            keys |= keys_of(group, parent, places)
    return keys | read_keys(file, prefix=f"{group.replace('/', '.')}.")


def machine_keys() -> set[str]:
    """Return the dotted paths of the keys and blocks that cannot change a result."""
    return {key.path for key in all_keys().values() if key.machine}


def without_machine_keys(cfg: Mapping[str, Any], machine: Set[str]) -> dict[str, Any]:
    """Return the values of a configuration by dotted path, without machine keys and all that their blocks hold.

    A stored configuration may hold keys there that no file declares any more.
    """
    return {path: value for path, value in flatten(cfg).items() if machine.isdisjoint(_with_parents(path))}


def _with_parents(path: str) -> Iterator[str]:
    """Yield a dotted path and the blocks that it is in."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def values_before() -> set[tuple[str, str]]:
    """Return the keys that are younger than their files with what runs did without them, as dotted path and JSON."""
    keys = _declared_below(tuple(search_dirs()))
    return {(key.path, as_json(key.before)) for key in keys if key.before is not None}


def former_defaults() -> dict[tuple[str, str], Any]:
    """Return what a default stands in the place of, by dotted path and the default as JSON."""
    keys = _declared_below(tuple(search_dirs()))
    return {(key.path, as_json(key.default)): json.loads(as_json(key.was)) for key in keys if key.was is not None}


@cache
def as_json(written: str) -> str:
    """Return a value that is written as in a file as JSON."""
    return json.dumps(yaml.load(written, Loader=LOADER))


def path_keys() -> set[str]:
    """Return the dotted paths of the keys that name a file or folder."""
    return {key.path for key in all_keys().values() if key.domain == "path"}


def all_keys() -> dict[str, Key]:
    """Return the keys of every file of every group, chosen or not, by dotted path."""
    return _keys_below(tuple(search_dirs()))


@cache
def _keys_below(folders: tuple[Path, ...]) -> dict[str, Key]:
    # of keys that differ between files, one that takes lists too: what is typed is read before the file is known
    keys = sorted(_declared_below(folders), key=lambda key: key.domain == TEXT_OR_LIST)
    return {key.path: key for key in keys}


@cache
def _declared_below(folders: tuple[Path, ...]) -> list[Key]:
    """Return the keys of all files; those of several files with the same path are there several times."""
    keys: list[Key] = []
    for folder in reversed(folders):
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).parts
            keys += read_keys(file, prefix="".join(f"{part}." for part in group)).values()
    return keys


def walk(cfg: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a configuration, blocks included, as its dotted path and its value."""
    for name, value in cfg.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{name}.")


def flatten(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration by dotted path; blocks themselves are left out."""
    return {path: value for path, value in walk(cfg) if not isinstance(value, dict)}


def unknown_key(path: str, given: str, keys: Mapping[str, Key]) -> ConfigError:
    """Return the error for a key that no file declares; `given` is what was typed."""
    parent, _, name = path.rpartition(".")
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    near = elsewhere or difflib.get_close_matches(path, keys, n=1, cutoff=0.7)
    siblings = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == parent]
    allowed = (
        f"{', '.join(siblings)}{f' in {shorten(parent)}' * bool(parent)}"
        if siblings
        else f"{shorten(parent)} is not a block"
    )
    advice = f"Did you mean {' or '.join(near[:3])}?" if near else "python train.py --cfg job prints every key."
    return ConfigError(f"{shorten(given)}: there is no key {shorten(path)}.\nAllowed: {allowed}.\n{advice}")


# -- the keys of one file ----------------------------------------------------------------------------


def read_keys(file: Path, prefix: str = "") -> dict[str, Key]:
    """Return the keys that a file declares, by dotted path; a key whose comment names no domain declares nothing.

    A comment may continue in the lines below its key, indented further than the key. A file in the package `_global_`
    (an experiment) only gives values to keys that others declare.
    """
    status = file.stat()
    return dict(_read_keys(file, prefix, status.st_mtime_ns, status.st_size))


@cache
def _read_keys(file: Path, prefix: str, changed: int, size: int) -> dict[str, Key]:
    text = file.read_text(encoding="utf-8")
    if re.search(r"^#\s*@package _global_", text, re.MULTILINE):
        return {}
    lines = text.splitlines()
    keys = {}
    for path, name, value in _entries(yaml.compose(text, Loader=LOADER), prefix):
        default = text[value.start_mark.index : value.end_mark.index]
        key = _key_of(path, _comment(lines, name, value), default, file)
        if key is not None:
            keys[path] = key
    return keys


def _entries(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value not in ("defaults", "hydra"):
                yield prefix + name.value, name, value
                yield from _entries(value, f"{prefix}{name.value}.")


def _key_of(path: str, comment: str, default: str, file: Path) -> Key | None:
    match = COMMENT.fullmatch(comment)
    if match is None:
        return None
    try:
        check_of(match["domain"])
    except ValueError:
        return None
    return Key(
        path=path,
        default=default or "null",
        domain=match["domain"],
        nullable=match["null"] is not None,
        machine="machine" in match["flags"],
        knob="knob" in match["flags"],
        prose=match["prose"] or "",
        file=file,
        before=match["before"],
        was=match["was"],
    )


def _comment(lines: list[str], name: yaml.Node, value: yaml.Node) -> str:
    row, end = name.start_mark.line, name.end_mark.column
    if value.end_mark.line == row:
        end = max(end, value.end_mark.column)  # a "#" inside the value is not a comment
    match = re.search(r"(?:^|\s)#\s*(.*)$", lines[row][end:])
    if match is None:
        return ""
    words = [match[1]]
    for line in lines[row + 1 :]:
        stripped = line.lstrip()
        if not stripped.startswith("#") or len(line) - len(stripped) <= name.start_mark.column:
            break
        words.append(stripped.lstrip("# "))
    return " ".join(words).strip()
