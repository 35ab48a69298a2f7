"""Sources of a backbone: a folder, an installed package, the hub, or a tiny model built on this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError, quoted, shorten
from prunekit.config.places import cache_folder
from prunekit.data.hub import DATA_VARIABLE, cached_snapshot, embedded_option, find_in_data_folder, why_unreachable
from prunekit.data.packages import package_folder
from prunekit.models.cached import is_whole
from prunekit.models.sizes import aliases

# keys of a backbone that say where its model is; a given model needs none
SOURCES = ("path", "family", "seed", "package", "package_folder", "gguf", "folder", "hub")
LONGEST_ID = 96  # characters that the hub takes
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model"]  # what is downloaded: no code, nothing pickled
TINY_VERSION = 2  # of the folders that models/tiny.py writes: raise it when their content changes


def find_backbone(backbone: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Path | str:
    """Return the folder of a backbone in Hugging Face's layout, or its hub id if only the hub has it and responds.

    Raises:
        ConfigError: not found; raised within 5 seconds, with what was tried and two options.
    """
    env = os.environ if env is None else env
    name, hub, package = backbone["name"], backbone.get("hub"), backbone.get("package")
    if path := backbone.get("path"):
        if not (Path(path) / "config.json").is_file():
            raise ConfigError(
                f"backbone.path={path} is no model: it has no config.json. "
                f"Give a folder written by save_pretrained, or backbone.path=null."
            )
        return Path(path)
    if family := backbone.get("family"):
        return _tiny(family, int(backbone.get("seed") or 0), env)
    if package and (found := package_folder(package, backbone["package_folder"])):
        return _from_gguf(found / backbone["gguf"], env) if backbone.get("gguf") else found
    tried = [f"{package} (not installed)"] if package else []
    names = [place for place in (backbone.get("folder"), name) if place]
    folder, why = find_in_data_folder([f"models/{n}" for n in names] + names, env, holding="config.json")
    if folder:
        return folder
    tried.append(why)
    if hub:
        if cached := cached_snapshot(hub, "model", env):
            return cached
        if not (why := why_unreachable(hub, "models", env)):
            return str(hub)
        tried.append(why)
    raise ConfigError(
        f"backbone={name}: no model. Tried {'; '.join(tried)}.\n"
        f"Option 1: {DATA_VARIABLE}=<folder with models/{names[0]}/config.json>, or backbone.path=<that folder>.\n"
        + embedded_option(package, "task=bbc_news backbone=minilm")
    )


def find_source(cfg: Mapping[str, Any]) -> Path | str:
    """Return where the model is that the run of a configuration starts from: what `model` names, or the backbone.

    Raises:
        ConfigError: as of `find_model` and `find_backbone`.
    """
    return find_model(cfg["model"]) if cfg.get("model") else find_backbone(cfg["backbone"])


def find_model(given: str, env: Mapping[str, str] | None = None) -> Path:
    """Return the folder of `model=...`: a folder, the model/ of a run's folder, or a model of the hub.

    Raises:
        ConfigError: there is none.
    """
    env = os.environ if env is None else env
    folder = Path(os.path.expanduser(given))  # pathlib's raises where ~ names nobody
    for place in (folder, folder / "model"):
        if os.path.isfile(place / "config.json"):  # false, too, where a name is too long to be one
            return place
    is_folder = os.path.isdir(folder)
    why = (
        f"{folder.resolve()} has no config.json"
        if is_folder
        else f"there is no folder {shorten(str(folder.absolute()))}"
    )
    if not is_folder and is_hub_id(given):
        if cached := cached_snapshot(given, "model", env):
            return cached
        unreachable = why_unreachable(given, "models", env)
        if not unreachable:
            from huggingface_hub import snapshot_download  # slow, and only the hub needs it

            return Path(snapshot_download(given, allow_patterns=HUB_FILES))
        why += f"; {unreachable}"
    raise ConfigError(
        f"model={shorten(given)} is no model: {why}.\n"
        "Allowed: a folder that model.save_pretrained and tokenizer.save_pretrained wrote, a run, or a hub id.\n"
        "Give such a folder, as model=./my_model, or an id, as model=org/name."
    )


def is_hub_id(given: str) -> bool:
    """Return whether a model is named as on the hub: name, or owner/name."""
    is_named_so = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", given) is not None and len(given) <= LONGEST_ID
    return is_named_so and not Path(given).exists()


def name_of_model(given: str, folder: Path) -> str:
    """Return what runs of `model=...` are called after: the folder, or the model on the hub."""
    if is_hub_id(given):
        return given.rpartition("/")[2]
    place = folder.resolve()
    is_part = place.name == "model" or place.name.startswith("checkpoint-")
    return f"{place.parent.name}-{place.name}" if is_part else place.name


def backbone_shape(source: Path | str) -> dict[str, Any]:
    """Return the content of config.json, with the sizes of `SHAPE_KEYS` under our names whatever the family's are."""
    path = Path(source) / "config.json"
    if not path.is_file():
        from huggingface_hub import hf_hub_download  # slow, and only the hub needs it

        path = Path(hf_hub_download(str(source), "config.json"))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); write the model again with save_pretrained.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no JSON object; write the model again with save_pretrained.")
    for name, names in aliases().items():
        value = next((config[alias] for alias in names if alias in config), None)
        if value is None:
            raise ConfigError(
                f"{path} has no {name}: a model of type {config.get('model_type')!r} is no encoder known here; "
                f"choose another backbone."
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise ConfigError(
                f"{path} says that {name} is {quoted(value)}.\nAllowed: a whole number from 1.\n"
                "Write the model again with save_pretrained."
            )
        config[name] = value
    return dict(config)


def _from_gguf(file: Path, env: Mapping[str, str]) -> Path:
    """Return the folder of a GGUF file's model in float32, writing it if it does not exist."""
    from prunekit.models.gguf import dequantise  # imports torch

    return dequantise(file, cache_folder(env) / "backbones")


def _tiny(family: str, seed: int, env: Mapping[str, str]) -> Path:
    """Return the folder of a random model, writing it if it does not exist."""
    folder = cache_folder(env) / "backbones" / f"tiny-{family}-s{seed}-v{TINY_VERSION}"
    if not is_whole(folder):
        from prunekit.models.tiny import build_tiny_backbone  # imports torch

        build_tiny_backbone(folder, family, seed)
    return folder
