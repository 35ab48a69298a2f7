"""Read a checkpoint of LTP: kssteven418/LTP, whose thresholds are a line in config.json plus learned differences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
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

PADDED_TO = 128  # by the repository's launcher; scores are divided by it
FAMILIES = ("ltp", "ibert", "roberta")
LEARNED = re.compile(r"ibert\.encoder\.layer\.(\d+)\.attention\.self\.pruner\.keep_threshold")
# what I-BERT's integer arithmetic stores besides the weights, and what a position's number is
QUANTISED = re.compile(r".*(_integer|_scaling_factor|\.x_min|\.x_max|\.shift|embeddings\.position_ids)")


def read(folder: Path, given: Given) -> Published:
    """Return what a folder of LTP holds.

    Raises:
        ConfigError: something in it is missing, unknown, or does not fit together.
    """
    content = read_settings(folder)
    _check_settings(folder, content)
    stored = read_tensors(folder / WEIGHTS)
    model = build_model(folder / WEIGHTS, "roberta", content, renamed(stored, _name), given.labels)
    layers = model.config.num_hidden_layers
    final = _final_threshold(folder, content)
    thresholds = _thresholds(folder / WEIGHTS, stored, layers, final)
    length = longest(model.config, given.max_length, PADDED_TO)
    settings = [
        "method=ltp",
        f"method.profile={given.profile}",
        f"method.final_threshold={final:.10g}",
        f"method.reference_length={length}",
    ]
    remarks = [
        f"thresholds layers 1..{layers - 1}: {', '.join(f'{value:.4g}' for value in thresholds[1:].tolist())}, "
        f"of scores in texts padded to {length} tokens"
    ]
    if given.profile == "reference":
        remarks.append(
            "[CLS]      may be dropped, as there; its output is then the last before, and differs from theirs"
        )
    return Published(model, settings, {"values": thresholds[1:].float() * length}, length, remarks)


def _name(name: str) -> str | None:
    """Return the name that transformers gives a tensor, None where it has none."""
    if QUANTISED.fullmatch(name) or LEARNED.fullmatch(name):
        return None
    return re.sub(r"^ibert\.", "roberta.", name)


def _check_settings(folder: Path, content: dict[str, Any]) -> None:
    path, kind, mode = folder / "config.json", content.get("model_type"), content.get("prune_mode")
    if kind not in FAMILIES:
        raise ConfigError(
            f"{path} has model_type={shown(kind)}.\nAllowed: {', '.join(FAMILIES)}.\n"
            "Give a folder that the LTP repository wrote, or type prunekit import top for one of ToP."
        )
    if mode != "absolute_threshold":
        rate = content.get("token_keep_rate", (content.get("prune_kwargs") or {}).get("token_keep_rate"))
        advice = "Give the folder of a model with learned thresholds."
        if mode == "topk":
            advice = f"A rate needs no import: prunekit train method=topk method.rate={shown(rate)} model=<dense model>"
        raise ConfigError(f"{path} has prune_mode={shown(mode)}.\nAllowed: absolute_threshold.\n{advice}")
    if content.get("quant_mode"):
        raise ConfigError(
            f"{path} has quant_mode=true: the model computes in whole numbers.\nAllowed: quant_mode=false.\n"
            "Give the checkpoint from before it was quantised."
        )


def _final_threshold(folder: Path, content: dict[str, Any]) -> float:
    inner = content.get("prune_kwargs")
    given = [block.get("final_token_threshold") for block in (content, inner) if isinstance(block, dict)]
    found = next((value for value in given if value is not None), None)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= 10:
        raise ConfigError(
            f"{folder}/config.json has final_token_threshold={shown(found)}.\nAllowed: above 0, at most 10.\n"
            "Write there what the model was trained with, as 0.01: the thresholds are stored as differences from it."
        )
    return float(found)


def _thresholds(path: Path, stored: dict[str, Tensor], layers: int, final: float) -> Tensor:
    """Return the threshold of each layer: that of the line, plus what was learned."""
    learned = {int(match[1]): tensor for name, tensor in stored.items() if (match := LEARNED.fullmatch(name))}
    if missing := [f"layer.{layer}" for layer in range(layers) if layer not in learned]:
        raise ConfigError(
            f"{path} has no pruner.keep_threshold of {listed(missing, 4)}.\nAllowed: one for each layer.\n"
            "Give the folder as its repository wrote it."
        )
    if wrong := [layer for layer, tensor in learned.items() if tensor.numel() != 1 or layer >= layers]:
        raise ConfigError(
            f"{path} has a keep_threshold of layer {wrong[0]} that does not fit.\n"
            f"Allowed: one number for each of {layers} layers.\nGive the folder as its repository wrote it."
        )
    line = final * torch.arange(layers, dtype=torch.float64) / layers
    found = line + torch.stack([learned[layer].double().reshape(()) for layer in range(layers)])
    if found[0] != 0 or (found[1:] == 0).any():  # the repository skips a layer whose threshold is 0
        raise ConfigError(
            f"{path} has the thresholds {listed(round(value, 6) for value in found.tolist())}.\n"
            "Allowed: 0 in layer 0, which never prunes, and others than 0 in the rest.\n"
            "Give the folder as its repository wrote it."
        )
    return found
