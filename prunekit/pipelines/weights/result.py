"""Build result.json of a weight-pruning run, and save its model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prunekit import files as pretrained
from prunekit.weights.decoder import (
    Matrices,
    all_matrices,
    resident,
    weight_of,
)
from prunekit.weights.semi_structured import check_conversion


def _semi_structured(model: PreTrainedModel, blocks: Sequence[Matrices]) -> dict[str, Any]:
    """How many 2:4 matrices torch's semi-structured format takes here, and why not all."""
    done, reasons = 0, dict[str, None]()
    for number, matrices in enumerate(blocks):
        with resident(model, number):
            for module in matrices.values():
                reason = check_conversion(weight_of(module))
                done += reason is None
                reasons |= {} if reason is None else {reason: None}
    return {"matrices": len(all_matrices(blocks)), "converted": done, "why_not": "; ".join(reasons) or None}


def _weights_digest(folder: Path) -> str | None:
    """Hex digest of the weights in a folder, in one file or in shards; None where there are none."""
    files = sorted([*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")])
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    digests = [pretrained.sha256(file) for file in files]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _score(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
    """What every run's result has, higher = better, from 0 to 1: here 1 / perplexity of the domain's text.

    That is the geometric mean probability of its tokens. There is no validation text: a search would choose on it.
    """
    was, now = 1 / dense["domain_perplexity"], 1 / pruned["domain_perplexity"]
    return {
        "metric": "token_probability",
        "split": "held-out",
        "rows": pruned["domain_tokens"],
        "dense": was,
        "pruned": now,
        "dense_all": {"token_probability": was, **_measured(dense)},
        "pruned_all": {"token_probability": now, **_measured(pruned)},
        "validation": now,
    }


def _measured(found: Mapping[str, Any]) -> dict[str, float]:
    """The measures among what an evaluation found, without its counts."""
    return {name: value for name, value in found.items() if not name.endswith(("_tokens", "_rows"))}


def _nothing_saved(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """The cost of a run in the shape of every run's result, per token: dense kernels multiply zeros too."""
    g = 2 * sum(mask.numel() for mask in masks.values()) / 1e9
    return {
        "budget": {"asked": None, "reached": 1.0, "met": True, "tolerance": 0.0, "split": "held-out"},
        "flops": {
            "dense_unpadded_g": g,
            "dense_padded_g": g,
            "pruned_g": g,
            "flops_vs_unpadded": 1.0,
            "flops_vs_padded": 1.0,
            "padded_to": 1,
        },
        "tokens_per_layer": [1.0],
        "mean_length": 1.0,
        "speed": [],
    }


def _variant(options: Mapping[str, Any]) -> str:
    """The method with what tells its variants apart, as one line of a table."""
    parts = [str(options["name"])]
    if "score" in options:
        parts.append(options["score"])
        if options["score"].startswith("dual"):
            parts.append(f"lambda {options['lambda_']:g}")
        for half, key, usual in (("domain_only", "general_on", "open"), ("general_only", "domain_on", "domain")):
            if options["score"] != half and options[key] != usual:
                parts.append(f"{key.partition('_')[0]} importance on {options[key]}")
    elif options["name"] != "magnitude":
        parts.append(options["calibration"])
    if options["weight_update"] == "obs":
        parts.append(f"repaired on {options['update_on']}")
    return ", ".join(parts)
