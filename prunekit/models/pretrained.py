"""Pruned checkpoints, saved and loaded in Hugging Face's own folder layout.

A pruned checkpoint consists of stock weights, `prunekit.json` (how the encoder prunes) and `prunekit.safetensors`
(thresholds, gates). Nothing is pickled. Without prunekit, the folder loads as the dense model.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunekit.cost import Shape
from prunekit.files import allow_as_usual, atomic_write, atomic_write_text, sha256
from prunekit.models.loading import load_stock
from prunekit.tokens.encoder import TranslationEncoder, encoder_of, install
from prunekit.tokens.policies import KeepPolicy
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import Execution

FORMAT = 1
SETTINGS = "prunekit.json"
TENSORS = "prunekit.safetensors"
TASK = "task_pruner"  # .json and .safetensors: a pruner without a model


def _described(part: Scorer | KeepPolicy) -> dict[str, Any]:
    """Return the class and arguments of a scorer or a policy, from which `_rebuilt` recreates it."""
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", "arguments": part.arguments()}


def _write_pruner(pruner: TokenPruner, tensors: Path) -> dict[str, Any]:
    """Write the pruner's tensors, and return the settings from which `_read_pruner` recreates it."""
    stored = {name: t.detach().contiguous() for name, t in pruner.state_dict().items()}
    atomic_write(tensors, lambda beside: save_file(stored, beside))
    about = {
        "layers": sorted(pruner.layers),
        "soft_form": pruner.soft_form,
        "protect_first": pruner.protect_first,
        "protect_last": pruner.protect_last,
        "hide_gone": pruner.hide_gone,
        "scorer": _described(pruner.scorer),
        "policy": _described(pruner.policy),
    }
    return {"tensors_sha256": sha256(tensors), "pruner": about}


def _read_pruner(about: Mapping[str, Any], tensors: Path) -> TokenPruner:
    kept = dict(about)
    scorer = _rebuilt(kept.pop("scorer"), Scorer, tensors.parent)
    policy = _rebuilt(kept.pop("policy"), KeepPolicy, tensors.parent)
    pruner = TokenPruner(scorer, policy, **kept)
    found: dict[str, Tensor] = load_file(tensors)
    pruner.load_state_dict(found)
    return pruner


def _rebuilt(description: Mapping[str, Any], kind: type, folder: Path) -> Any:
    try:
        found = pkgutil.resolve_name(str(description["class"]))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / SETTINGS} names {description['class']}, which is not installed here; "
            f"install the package that provides it ({error})."
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{folder / SETTINGS} names {description['class']}, which is no {kind.__name__}; refused.")
    return found(**description["arguments"])


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
) -> None:
    """Save a model prepared by `install` as a Hugging Face folder.

    The model's own `save_pretrained` would leave out the pruning.
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
    if pruner is not None:
        settings |= _write_pruner(pruner, folder / TENSORS)
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


def load_hf(folder: str | Path, execution: Execution | None = None) -> PreTrainedModel:
    """Load a pruned model as a Hugging Face model in evaluation mode, as `prunekit.load` does.

    Raises:
        FileNotFoundError: the folder is not a prunekit checkpoint.
        ValueError: a newer format, or weights that do not match the stored settings.
    """
    folder = model_folder(folder)
    path = folder / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {SETTINGS}, so it is no pruned checkpoint; give the folder of a finished run, "
            f"or load a dense model with transformers."
        )
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); save the model again.") from error
    if settings["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {settings['format']}, this prunekit reads up to {FORMAT}; upgrade prunekit."
        )
    _check_hash(folder / "model.safetensors", settings["weights_sha256"])
    if settings["pruner"] is not None:
        _check_hash(folder / TENSORS, settings["tensors_sha256"])
    model = load_stock(folder)
    pruner = None
    if settings["pruner"] is not None:
        pruner = _read_pruner(settings["pruner"], folder / TENSORS)
    return install(model, pruner, execution or settings["execution"], prefix=settings.get("prefix", 0)).eval()


def save_pruner(model: PreTrainedModel, folder: str | Path) -> None:
    """Save only the pruner of a model: all that a task needs besides a backbone that several tasks share.

    Writes task_pruner.json and task_pruner.safetensors into `folder`; for TS-DTP about 1 % of the backbone's size.

    Raises:
        ValueError: the model carries no pruner.
    """
    pruner = encoder_of(model).pruner
    if pruner is None:
        raise ValueError(f"{type(model).__name__} prunes nothing, so there is no pruner to save; install one first.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"format": FORMAT, "hidden_size": Shape.from_config(model.config).hidden}
    settings |= _write_pruner(pruner, folder / f"{TASK}.safetensors")
    atomic_write_text(folder / f"{TASK}.json", json.dumps(settings, indent=2) + "\n")


def load_pruner(model: PreTrainedModel, folder: str | Path, execution: Execution = "pack") -> PreTrainedModel:
    """Install the pruner that `save_pruner` wrote into a model, in place of any it has, and return the model.

    The backbone need not be the one the pruner was trained with, but must have the same hidden size.

    Raises:
        FileNotFoundError: the folder has no saved pruner.
        ValueError: the backbone has another hidden size, or the two files do not belong together.
    """
    path, tensors = (Path(folder) / f"{TASK}.{suffix}" for suffix in ("json", "safetensors"))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder that prunekit.save_pruner wrote.")
    settings = json.loads(path.read_text())
    hidden = Shape.from_config(model.config).hidden
    if settings["hidden_size"] != hidden:
        raise ValueError(
            f"{path} was made for hidden size {settings['hidden_size']}, but {type(model).__name__} has {hidden}; "
            f"choose a backbone of that size."
        )
    _check_hash(tensors, settings["tensors_sha256"])
    return install(model, _read_pruner(settings["pruner"], tensors), execution)


def _check_hash(path: Path, written: str) -> None:
    found = sha256(path)
    if found != written:
        raise ValueError(
            f"{path} has sha256 {found[:12]}, but {SETTINGS} was written for {written[:12]}; "
            f"the pruning does not belong to these weights, save the model again."
        )
