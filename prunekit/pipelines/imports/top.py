"""Read a checkpoint of ToP: microsoft/Moonlit, folder ToP, which saves weights, binary gates and its gates' module.

The prune locations are only in `l0_module.pt`, a whole pickled module: two of its attributes are read by an unpickler
that calls nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit.config.errors import ConfigError, listed, shown
from prunekit.pipelines.imports.published import (
    WEIGHTS,
    Given,
    Published,
    build_model,
    longest,
    read_settings,
    read_tensors,
    renamed,
)

GATES, MODULE = "zs.pt", "l0_module.pt"
PADDED_TO = 256  # by the repository's scripts
OPEN = 20.0  # log odds of a gate that is 1: far enough from 0 that the number of open bins is exact
MOST_BYTES = 2**24  # of the pickle in l0_module.pt, whose tensors are elsewhere
IGNORED = ("bert.embeddings.position_ids",)


def read(folder: Path, given: Given) -> Published:
    """Return what a folder of ToP holds.

    Raises:
        ConfigError: something in it is missing, unknown, or does not fit together.
    """
    content = read_settings(folder)
    if content.get("model_type") != "bert":
        raise ConfigError(
            f"{folder}/config.json has model_type={shown(content.get('model_type'))}.\nAllowed: bert.\n"
            "Give a folder that the ToP repository wrote, or type prunekit import ltp for one of LTP."
        )
    gates = read_tensors(folder / GATES, ("token_z", "pruner_z"))
    bins, switches = gates["token_z"], gates["pruner_z"]
    _check_gates(folder / GATES, bins, switches)
    weights = renamed(read_tensors(folder / WEIGHTS), lambda name: None if name in IGNORED else name)
    model = build_model(folder / WEIGHTS, "bert", content, weights, given.labels)
    layers = model.config.num_hidden_layers
    locations, origin = _locations(folder, given, len(switches), layers)
    if bad := [location for location in locations if not 1 <= location < layers]:
        raise ConfigError(
            f"{origin} prunes the input of layer {listed(bad)}.\nAllowed: 1..{layers - 1}, rising.\n"
            "Give prune_location=[...]"
        )
    is_reference = given.profile == "reference"
    settings = [
        "method=top",
        "method.init=open",
        f"method.compat={'true' if is_reference else 'false'}",
        f"method.bins={bins.shape[1]}",
        f"method.prune_location=[{','.join(map(str, locations))}]",
        "method.init_slope=0",
    ]
    off = sum(1 for switch in switches if switch == 0)
    remarks = [
        f"gates      {len(locations)} locations x {bins.shape[1]} bins, {off} locations off; the inputs of layers "
        f"{', '.join(map(str, locations))} are pruned ({origin})"
    ]
    length = longest(model.config, given.max_length, PADDED_TO)
    if is_reference:
        remarks.append(f"padding    decisions depend on it: texts are padded to {length} tokens, and none is removed")
    return Published(model, settings, {"token_loga": _odds(bins), "pruner_loga": _odds(switches)}, length, remarks)


def _odds(gates: Tensor) -> Tensor:
    """Return log odds whose deterministic gates are these."""
    return (2 * gates.float() - 1) * OPEN


def _check_gates(path: Path, bins: Tensor, switches: Tensor) -> None:
    fits = bins.dim() == 2 and bins.numel() > 0 and switches.shape == bins.shape[:1]
    if fits and all(((gate == 0) | (gate == 1)).all() for gate in (bins, switches)):
        return
    found = f"token_z {list(bins.shape)} and pruner_z {list(switches.shape)}" if not fits else "gates between 0 and 1"
    raise ConfigError(
        f"{path} has {found}.\nAllowed: 0 and 1; token_z [locations, bins] and pruner_z [locations].\n"
        "Give the zs.pt of a finished run."
    )


def _locations(folder: Path, given: Given, count: int, layers: int) -> tuple[list[int], str]:
    """Return the layers whose input is pruned, and where that is from."""
    if given.prune_location is not None:
        found, origin = list(given.prune_location), "prune_location"
    elif (folder / MODULE).is_file():
        found, origin = pickled_locations(folder / MODULE), MODULE
    else:
        found, origin = list(range(layers - count, layers)), f"there is no {MODULE}: assumed to be the last {count}"
    if len(found) != count or found != sorted(set(found)):
        raise ConfigError(
            f"{origin} names the layers [{listed(found)}], and {GATES} has gates of {count}.\n"
            f"Allowed: {count} layers, rising.\nGive prune_location=[...]"
        )
    return found, origin


class _Inert:
    """A stand-in for every class and function that a pickle names: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take a value."""

    def extend(self, values: Any) -> None:
        """Take values."""

    def add(self, value: Any) -> None:
        """Take a value."""


class _InertUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing and calls nothing: what a pickle names is `_Inert`."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the stand-in."""
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        """Return the stand-in for a tensor's storage."""
        return _Inert()


def pickled_locations(path: Path) -> list[int]:
    """Return `token_prune_loc` of a pickled module; no code of the file runs.

    Raises:
        ConfigError: the file cannot be read so, or has no such list of whole numbers.
    """
    found: Any = None
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size <= MOST_BYTES:
                content = archive.read(name)
                found = _InertUnpickler(io.BytesIO(content)).load()
    except Exception:  # whatever a broken or hostile file brings about: all that matters is that there is no list
        found = None
    state = found.state if isinstance(found, _Inert) and isinstance(found.state, dict) else {}
    locations = state.get("token_prune_loc")
    if not isinstance(locations, list | tuple) or not all(type(location) is int for location in locations):
        raise ConfigError(
            f"{path} has no token_prune_loc that can be read without running code.\n"
            "Allowed: a module that torch.save wrote, with the pruned layers as a list of numbers.\n"
            "Name them: prune_location=[2,3,4,5,6,7,8,9,10,11]"
        )
    return list(locations)
