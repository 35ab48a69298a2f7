"""Which classes a saved model may name: scorers and policies of prunekit, of plug-ins, and of the program itself."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec

from prunekit.config.errors import ConfigError, first_line
from prunekit.config.search_path import plugin_targets
from prunekit.tokens import policies, prefix_gates, rank_gates, scorers, task_attention

OWN = (policies, prefix_gates, rank_gates, scorers, task_attention)  # imported for the classes that they define


def find_class(name: str, base: type, place: str) -> type:
    """Return the subclass of `base` with this dotted name, which was read at `place`.

    No name is imported: what prunekit and installed plug-ins define is looked up.

    Raises:
        ConfigError: there is none; the message says which plug-ins could not be imported.
    """
    found = _defined(base).get(name)
    problems: list[str] = []
    if found is None:
        problems = list(_import_plugins())
        found = _defined(base).get(name)
    if found is None:
        package = name.partition(".")[0]
        is_here = package.isidentifier() and find_spec(package) is not None  # looks for the package, imports nothing
        why = f"is no {base.__name__}; refused" if is_here else "is not installed here"
        raise ConfigError(
            f"{place} names {name[:80]}, which {why}.\n"
            f"Allowed: each {base.__name__} of prunekit and of installed plug-ins{'; '.join(['', *problems])}.\n"
            "Install the plug-in that the model was made with, or save the model again."
        )
    return found


def _defined(base: type) -> dict[str, type]:
    """Return every subclass that this process has defined, by its dotted name."""
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _subclasses(base)}


def _subclasses(base: type) -> Iterator[type]:
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        yield kind
        yield from _subclasses(kind)


def _import_plugins() -> Iterator[str]:
    """Import the plug-ins and their methods; yield a sentence for each that fails."""
    for target in plugin_targets():
        try:
            pkgutil.resolve_name(target)
        except Exception as error:  # a broken plug-in must not hide what is wrong with the model
            yield f"{target} cannot be imported ({first_line(error)})"
