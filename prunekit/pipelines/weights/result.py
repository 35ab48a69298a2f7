"""Build result.json of a weight-pruning run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prunekit.config.identity import config_hash
from prunekit.data.text.samples import samples_digest
from prunekit.environment import command, peak_memory
from prunekit.methods.weight_base import WeightPruningMethod
from prunekit.pipelines.weights.calibration import CORPORA, Calibration
from prunekit.pipelines.weights.evaluation import Evaluated
from prunekit.pipelines.weights.loading import LoadedModel
from prunekit.pipelines.weights.masking import Masking
from prunekit.pipelines.weights.statistics import CollectedStatistic
from prunekit.runs.result import WeightRunResult
from prunekit.weights.decoder import all_matrices, hold_block, parameter_count, weight_of
from prunekit.weights.masks import is_nm
from prunekit.weights.semi_structured import check_conversion
from prunekit.weights.storage import sparsity_report


def build_result(
    cfg: Mapping[str, Any],
    method: WeightPruningMethod,
    loaded: LoadedModel,
    calibration: Calibration,
    statistics: Sequence[CollectedStatistic],
    masking: Masking,
    *,
    dense: Evaluated,
    pruned: Evaluated,
    started: float,
) -> WeightRunResult:
    """Return the result of the run; `loaded` is the pruned model, and `started` the monotonic time of its beginning."""
    masks = masking.masks
    two_of_four = all(is_nm(mask) for mask in masks.values())
    content = {
        "schema": 1,
        "prunes": "weights",
        "status": "done",
        "exit_code": 0,
        "method": cfg["method"]["name"],
        "variant": variant(cfg["method"]["name"], method),
        "task": cfg["task"]["name"],
        "backbone": cfg["backbone"]["name"],
        "seed": cfg["seed"],
        "hash": config_hash(cfg),
        "command": command(),
        "score": _score(dense.values, pruned.values),
        "dense": dense.values,
        "pruned": pruned.values,
        **_dense_cost(masks),
        "sparsity": sparsity_report(masks, parameter_count(loaded.model)),
        "calibration": _provenance(calibration),
        "two_of_four": two_of_four,
        "reused": [statistic.file for statistic in statistics if statistic.seconds is None],
        "streamed": loaded.streamed,
        "seconds": {**_stage_seconds(statistics, masking, dense, pruned), "total": time.monotonic() - started},
        "peak_memory_mib": peak_memory(),
    }
    if two_of_four and method.options.group == "nm":
        content["semi_structured"] = _semi_structured(loaded)
    return WeightRunResult.from_json(content)


def variant(name: str, method: WeightPruningMethod) -> str:
    """Return the method with what distinguishes this run from others of it, as one line of a table."""
    options = method.options
    repaired = [f"repaired on {options.update_on}"] if options.weight_update == "obs" else []
    return ", ".join([name, *method.variant(), *repaired])


def _score(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score that every run has, from 0 to 1, higher = better: here 1 / perplexity of the domain's text.

    That is the geometric mean probability of its tokens. There is no validation text; a search would choose by this.
    """
    before, after = 1 / dense["domain_perplexity"], 1 / pruned["domain_perplexity"]
    return {
        "metric": "token_probability",
        "split": "held-out",
        "rows": pruned["domain_tokens"],
        "dense": before,
        "pruned": after,
        "dense_all": {"token_probability": before, **_without_counts(dense)},
        "pruned_all": {"token_probability": after, **_without_counts(pruned)},
        "validation": after,
    }


def _without_counts(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of an evaluation, without its counts of tokens and rows."""
    return {name: value for name, value in values.items() if not name.endswith(("_tokens", "_rows"))}


def _dense_cost(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the cost per token, as every run's result has it: nothing is saved, as dense kernels multiply zeros."""
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


def _provenance(calibration: Calibration) -> dict[str, Any]:
    """Return what each corpus was calibrated on: file, seed, counts, and the digest of its tokens."""
    found: dict[str, Any] = {}
    for stream in CORPORA:
        samples, documents = calibration.samples[stream], calibration.texts.documents[stream]
        files = getattr(calibration.source, stream)
        found[stream] = {
            "file": None if files is None else files.calibration.name,
            "seed": calibration.seed,
            "samples": len(samples),
            "tokens": sum(len(sample.ids) for sample in samples),
            "sha256": samples_digest(samples),
            "overlap": documents.overlap,
            "duplicates": documents.duplicates,
            "empty": documents.empty,
        }
    return found


def _stage_seconds(
    statistics: Sequence[CollectedStatistic], masking: Masking, dense: Evaluated, pruned: Evaluated
) -> dict[str, float]:
    """Return the seconds of each stage, in their order, without what was read from the cache."""
    stages = [
        ("evaluate dense", dense.seconds),
        *((f"{found.need.what} on {found.need.on}", found.seconds) for found in statistics),
        *masking.seconds.items(),
        ("evaluate pruned", pruned.seconds),
    ]
    # a list first: a statistic that was computed for the allocation may have been reused for the score
    return {name: seconds for name, seconds in stages if seconds is not None}


def _semi_structured(loaded: LoadedModel) -> dict[str, Any]:
    """Return how many of the matrices torch's semi-structured format takes here, and why not all."""
    converted, reasons = 0, dict[str, None]()
    for number, matrices in enumerate(loaded.blocks):
        with hold_block(loaded.model, number):
            for module in matrices.values():
                reason = check_conversion(weight_of(module))
                converted += reason is None
                reasons |= {} if reason is None else {reason: None}
    return {
        "matrices": len(all_matrices(loaded.blocks)),
        "converted": converted,
        "why_not": "; ".join(reasons) or None,
    }
