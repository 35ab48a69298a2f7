"""Stage 1 of a token-pruning run: check the models, read the data, build the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit.config.errors import ConfigError
from prunekit.config.keys import declared
from prunekit.data.encoding import EncodedSplit
from prunekit.methods.base import TokenPruningMethod
from prunekit.runs.kinds import target_of


def check_dense(key: str, folder: Path | str) -> None:
    """Refuses a folder of ours whose model is pruned already, and a teacher whose weights cannot be told apart.

    Raises:
        ConfigError: either; `key` is the setting that named the folder.
    """
    told = Path(folder) / "prunekit.json"
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")).get("pruner") is not None:
        raise ConfigError(
            f"{key}={folder} is a pruned model, which would run unpruned here.\n"
            "Allowed: a dense model: the model/ folder of a method=dense run, or one from elsewhere.\n"
            "Name another folder."
        )
    if key == "teacher.path" and not (Path(folder) / "model.safetensors").is_file():
        raise ConfigError(
            f"{key}={folder} holds no model.safetensors.\n"
            "Allowed: a folder with config.json, model.safetensors and tokenizer, as save_pretrained writes it.\n"
            "Load it in transformers and call save_pretrained(folder) on the model and on its tokenizer."
        )


def method_class(cfg: dict[str, Any]) -> type[TokenPruningMethod]:
    """The class that `method._target_` names."""
    found: type[TokenPruningMethod] = target_of(cfg)
    return found


def knobs(cfg: dict[str, Any]) -> dict[str, Any]:
    """The method's own ways to say how much to prune, as far as they are set."""
    keys = declared({"method": cfg["method"]["name"]})
    own = [key.path.partition(".")[2] for key in keys.values() if key.knob]
    return {name: cfg["method"][name] for name in own if cfg["method"].get(name) is not None}


def _rows(name: str, split: EncodedSplit) -> str:
    return f"{name} {len(split)}" if split.questions is None else f"{name} {split.judged} in {len(split)} windows"
