"""Where configurations are: conf/ and sweeps/ of this package, and conf/ of installed plug-ins."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from prunekit.config.errors import ConfigError

PLUGINS = "prunekit.plugins"  # the entry-point group: a package with a folder conf/, or an attribute conf_dir


def conf_dir() -> Path:
    """Return the folder of config.yaml and its groups: inside an installed wheel, otherwise beside the package."""
    return _shipped("conf")


def sweeps_dir() -> Path:
    """Return the folder of the published grids, which is the group `sweeps`."""
    return _shipped("sweeps")


def _shipped(name: str) -> Path:
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def plugin_dirs() -> list[Path]:
    """Return the conf folders of installed plug-ins, sorted by the name of the plug-in.

    Raises:
        ConfigError: a plug-in has no such folder.
    """
    return [_plugin_dir(point) for point in _plugin_points(tuple(sys.path))]


@cache  # looking through all installed packages takes longer than the rest of a composition's file access
def _plugin_points(path: tuple[str, ...]) -> list[EntryPoint]:
    """Return the entry points of plug-ins on this search path, sorted by name."""
    return sorted(entry_points(group=PLUGINS), key=lambda point: point.name)


def plugin_targets() -> list[str]:
    """Return what installed plug-ins declare as code: the modules of their entry points, and the methods of their conf.

    Raises:
        ConfigError: a plug-in has no configuration.
    """
    modules = [point.module for point in entry_points(group=PLUGINS)]
    files = [file for folder in plugin_dirs() for file in sorted((folder / "method").glob("*.yaml"))]
    contents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return modules + [str(content["_target_"]) for content in contents if content and "_target_" in content]


def _plugin_dir(point: EntryPoint) -> Path:
    # beside the module first, which needs no import: a method imports torch
    try:
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        spec = None
    origin = spec.origin if spec is not None else None
    places = [Path(origin).parent / "conf"] if origin else []
    if not any(place.is_dir() for place in places) and spec is not None:
        named = getattr(point.load(), "conf_dir", None)
        places = [Path(named() if callable(named) else named)] if named else places
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"the plug-in {point.name!r} ({point.value}) has no configuration.\n"
        f"Allowed: a package with a folder conf/, or with a conf_dir, under the entry-point group {PLUGINS}.\n"
        "Repair or uninstall the package that declares it."
    )


class PluginConfigs(SearchPathPlugin):
    """Hydra's hook that adds the conf folders of plug-ins to its search path, after prunekit's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in plugin_dirs():
            search_path.append("prunekit plug-in", f"file://{folder}")


@contextmanager
def registered_anew() -> Iterator[None]:
    """Give back, after the block, what was registered with Hydra before it, and which of its jobs is running."""
    plugins = Plugins.instance().plugin_type_to_subclass_list
    kinds = {kind: list(classes) for kind, classes in plugins.items()}
    store, running = ConfigStore.instance(), GlobalHydra.instance().hydra
    repo = {name: dict(node) if isinstance(node, dict) else node for name, node in store.repo.items()}
    try:
        yield
    finally:
        plugins.clear()
        plugins.update(kinds)
        store.repo = repo
        GlobalHydra.instance().hydra = running


def prepare(overrides: Sequence[str] = ()) -> None:
    """Register plug-ins and the group `sweeps`, which is outside conf/, with Hydra; safe to call again.

    Only the files of sweeps that `overrides` name are read: Hydra copies all its configurations more than once.
    """
    Plugins.instance().register(PluginConfigs)
    store = ConfigStore.instance()
    known = store.repo.get("sweeps", {})
    given = [value for key, _, value in (text.partition("=") for text in overrides) if key.lstrip("+") == "sweeps"]
    named = {name.strip() for value in given for name in value.split(",")}
    for file in sorted(sweeps_dir().glob("*.yaml")):
        if file.stem in named or f"{file.stem}.yaml" not in known:
            node: Any = OmegaConf.load(file) if file.stem in named else {}
            store.store(group="sweeps", name=file.stem, node=node, package="_global_", provider=str(file))
