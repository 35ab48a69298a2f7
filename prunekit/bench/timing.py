"""Time candidates interleaved in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.models.forward import run_encoder, run_stock_encoder
from prunekit.runtime.kernels.threads import threads
from prunekit.tokens.cutting import cut
from prunekit.tokens.encoder import encoder_of

Candidate = Callable[[Batch], object]


def time_batches(
    candidates: Mapping[str, Callable[[Any], object]],
    batches: Sequence[Any],
    rounds: Iterable[int],
    read: Callable[[], tuple[float, ...]],
) -> dict[str, list[list[tuple[float, ...]]]]:
    """Return what each candidate spends on each batch, by round and batch, on the clocks that `read` reads.

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


def time_rounds(
    candidates: Mapping[str, Candidate], batches: Sequence[Batch], rounds: Iterable[int]
) -> dict[str, list[float]]:
    """Return each candidate's process CPU time for all batches, in seconds per round, timed as in `time_batches`.

    `rounds` counts from 0; the first one warms up and is not counted.
    """
    spent = time_batches(candidates, batches, rounds, lambda: (time.process_time(),))
    return {name: [sum(cpu for (cpu,) in batch) for batch in found[1:]] for name, found in spent.items()}


def compare_speed(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    stock: PreTrainedModel,
    batches: Sequence[Batch],
    rounds: Iterable[int],
) -> dict[str, float | int]:
    """Return ms per batch of dense-padded, dense-packed and pruned-packed on the same batches, medians over rounds.

    `pruned` and `dense` have prunekit's encoder, `stock` is the dense one as a plain Hugging Face model. Speed-ups are
    medians of per-round ratios; `control` is dense-packed against itself, which shows how far to trust them. Texts of
    a model that reads cut ones are cut before, as its tokenizer would.
    """
    longest, read = encoder_of(pruned).longest, dict[int, Batch]()
    for batch in batches:
        read[id(batch)] = batch if longest is None else cut(batch, longest)

    def run_dense(batch: Batch) -> None:
        run_encoder(dense, batch, "pack", prune=False)

    candidates: dict[str, Candidate] = {
        "dense_padded": partial(run_stock_encoder, stock),
        "dense_packed": run_dense,
        "pruned_packed": lambda batch: run_encoder(pruned, read[id(batch)], "pack", prune=True),
        "control": run_dense,
    }
    with torch.inference_mode(), threads(1):
        spent = time_rounds(candidates, batches, rounds)

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
