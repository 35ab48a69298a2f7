"""A pruner as JSON and tensors: written beside a model, and rebuilt from a folder that nobody has checked."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import load_file, save_file
from torch import nn

from prunekit.config.errors import ConfigError, first_line
from prunekit.files import atomic_write, sha256
from prunekit.models.parts import find_class
from prunekit.models.reading import check_finite
from prunekit.tokens.policies import KeepPolicy
from prunekit.tokens.pruner import SoftForm, TokenPruner
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import Execution

FORMAT = 1


def write_pruner(pruner: TokenPruner, tensors: Path) -> dict[str, Any]:
    """Write the pruner's tensors, and return the settings from which `read_pruner` recreates it."""
    stored = {name: t.detach().contiguous() for name, t in pruner.state_dict().items()}
    atomic_write(tensors, lambda beside: save_file(stored, beside))
    about = {
        "layers": sorted(pruner.layers),
        "soft_form": pruner.soft_form,
        "protect_first": pruner.protect_first,
        "protect_last": pruner.protect_last,
        "hide_gone": pruner.hide_gone,
        "finishes_layer": pruner.finishes_layer,
        "scorer": _described(pruner.scorer),
        "policy": _described(pruner.policy),
    }
    return {"tensors_sha256": sha256(tensors), "pruner": about}


def _described(part: Scorer | KeepPolicy) -> dict[str, Any]:
    """Return the class and arguments of a scorer or a policy, from which `_rebuilt` recreates it."""
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", "arguments": part.arguments()}


# -- reading -----------------------------------------------------------------------------------------


def read_settings(path: Path, required: Mapping[str, Check]) -> dict[str, Any]:
    """Return the settings in a file, whose keys of KEYS, and those of `required`, have the right types.

    Raises:
        ConfigError: the file cannot be read, is of another format, or a key is missing or wrong.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable as JSON ({first_line(error)}); save the model again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__} instead of an object; save the model again.")
    written = found.get("format")
    if not isinstance(written, int) or not _is_count(written) or written < 1:
        raise _wrong(path, "format", written)
    if written > FORMAT:
        number = reprlib.repr(written)
        raise ConfigError(f"{path} has format {number}, this prunekit reads up to {FORMAT}; upgrade prunekit.")
    _check_keys(path, found, required, "")
    if found["pruner"] is not None:
        _check_keys(path, found, {"tensors_sha256": _is_text}, "")
        _check_keys(path, found["pruner"], PRUNER, "pruner.")
        for part in ("scorer", "policy"):
            _check_keys(path, found["pruner"][part], PART, f"pruner.{part}.")
    return found


def read_pruner(settings: Mapping[str, Any], path: Path, tensors: Path) -> TokenPruner:
    """Recreate the pruner that `settings`, read from `path`, and a file of tensors describe.

    Raises:
        ConfigError: a class that is not allowed, or arguments or tensors that do not fit it.
    """
    check_digest(tensors, settings["tensors_sha256"], path.name)
    about = dict(settings["pruner"])
    parts = [_rebuilt(about.pop(name), base, path) for name, base in (("scorer", Scorer), ("policy", KeepPolicy))]
    try:
        pruner = TokenPruner(*parts, **about)
        found = load_file(tensors)
        own = pruner.state_dict()
        if wrong := [name for name in found if name in own and found[name].dtype != own[name].dtype]:
            raise TypeError(f"{wrong[0]} is of the type {found[wrong[0]].dtype} instead of {own[wrong[0]].dtype}")
        pruner.load_state_dict(found)
    except Exception as error:  # whatever a hostile file brings about
        raise ConfigError(f"{tensors} does not fit {path.name} ({first_line(error)}); save the model again.") from error
    check_finite(str(tensors), found.items())
    return pruner


def check_digest(path: Path, written: str, settings: str) -> None:
    """Check that a file is the one that the settings were written for.

    Raises:
        ConfigError: it is missing, or another.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, but {settings} was written for it; copy the whole folder.")
    found = sha256(path)
    if found != written:
        raise ConfigError(
            f"{path} has sha256 {found[:12]}, but {settings} was written for {written[:12]}; "
            f"the pruning does not belong to these weights, save the model again."
        )


def _rebuilt(description: Mapping[str, Any], base: type[nn.Module], path: Path) -> Any:
    kind = find_class(description["class"], base, str(path))
    try:
        return kind(**description["arguments"])
    except Exception as error:  # whatever a hostile file brings about
        raise ConfigError(
            f"{path} has arguments that {kind.__name__} does not take ({first_line(error)}); save the model again."
        ) from error


# -- what each key takes -----------------------------------------------------------------------------

Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_finite(value: Any) -> bool:
    """Return whether a JSON value holds no NaN and no infinity."""
    waiting = [value]  # no recursion: a hostile file may be nested a thousand deep
    while waiting:
        part = waiting.pop()
        if isinstance(part, float) and not math.isfinite(part):
            return False
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return True


KEYS: dict[str, Check] = {
    "weights_sha256": _is_text,
    "pruner": lambda value: value is None or isinstance(value, dict),
    "execution": lambda value: value in get_args(Execution),
}
PRUNER: dict[str, Check] = {
    "layers": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "scorer": _is_object,
    "policy": _is_object,
}
PART: dict[str, Check] = {"class": _is_text, "arguments": lambda value: _is_object(value) and _is_finite(value)}
# taken where they are there
OPTIONAL: dict[str, Check] = {
    "prefix": _is_count,
    "separator": _is_count,
    "max_length": _is_count,
    "longest": lambda value: _is_count(value) and value > 0,
    "pruner.soft_form": lambda value: value in get_args(SoftForm),
    "pruner.protect_first": _is_bool,
    "pruner.protect_last": _is_bool,
    "pruner.hide_gone": _is_bool,
    "pruner.finishes_layer": _is_bool,
}
TASK_KEYS: dict[str, Check] = {"hidden_size": _is_count, "pruner": _is_object}


def _check_keys(path: Path, block: Mapping[str, Any], required: Mapping[str, Check], prefix: str) -> None:
    """Check that a block has these keys, and that they and the optional ones are right."""
    for name, check in required.items():
        if name not in block or not check(block[name]):
            raise _wrong(path, f"{prefix}{name}", block.get(name))
    for name, value in block.items():
        check_optional = OPTIONAL.get(f"{prefix}{name}")
        if check_optional is not None and not check_optional(value):
            raise _wrong(path, f"{prefix}{name}", value)


def _wrong(path: Path, name: str, value: Any) -> ConfigError:
    given = reprlib.repr(value)[:80]
    return ConfigError(f"{path} has {name}={given}, which prunekit never writes; save the model again.")
