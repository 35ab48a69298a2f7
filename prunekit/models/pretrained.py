"""Pruned checkpoints, saved and loaded in Hugging Face's own folder layout.

A pruned checkpoint consists of stock weights, `prunekit.json` (how the encoder prunes) and `prunekit.safetensors`
(thresholds, gates). Nothing is pickled. Without prunekit, the folder loads as the dense model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunekit.config.errors import ConfigError, first_line
from prunekit.cost import Shape
from prunekit.files import allow_as_usual, atomic_write_text, sha256
from prunekit.models.embedder import SentenceEmbedder
from prunekit.models.forward import run_encoder
from prunekit.models.loading import load_stock
from prunekit.models.stored_pruner import (
    FORMAT,
    KEYS,
    TASK_KEYS,
    check_digest,
    read_pruner,
    read_settings,
    write_pruner,
)
from prunekit.tokens.encoder import TranslationEncoder, encoder_of, install
from prunekit.tokens.state import Execution

SETTINGS = "prunekit.json"
TENSORS = "prunekit.safetensors"
TRIAL_TOKENS = 4
TASK = "task_pruner"  # .json and .safetensors: a pruner without a model


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    *,
    max_length: int | None = None,
) -> None:
    """Save a model prepared by `install` as a Hugging Face folder.

    The model's own `save_pretrained` would leave out the pruning. `max_length` is the number of tokens at which texts
    were cut in training and test, and are cut by the engines that load it; a model that reads cut texts knows better.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = encoder_of(model)
    stock = {name: tensor for name, tensor in model.state_dict().items() if ".pruner." not in name}
    model.save_pretrained(folder, state_dict=stock)
    allow_as_usual(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    pruner = encoder.pruner
    settings: dict[str, Any] = {
        "format": FORMAT,
        "weights_sha256": sha256(folder / "model.safetensors"),
        "pruner": None,
        "execution": encoder.execution,
    }
    if isinstance(encoder, TranslationEncoder):
        settings["prefix"] = encoder.prefix
    if encoder.longest is not None:
        max_length = settings["longest"] = encoder.longest
    if max_length is not None:
        settings["max_length"] = max_length
        if isinstance(model, SentenceEmbedder):
            model.save_length(folder, max_length)
    if encoder.separator is not None:
        settings["separator"] = encoder.separator
    if pruner is not None:
        settings |= write_pruner(pruner, folder / TENSORS)
    # last, so that a folder with settings is a whole one
    atomic_write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def describe(folder: str | Path, about: Mapping[str, Any]) -> None:
    """Add information about a saved model, such as its run's result, to its prunekit.json."""
    path = Path(folder) / SETTINGS
    atomic_write_text(path, json.dumps(json.loads(path.read_text()) | {"about": dict(about)}, indent=2) + "\n")


def model_folder(folder: str | Path) -> Path:
    """Return the folder that holds a pruned model: the given one, or its model/ if it is a run's folder."""
    folder = Path(folder)
    if not (folder / SETTINGS).is_file() and (folder / "model" / SETTINGS).is_file():
        return folder / "model"
    return folder


def is_pruned(folder: str | Path) -> bool:
    """Return whether a folder holds a pruned model, or the settings of one that cannot be read."""
    path = Path(folder) / SETTINGS
    return path.is_file() and read_settings(path, KEYS)["pruner"] is not None


def load_packable(folder: str | Path) -> PreTrainedModel:
    """Load a pruned model, or a dense one with an encoder that prunes nothing, for engines that pack either.

    Raises:
        FileNotFoundError: the folder holds no model.
        ConfigError: as for `load_hf`; or the settings of a pruned model are gone.
    """
    folder = model_folder(folder)
    if (folder / SETTINGS).is_file():
        return load_hf(folder)
    if (folder / TENSORS).is_file():
        raise ConfigError(
            f"{folder} has {TENSORS} but no {SETTINGS}: it was a pruned model, and would run unpruned; "
            f"copy the whole folder."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is no model; give the folder of a model or a run.")
    return install(load_stock(folder), None, "pack").eval()


def load_hf(folder: str | Path, execution: Execution | None = None) -> PreTrainedModel:
    """Load a pruned model as a Hugging Face model in evaluation mode, as `prunekit.load` does.

    Raises:
        FileNotFoundError: the folder is not a prunekit checkpoint.
        ConfigError: a newer format, or weights that do not match the stored settings.
    """
    folder = model_folder(folder)
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SETTINGS}, so it is no pruned checkpoint; give the folder of a finished run, "
            f"or load a dense model with transformers, or with engine='packed'."
        )
    settings = read_settings(path, KEYS)
    check_digest(folder / "model.safetensors", settings["weights_sha256"], SETTINGS)
    pruner = None if settings["pruner"] is None else read_pruner(settings, path, folder / TENSORS)
    model = load_stock(folder)
    try:
        own = {name: settings.get(name) for name in ("longest", "separator")}
        install(model, pruner, execution or settings["execution"], prefix=settings.get("prefix", 0), **own).eval()
        _run_once(model)
    except Exception as error:  # whatever a hostile file brings about
        raise ConfigError(f"{path} does not fit its model ({first_line(error)}); save the model again.") from error
    return model


def _run_once(model: PreTrainedModel) -> None:
    """Run a model on a few tokens: each layer's decision, and the shapes of all tensors, must fit together."""
    ids = torch.zeros(1, TRIAL_TOKENS, dtype=torch.long)
    with torch.no_grad():
        run_encoder(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "mask")


def save_pruner(model: PreTrainedModel, folder: str | Path) -> None:
    """Save only the pruner of a model: all that a task needs besides a backbone that several tasks share.

    Writes task_pruner.json and task_pruner.safetensors into `folder`; for TS-DTP about 1 % of the backbone's size.

    Raises:
        ConfigError: the model carries no pruner.
    """
    pruner = encoder_of(model).pruner
    if pruner is None:
        raise ConfigError(f"{type(model).__name__} prunes nothing, so there is no pruner to save; install one first.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"format": FORMAT, "hidden_size": Shape.from_config(model.config).hidden}
    if encoder_of(model).separator is not None:
        settings["separator"] = encoder_of(model).separator
    settings |= write_pruner(pruner, folder / f"{TASK}.safetensors")
    atomic_write_text(folder / f"{TASK}.json", json.dumps(settings, indent=2) + "\n")


def load_pruner(model: PreTrainedModel, folder: str | Path, execution: Execution = "pack") -> PreTrainedModel:
    """Install the pruner that `save_pruner` wrote into a model, in place of any it has, and return the model.

    The backbone need not be the one the pruner was trained with, but must have the same hidden size.

    Raises:
        FileNotFoundError: the folder has no saved pruner.
        ConfigError: the backbone has another hidden size, or the two files do not belong together.
    """
    path, tensors = (Path(folder) / f"{TASK}.{suffix}" for suffix in ("json", "safetensors"))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder that prunekit.save_pruner wrote.")
    settings = read_settings(path, TASK_KEYS)
    hidden = Shape.from_config(model.config).hidden
    if settings["hidden_size"] != hidden:
        raise ConfigError(
            f"{path} was made for hidden size {settings['hidden_size']}, but {type(model).__name__} has {hidden}; "
            f"choose a backbone of that size."
        )
    return install(model, read_pruner(settings, path, tensors), execution, separator=settings.get("separator"))
