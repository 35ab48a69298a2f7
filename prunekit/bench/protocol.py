"""The protocol of `prunekit bench`: engines, texts, interleaved rounds, and what may be said about the times.

An engine is anything with a `name` and `logits(batch of token id lists) -> [batch, outputs]`. Nothing here knows which
engines there are, or reads a clock but through `clocks`; tests hand in both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from prunekit.bench.timing import measured

Order = Literal["random", "sorted"]
Role = Literal["pruned", "unpruned", "control", "peer", "padded"]
# a control that differs by more from itself says that the machine was not quiet
CONTROL_TOLERANCE = 0.02
LENGTH_BINS = (16, 32, 64, 128, 256)
LEAST_ROUNDS = 3


class BenchError(ValueError):
    """What was asked cannot be measured; says what can."""


@runtime_checkable
class Engine(Protocol):
    """What is measured."""

    name: str

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Logits [batch, outputs] of texts, given as token ids."""


class Encoded(list[int]):
    """The token ids of a text; `types` are its token types, for models that have them."""

    types: list[int] | None = None


@dataclass(frozen=True)
class Candidate:
    """An engine in one role: `order` says how its batches are made, `padded` whether it computes padding.

    `weight` is the FLOPs that it executes of those of the same texts unpruned and unpadded, in all layers: 1 for peers.
    `twin` names the candidate that is the same engine without pruning, where it prunes.
    """

    name: str
    engine: Engine
    role: Role
    dtype: str = "fp32"
    order: Order = "random"
    padded: bool = False
    weight: float = 1.0
    twin: str | None = None


@dataclass(frozen=True)
class Workload:
    """The texts, in a seeded order that is new to every engine; `flops` are those of all texts, dense and unpadded."""

    texts: Sequence[Encoded]
    flops: float
    seed: int = 0
    score: Callable[[np.ndarray], dict[str, float]] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Real tokens of all texts."""
        return sum(map(len, self.texts))

    def batches(self, size: int, order: Order) -> list[list[int]]:
        """Numbers of the texts of each batch; "sorted" by length, as a service could that may wait for more texts."""
        places = np.random.default_rng(self.seed).permutation(len(self.texts)).tolist()
        if order == "sorted":
            places.sort(key=lambda place: len(self.texts[place]))
        batches = [places[start : start + size] for start in range(0, len(places), size)]
        if order == "sorted":  # the batches come in a random order, so that no engine sees lengths rise
            shuffled = np.random.default_rng((self.seed, 1)).permutation(len(batches))
            batches = [batches[number] for number in shuffled]
        return batches


@dataclass(frozen=True)
class Timed:
    """One candidate's seconds, by round (the first is the first pass) and batch, on both clocks, and its logits."""

    candidate: Candidate
    cpu: list[list[float]]
    wall: list[list[float]]
    logits: np.ndarray


def clocks() -> tuple[float, float]:
    """Process CPU time of all threads, and wall time, in seconds."""
    return time.process_time(), time.perf_counter()


def rounds_within(
    rounds: int, seconds: float | int | None, now: Callable[[], float] = time.perf_counter
) -> Iterator[int]:
    """0, the first pass, then the counted rounds; ends earlier after `seconds`, but not before three were counted."""
    start = now()
    for number in range(rounds + 1):
        if number > LEAST_ROUNDS and seconds is not None and now() - start >= seconds:
            return
        yield number


def time_candidates(
    candidates: Sequence[Candidate],
    work: Workload,
    size: int,
    rounds: Iterable[int],
    read: Callable[[], tuple[float, ...]] = clocks,
) -> list[Timed]:
    """Times all candidates on the same texts at one batch size; logits are those of the first pass."""
    batches = {candidate.name: work.batches(size, candidate.order) for candidate in candidates}
    if len(batches) != len(candidates):
        raise BenchError(f"two candidates have one name: {', '.join(candidate.name for candidate in candidates)}.")
    inputs = {name: [[work.texts[place] for place in places] for places in found] for name, found in batches.items()}
    said: dict[str, dict[int, Any]] = {candidate.name: {} for candidate in candidates}

    def runs(candidate: Candidate) -> Callable[[int], object]:
        own, found = inputs[candidate.name], said[candidate.name]

        def run(number: int) -> object:
            output = candidate.engine.logits(own[number])
            found.setdefault(number, output)
            return output

        return run

    numbers = range(math.ceil(len(work.texts) / size))
    spent = measured({candidate.name: runs(candidate) for candidate in candidates}, numbers, rounds, read)
    found = []
    for candidate in candidates:
        rows = spent[candidate.name]
        cpu, wall = ([[batch[clock] for batch in row] for row in rows] for clock in (0, 1))
        first = np.concatenate([np.asarray(_numbers(said[candidate.name][number])) for number in numbers])
        places = [place for places in batches[candidate.name] for place in places]
        logits = np.empty_like(first)
        logits[places] = first
        found.append(Timed(candidate, cpu, wall, logits))
    return found


def _numbers(logits: Any) -> Any:
    return logits.detach().float().numpy() if isinstance(logits, torch.Tensor) else logits


# -- what may be said --------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high}


def ratio(above: Timed, below: Timed, clock: str) -> dict[str, float]:
    """How many times as long `above` takes, the median of per-round ratios, with quartiles; above 1: `below` wins."""
    pairs = zip(_steady(above, clock), _steady(below, clock), strict=True)
    return spread([one / other for one, other in pairs])


def _steady(timed: Timed, clock: str) -> list[float]:
    return [sum(row) for row in getattr(timed, clock)[1:]]


def summary(timed: Timed, work: Workload, size: int, clock: str, peak: float | None) -> dict[str, Any]:
    """The numbers of one candidate at one batch size; `peak` is the measured FLOP/s of a matrix product.

    `ms` is per batch. `first_over_steady` is what new shapes cost, and all else that a first pass does once.
    """
    rounds, candidate = _steady(timed, clock), timed.candidate
    per_pass = statistics.median(rounds)
    batches = len(timed.cpu[0])
    useful = work.flops * candidate.weight / per_pass
    found: dict[str, Any] = {
        "name": candidate.name,
        "engine": candidate.engine.name,
        "role": candidate.role,
        "dtype": candidate.dtype,
        "order": candidate.order,
        "padded": candidate.padded,
        "batch_size": size,
        "seconds_per_pass": spread(rounds),
        "rounds": rounds,
        "first_pass": sum(getattr(timed, clock)[0]),
        "first_over_steady": sum(getattr(timed, clock)[0]) / per_pass,
        "ms": 1000 * per_pass / batches,
        "examples_per_s": len(work.texts) / per_pass,
        "tokens_per_s": work.tokens / per_pass,
        "useful_gflops": useful / 1e9,
        "share_of_peak": None if peak is None else useful / peak,
    }
    if size == 1:
        found["latency_ms"] = latencies(timed, clock)
        found["latency_ms_by_length"] = by_length(timed, work, clock)
    return found


def latencies(timed: Timed, clock: str) -> dict[str, float]:
    """p50, p95 and p99 over all requests of all counted rounds, in ms."""
    values = 1000 * np.concatenate([np.asarray(row) for row in getattr(timed, clock)[1:]])
    return {f"p{share}": float(np.quantile(values, share / 100)) for share in (50, 95, 99)}


def by_length(timed: Timed, work: Workload, clock: str) -> dict[str, dict[str, float | int]]:
    """Per bin of lengths in tokens, the median and p95 of each text's requests, in ms; empty bins are left out."""
    places = [place for (place,) in work.batches(1, timed.candidate.order)]
    lengths = np.array([len(work.texts[place]) for place in places])
    values = 1000 * np.asarray(getattr(timed, clock)[1:])
    edges = (0, *LENGTH_BINS, math.inf)
    found: dict[str, Any] = {}
    for low, high in pairwise(edges):
        inside = (lengths >= low) & (lengths < high)
        if inside.any():
            name = f"{low}-{high - 1}" if high != math.inf else f"{low} and more"
            some = values[:, inside]
            found[name] = {
                "texts": int(inside.sum()),
                "p50": float(np.median(some)),
                "p95": float(np.quantile(some, 0.95)),
            }
    return found


def quality(timed: Timed, work: Workload, reference: np.ndarray) -> dict[str, Any]:
    """What the times are worth: labels that agree with the reference, and the score where labels are known."""
    one, other = reference, timed.logits
    same = np.abs(one - other).max(-1) <= 1e-3 if one.shape[-1] == 1 else one.argmax(-1) == other.argmax(-1)
    return {
        "agrees": float(same.mean()),
        **({} if work.score is None else {"score": work.score(other)}),
    }


def control(found: Sequence[Timed], clock: str) -> float | None:
    """The control against what it is a second copy of: 1 on a quiet machine; None where there is none."""
    twin = [timed for timed in found if timed.candidate.role == "control"]
    dtype = twin[0].candidate.dtype if twin else ""
    unpruned = [timed for timed in found if timed.candidate.role == "unpruned" and timed.candidate.dtype == dtype]
    return ratio(twin[0], unpruned[0], clock)["median"] if unpruned and twin else None


def trusted(value: float | None) -> bool:
    """Whether a control allows what was measured beside it."""
    return value is not None and abs(value - 1) <= CONTROL_TOLERANCE


def comparisons(found: Sequence[Timed], size: int, clock: str) -> list[dict[str, Any]]:
    """The four ratios for each precision and each of our engines, above 1 where ours is faster.

    1 pruned against ourselves unpruned, beside the ratio of the FLOPs that both execute: `efficiency` is what of it is
      realised
    2 against the best peer whose batches are sorted by length and padded to their longest text
    3 against the best peer that computes no padding; at batch 1 nobody does
    4 against Hugging Face's eager model padded to the task's length: for comparison with papers only

    `vs_each` are all peers of the same precision, by name.
    """
    rows = []
    for own in found:
        if own.candidate.role not in ("pruned", "unpruned"):
            continue
        dtype, role = own.candidate.dtype, own.candidate.role
        peers = [t for t in found if t.candidate.role == "peer" and t.candidate.dtype == dtype]
        sorted_peers = [t for t in peers if t.candidate.padded and (t.candidate.order == "sorted" or size == 1)]
        unpadded = [t for t in peers if not t.candidate.padded or size == 1]
        row: dict[str, Any] = {"own": own.candidate.name, "role": role, "dtype": dtype, "batch_size": size}
        if role == "pruned":
            dense = [t for t in found if t.candidate.name == own.candidate.twin]
            if dense:
                realised = ratio(dense[0], own, clock)
                flops_ratio = dense[0].candidate.weight / own.candidate.weight
                row["vs_unpruned"] = {
                    **realised,
                    "against": dense[0].candidate.name,
                    "flops_ratio": flops_ratio,
                    "efficiency": realised["median"] / flops_ratio,
                }
        for name, group in (("vs_sorted", sorted_peers), ("vs_unpadded", unpadded)):
            best = min(group, key=lambda timed: statistics.median(_steady(timed, clock)), default=None)
            row[name] = None if best is None else {**ratio(best, own, clock), "against": best.candidate.name}
        row["vs_each"] = {peer.candidate.name: ratio(peer, own, clock) for peer in peers}
        eager = [t for t in found if t.candidate.role == "padded"]
        row["vs_padded_eager"] = {**ratio(eager[0], own, clock), "against": eager[0].candidate.name} if eager else None
        rows.append(row)
    return rows
