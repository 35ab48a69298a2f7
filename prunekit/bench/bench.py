"""`prunekit bench`: measure what pruning and packing gain on this machine, beside other runtimes of the same weights.

cli/bench.yaml explains the settings, protocol.py how times are taken, peers.py the other runtimes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.bench.engines import BenchContext, EnginesUnderTest, Plan, build_own_engines, build_peers, candidates_at
from prunekit.bench.flops import Flops
from prunekit.bench.machine import gemm_peak, hardware, highest_peak, package_versions
from prunekit.bench.peers import Peer, choose_peers
from prunekit.bench.protocol import (
    LEAST_ROUNDS,
    BenchError,
    Order,
    Timed,
    Workload,
    clocks,
    compare,
    control_ratio,
    is_trusted,
    rounds_within,
    summarise,
    time_candidates,
)
from prunekit.bench.result import (
    BENCH_SCHEMA,
    BenchResult,
    BlockResult,
    GemmPeaks,
    PaddingCost,
    SizeResult,
    TextStatistics,
)
from prunekit.bench.subject import BenchSubject
from prunekit.console import track
from prunekit.environment import environment, load_average
from prunekit.models.answers import answers_of
from prunekit.runtime.kernels.threads import threads as computing_with

RUN_SIZES, MODEL_SIZES = (1, 8, 32, 128), (1, 32)
MODEL_SECONDS = 35.0  # of all batch sizes, for an answer within a minute
NOT_STORED = ("out", "from", "into", "block")  # settings that change no number


def bench(subject: BenchSubject, given: Mapping[str, Any]) -> BenchResult:
    """Measure a subject; `given` are the settings of cli/bench.yaml.

    Raises:
        BenchError: a peer that does not exist, or data with fewer than two texts.
    """
    if len(subject.texts) < 2:
        raise BenchError(f"{len(subject.texts)} texts are too few to compare anything.\nAllowed: 2 and more.")
    peers, absent = choose_peers(given["peers"] or ("hf" if subject.is_quick else "all"), given["dtypes"])
    plan = _plan(subject, given)
    if subject.is_quick and given["examples"] is None:
        count = _affordable_texts(subject, plan.seconds or MODEL_SECONDS, candidates=4 + 2 * len(peers))
        subject = replace(subject, texts=subject.texts[:count])
    flops = Flops.of(subject)
    work = Workload(subject.texts, flops.needed, answers_of(subject.model.config), given["seed"], subject.score)
    around, date, load_before = environment(), datetime.now(UTC).date().isoformat(), load_average()
    blocks = []
    for threads in [1, *([given["wall_threads"]] if given["wall_threads"] else [])]:
        with tempfile.TemporaryDirectory() as scratch, computing_with(threads):
            block, missing = _measure_block(BenchContext(subject, work, flops, plan, threads, Path(scratch)), peers)
        blocks.append(block)
        absent |= missing
    return BenchResult(
        schema=BENCH_SCHEMA,
        **subject.about,
        date=date,
        hardware=hardware(around),
        versions=package_versions(around["versions"]),
        load_before=None if load_before is None else tuple(load_before),
        settings={name: value for name, value in given.items() if name not in NOT_STORED},
        workload=_describe_texts(work, plan.batch_sizes, subject.padded_to),
        flops_ratio=flops.ratio,
        flops_ratio_executed=flops.executed_ratio,
        absent=absent,
        blocks=tuple(blocks),
        load_after=None if (load_after := load_average()) is None else tuple(load_after),
    )


def _plan(subject: BenchSubject, given: Mapping[str, Any]) -> Plan:
    sizes = given["batch_sizes"] or list(MODEL_SIZES if subject.is_quick else RUN_SIZES)
    seconds = given["seconds"] or (MODEL_SECONDS / len(sizes) if subject.is_quick else None)
    return Plan(sizes, given["rounds"], seconds, given["dtypes"], given["attention"], given["warm"])


def _measure_block(context: BenchContext, peers: Sequence[Peer]) -> tuple[BlockResult, Mapping[str, str]]:
    """Build all engines on one number of threads and time all batch sizes.

    Return what was measured, and why engines are missing.
    """
    plan, clock = context.plan, "cpu" if context.threads == 1 else "wall"
    before = {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}
    own, others = build_own_engines(context), build_peers(context, peers)
    timed = [(size, _time_size(context, size, own, others)) for size in plan.batch_sizes]
    after = {dtype: gemm_peak(dtype, clock) for dtype in plan.dtypes}
    peaks = {dtype: highest_peak([before[dtype], after[dtype]]) for dtype in plan.dtypes}
    block = BlockResult(
        threads=context.threads,
        clock=clock,
        engines={**own.records, **others.records},
        gemm_peak=GemmPeaks(before=before, after=after),
        sizes=tuple(_summarise_size(found, context.work, size, clock, peaks) for size, found in timed),
    )
    return block, {**own.absent, **others.absent}


def _time_size(context: BenchContext, size: int, own: EnginesUnderTest, others: EnginesUnderTest) -> list[Timed]:
    plan = context.plan
    rounds = track(
        rounds_within(plan.rounds, plan.seconds), f"batch {size}, {context.threads} thr", total=plan.rounds + 1
    )
    return time_candidates(candidates_at(size, own.candidates, others.candidates), context.work, size, rounds)


def _summarise_size(
    found: Sequence[Timed], work: Workload, size: int, clock: str, peaks: Mapping[str, float | None]
) -> SizeResult:
    # labels are compared with those of Hugging Face's own model where it takes part, which owes nothing to ours
    trust = ("padded", "unpruned")
    reference = min(
        (timed for timed in found if timed.candidate.role in trust), key=lambda t: trust.index(t.candidate.role)
    )
    control = control_ratio(found, clock)
    return SizeResult(
        batch_size=size,
        rounds=len(found[0].cpu) - 1,
        control=control,
        trusted=is_trusted(control),
        candidates=tuple(
            summarise(timed, work, size, clock, peaks.get(timed.candidate.dtype), reference.logits) for timed in found
        ),
        ratios=tuple(compare(found, size, clock)),
    )


def _affordable_texts(subject: BenchSubject, seconds: float | int, candidates: int) -> int:
    """Return how many texts leave time for three rounds and a first pass, judged by a text of median length."""
    middle = sorted(subject.texts, key=len)[len(subject.texts) // 2]
    ids = torch.tensor([middle])
    with torch.inference_mode(), computing_with(1):
        subject.model(input_ids=ids)
        start = clocks()[0]  # of this process: what else runs must not decide how much is read
        subject.model(input_ids=ids)
        spent = clocks()[0] - start
    passes = candidates * (LEAST_ROUNDS + 1)
    return max(2, min(len(subject.texts), int(seconds / (passes * spent))))


def _describe_texts(work: Workload, sizes: Sequence[int], padded_to: int) -> TextStatistics:
    lengths = np.array([len(text) for text in work.texts])

    def padding(order: Order) -> dict[str, float]:
        return {
            str(size): float(
                sum(len(batch) * max(lengths[place] for place in batch) for batch in work.batches(size, order))
                / lengths.sum()
            )
            for size in sizes
        }

    return TextStatistics(
        texts=len(lengths),
        tokens=int(lengths.sum()),
        mean=float(lengths.mean()),
        p90=float(np.quantile(lengths, 0.9)),
        max=int(lengths.max()),
        padded_to=padded_to,
        computed_per_real_token=PaddingCost(
            random=padding("random"),
            sorted=padding("sorted"),
            padded_to=float(np.maximum(lengths, padded_to).sum() / lengths.sum()),
        ),
    )
