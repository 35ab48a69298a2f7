"""`prunekit bench`: what pruning and packing are worth on this machine, beside other runtimes of the same weights.

    prunekit bench run=runs/bbc_news/top/minilm/3x/s1-1a2b3c4d       every engine that is installed
    prunekit bench model=./my_model data=tickets.csv                 your own dense model, quickly
    prunekit bench from=bench.json into=README.md                    the table again

Which settings there are says verbs/bench.yaml; how times are taken, runtime/protocol.py; what the engines are,
runtime/peers.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.bench.engines import BenchContext, Plan, _candidates, _own, _peers
from prunekit.bench.flops import Flops
from prunekit.bench.machine import _highest, gemm_peak, hardware, package_versions
from prunekit.bench.subject import MODEL_SECONDS, BenchSubject

if TYPE_CHECKING:
    from prunekit.bench.peers import Peer
    from prunekit.bench.protocol import Timed, Workload


SCHEMA = 2  # 1 set speed-ups beside the method's FLOPs ratio, whatever the engines executed
RUN_SIZES, MODEL_SIZES = (1, 8, 32, 128), (1, 32)


# -- measuring ---------------------------------------------------------------------------------------------


def bench(subject: BenchSubject, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured, as it is stored.

    Raises:
        BenchError: a peer that does not exist, or data with fewer than two texts.
    """
    from prunekit.bench import peers
    from prunekit.bench.protocol import BenchError, Workload
    from prunekit.environment import environment, load_average

    if len(subject.texts) < 2:
        raise BenchError(f"{len(subject.texts)} texts are too few to compare anything.\nAllowed: 2 and more.")
    asked = given["peers"] or ("hf" if subject.quick else "all")
    taken, absent = peers.chosen(asked, given["dtypes"])
    sizes = given["batch_sizes"] or list(MODEL_SIZES if subject.quick else RUN_SIZES)
    seconds = given["seconds"] or (MODEL_SECONDS / len(sizes) if subject.quick else None)
    if subject.quick and given["examples"] is None:
        subject.texts = subject.texts[: _affordable(subject, seconds, candidates=4 + 2 * len(taken))]
    flops = Flops.of(subject)
    work = Workload(subject.texts, flops.needed, given["seed"], subject.score)
    around = environment()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        **subject.about,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(around),
        "versions": package_versions(around["versions"]),
        "load_before": load_average(),
        "settings": {name: value for name, value in given.items() if name not in ("out", "from", "into", "block")},
        "workload": _about_texts(work, sizes, subject.padded_to),
        "flops_ratio": flops.ratio,
        "flops_ratio_executed": flops.executed_ratio,
        "absent": absent,
        "blocks": [],
    }
    plan = Plan(sizes, given["rounds"], seconds, given["dtypes"], given["attention"], given["warm"])
    for threads in [1, *([given["wall_threads"]] if given["wall_threads"] else [])]:
        result["blocks"].append(_block(subject, work, taken, result["absent"], threads, flops, plan))
    result["load_after"] = load_average()
    return result


def _block(
    subject: BenchSubject,
    work: Workload,
    taken: Sequence[Peer],
    absent: dict[str, str],
    threads: int,
    flops: Flops,
    plan: Plan,
) -> dict[str, Any]:
    """One number of threads: engines are made, then all batch sizes are timed."""
    from prunekit.bench import protocol
    from prunekit.console import track
    from prunekit.runtime.kernels.threads import threads as computing_with

    clock = "cpu" if threads == 1 else "wall"
    block: dict[str, Any] = {"threads": threads, "clock": clock, "engines": {}}
    with tempfile.TemporaryDirectory() as scratch, computing_with(threads):
        block["gemm_peak"] = {"before": {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}}
        shop = BenchContext(subject, work, threads, Path(scratch), flops, absent, block["engines"], plan)
        own = list(_own(shop, plan.dtypes))
        others = list(_peers(shop, taken))
        timed = []
        for size in plan.sizes:
            found = protocol.time_candidates(
                list(_candidates(own, others, size)),
                work,
                size,
                track(
                    protocol.rounds_within(plan.rounds, plan.seconds), f"batch {size}, {threads} thr", plan.rounds + 1
                ),
            )
            timed.append((size, found))
        block["gemm_peak"]["after"] = {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}
    peaks = {dtype: _highest(when[dtype] for when in block["gemm_peak"].values()) for dtype in plan.dtypes}
    block["sizes"] = [_measured(found, work, size, clock, peaks) for size, found in timed]
    return block


def _measured(
    found: Sequence[Timed], work: Workload, size: int, clock: str, peaks: Mapping[str, Any]
) -> dict[str, Any]:
    from prunekit.bench import protocol

    # Hugging Face's own model where it takes part, which knows nothing of ours
    trust = ("padded", "unpruned")
    reference = min(
        (timed for timed in found if timed.candidate.role in trust), key=lambda t: trust.index(t.candidate.role)
    )
    value = protocol.control(found, clock)
    return {
        "batch_size": size,
        "rounds": len(found[0].cpu) - 1,
        "control": value,
        "trusted": protocol.trusted(value),
        "candidates": [
            protocol.summary(timed, work, size, clock, peaks.get(timed.candidate.dtype))
            | protocol.quality(timed, work, reference.logits)
            for timed in found
        ],
        "ratios": protocol.comparisons(found, size, clock),
    }


def _affordable(subject: BenchSubject, seconds: float | int | None, candidates: int) -> int:
    """How many texts leave time for three rounds and a first pass, judged by one text of middle length."""
    import torch

    from prunekit.bench.protocol import LEAST_ROUNDS, clocks
    from prunekit.runtime.kernels.threads import threads as computing_with

    middle = sorted(subject.texts, key=len)[len(subject.texts) // 2]
    ids = torch.tensor([middle])
    with torch.inference_mode(), computing_with(1):
        subject.model(input_ids=ids)
        start = clocks()[0]  # of the process: who else is there must not decide how much is read
        subject.model(input_ids=ids)
        spent = clocks()[0] - start
    passes = candidates * (LEAST_ROUNDS + 1)
    return max(2, min(len(subject.texts), int((seconds or MODEL_SECONDS) / (passes * spent))))


def _about_texts(work: Workload, sizes: Sequence[int], padded_to: int) -> dict[str, Any]:
    """Lengths, and how many tokens padding makes of each real one."""
    import numpy as np

    lengths = np.array([len(text) for text in work.texts])
    orders: tuple[Any, ...] = ("random", "sorted")
    waste = {
        order: {
            str(size): float(
                sum(len(batch) * max(lengths[place] for place in batch) for batch in work.batches(size, order))
                / lengths.sum()
            )
            for size in sizes
        }
        for order in orders
    }
    return {
        "texts": len(lengths),
        "tokens": int(lengths.sum()),
        "mean": float(lengths.mean()),
        "p90": float(np.quantile(lengths, 0.9)),
        "max": int(lengths.max()),
        "padded_to": padded_to,
        "computed_per_real_token": {**waste, "padded_to": float(np.maximum(lengths, padded_to).sum() / lengths.sum())},
    }
