"""Measured speed: candidates interleaved in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.models.forward import run_encoder, run_stock_encoder
from prunekit.runtime.kernels.threads import threads

Batch = Mapping[str, Tensor]
Candidate = Callable[[Batch], object]


def measured(
    candidates: Mapping[str, Callable[[Any], object]],
    batches: Sequence[Any],
    rounds: Iterable[int],
    read: Callable[[], tuple[float, ...]],
) -> dict[str, list[list[tuple[float, ...]]]]:
    """What each candidate spends on each batch, by round and batch, on the clocks that `read` reads.

    Each round runs every candidate on a batch before the next batch, forwards and then backwards through the
    candidates (ABBA).
    """
    spent: dict[str, list[list[tuple[float, ...]]]] = {name: [] for name in candidates}
    names = list(candidates)
    for number in rounds:
        for name in names:
            spent[name].append([])
        for position, batch in enumerate(batches):
            order = names if (number + position) % 2 == 0 else names[::-1]
            for name in order:
                start = read()
                candidates[name](batch)
                spent[name][-1].append(tuple(now - then for now, then in zip(read(), start, strict=True)))
    return spent


def interleaved(
    candidates: Mapping[str, Candidate], batches: Sequence[Batch], rounds: Iterable[int]
) -> dict[str, list[float]]:
    """Seconds of process CPU time that each candidate takes for all batches, one value per round, as `measured`.

    `rounds` counts from 0; the first one warms up and is not counted.
    """
    spent = measured(candidates, batches, rounds, lambda: (time.process_time(),))
    return {name: [sum(cpu for (cpu,) in batch) for batch in found[1:]] for name, found in spent.items()}


def compare_speed(
    pruned: PreTrainedModel,
    stock: PreTrainedModel,
    batches: Sequence[Batch],
    rounds: Iterable[int],
) -> dict[str, float | int]:
    """Dense-padded, dense-packed and pruned-packed on the same batches; milliseconds per batch, medians over rounds.

    `pruned` carries the traversal, `stock` is the plain Hugging Face model with the same weights. Speed-ups are
    medians of per-round ratios; `control` is dense-packed against itself and says how far to trust them.
    """

    def packed(prune: bool) -> Candidate:
        return lambda batch: run_encoder(pruned, batch, "pack", prune=prune)

    def padded(batch: Batch) -> None:
        run_stock_encoder(stock, batch)

    candidates: dict[str, Candidate] = {
        "dense_padded": padded,
        "dense_packed": packed(prune=False),
        "pruned_packed": packed(prune=True),
        "control": packed(prune=False),
    }
    with torch.inference_mode(), threads(1):
        spent = interleaved(candidates, batches, rounds)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(spent[above], spent[below], strict=True))

    milliseconds = {
        f"{name}_ms": 1000 * statistics.median(values) / len(batches)
        for name, values in spent.items()
        if name != "control"
    }
    return {
        "batch_size": len(batches[0]["input_ids"]),
        "batches": len(batches),
        "rounds": len(spent["control"]),
        "threads": 1,
        **milliseconds,
        "speedup_vs_padded": ratio("dense_padded", "pruned_packed"),
        "speedup_vs_packed": ratio("dense_packed", "pruned_packed"),
        "control": ratio("dense_packed", "control"),
    }
