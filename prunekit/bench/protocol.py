"""The protocol of `prunekit bench`: engines, texts, interleaved rounds, and the statistics of their times.

An engine is anything with a `name` and `logits(batch of token id lists) -> [batch, outputs]`. Nothing here knows which
engines there are, or reads a clock except through `clocks`; tests pass in both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from prunekit.bench.result import Comparison, LengthLatency, Measurement, PeerRatio, PruningRatio, Spread
from prunekit.bench.timing import time_batches
from prunekit.models.answers import Answers

Order = Literal["random", "sorted"]
Role = Literal["pruned", "unpruned", "control", "peer", "padded"]
# the machine was not quiet if the control differs by more from the engine that it is a copy of
CONTROL_TOLERANCE = 0.02
LENGTH_BINS = (16, 32, 64, 128, 256)
LEAST_ROUNDS = 3


class BenchError(ValueError):
    """A request that cannot be measured; the message says what can."""


@runtime_checkable
class Engine(Protocol):
    """A model in a runtime, to be timed."""

    name: str

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Return the logits [batch, outputs] of texts, given as token ids."""


class Encoded(list[int]):
    """The token ids of a text; `types` are its token types, for models that have them."""

    types: list[int] | None = None


@dataclass(frozen=True)
class Candidate:
    """An engine in one role: `order` is the order of its texts, `padded` whether it computes padding.

    `weight` is the share that it executes of the FLOPs of the same texts unpruned and unpadded, in all layers: 1 for
    peers. `twin` names the candidate that is the same engine without pruning, if it prunes.
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
    """The texts, in a seeded order that no engine has seen; `flops` are those of all texts, dense and unpadded."""

    texts: Sequence[Encoded]
    flops: float
    answers: Answers  # how the logits of a text are read
    seed: int = 0
    score: Callable[[np.ndarray], dict[str, float]] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """The number of real tokens of all texts."""
        return sum(map(len, self.texts))

    def batches(self, size: int, order: Order) -> list[list[int]]:
        """Return the numbers of the texts in each batch; "sorted" by length, as a service could that waits for more."""
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
    """The seconds of one candidate by round (the first is the first pass) and batch, on both clocks, and its logits."""

    candidate: Candidate
    cpu: list[list[float]]
    wall: list[list[float]]
    logits: np.ndarray


def clocks() -> tuple[float, float]:
    """Return the process CPU time of all threads, and wall time, in seconds."""
    return time.process_time(), time.perf_counter()


def rounds_within(
    rounds: int, seconds: float | int | None, now: Callable[[], float] = time.perf_counter
) -> Iterator[int]:
    """Yield 0 for the first pass, then the counted rounds; stop after `seconds`, but not before three were counted."""
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
    """Time all candidates on the same texts at one batch size; logits are those of the first pass."""
    batches = {candidate.name: work.batches(size, candidate.order) for candidate in candidates}
    if len(batches) != len(candidates):
        raise BenchError(f"two candidates have one name: {', '.join(candidate.name for candidate in candidates)}.")
    inputs = {name: [[work.texts[place] for place in places] for places in some] for name, some in batches.items()}
    outputs: dict[str, dict[int, Any]] = {candidate.name: {} for candidate in candidates}

    def run_batch(candidate: Candidate, number: int) -> None:
        logits = candidate.engine.logits(inputs[candidate.name][number])
        outputs[candidate.name].setdefault(number, logits)

    numbers = range(math.ceil(len(work.texts) / size))
    spent = time_batches({one.name: partial(run_batch, one) for one in candidates}, numbers, rounds, read)
    timed = []
    for candidate in candidates:
        rows = spent[candidate.name]
        cpu, wall = ([[batch[clock] for batch in row] for row in rows] for clock in (0, 1))
        first = np.concatenate([_to_array(outputs[candidate.name][number]) for number in numbers])
        places = [place for places in batches[candidate.name] for place in places]
        logits = np.empty_like(first)
        logits[places] = first
        timed.append(Timed(candidate, cpu, wall, logits))
    return timed


def _to_array(logits: Any) -> np.ndarray:
    return np.asarray(logits.detach().float().numpy() if isinstance(logits, torch.Tensor) else logits)


# -- statistics --------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75]).tolist()
    return Spread(median=middle, q25=low, q75=high)


def ratio(above: Timed, below: Timed, clock: str) -> Spread:
    """Return how many times as long `above` takes: the spread of per-round ratios; above 1, `below` is faster."""
    pairs = zip(_counted_rounds(above, clock), _counted_rounds(below, clock), strict=True)
    return spread([one / other for one, other in pairs])


def _counted_rounds(timed: Timed, clock: str) -> list[float]:
    """Return the seconds of each round but the first."""
    return [sum(row) for row in getattr(timed, clock)[1:]]


def summarise(
    timed: Timed, work: Workload, size: int, clock: str, peak: float | None, reference: np.ndarray
) -> Measurement:
    """Return the numbers of one candidate at one batch size.

    `peak` is the measured FLOP/s of a matrix product, `reference` the logits that labels are compared with.
    """
    rounds, candidate = _counted_rounds(timed, clock), timed.candidate
    per_pass = statistics.median(rounds)
    first_pass = sum(getattr(timed, clock)[0])
    useful = work.flops * candidate.weight / per_pass
    return Measurement(
        name=candidate.name,
        engine=candidate.engine.name,
        role=candidate.role,
        dtype=candidate.dtype,
        order=candidate.order,
        padded=candidate.padded,
        batch_size=size,
        seconds_per_pass=spread(rounds),
        rounds=tuple(rounds),
        first_pass=first_pass,
        first_over_steady=first_pass / per_pass,
        ms=1000 * per_pass / len(timed.cpu[0]),
        examples_per_s=len(work.texts) / per_pass,
        tokens_per_s=work.tokens / per_pass,
        useful_gflops=useful / 1e9,
        share_of_peak=None if peak is None else useful / peak,
        latency_ms=latencies(timed, clock) if size == 1 else None,
        latency_ms_by_length=latencies_by_length(timed, work, clock) if size == 1 else None,
        agrees=label_agreement(timed.logits, reference, work.answers),
        score=None if work.score is None else work.score(timed.logits),
    )


def latencies(timed: Timed, clock: str) -> dict[str, float]:
    """Return p50, p95 and p99 over all requests of all counted rounds, in ms."""
    values = 1000 * np.concatenate([np.asarray(row) for row in getattr(timed, clock)[1:]])
    return {f"p{share}": float(np.quantile(values, share / 100)) for share in (50, 95, 99)}


def latencies_by_length(timed: Timed, work: Workload, clock: str) -> dict[str, LengthLatency]:
    """Return the median and p95 of requests per range of lengths in tokens; ranges without a text are left out."""
    places = [place for (place,) in work.batches(1, timed.candidate.order)]
    lengths = np.array([len(work.texts[place]) for place in places])
    values = 1000 * np.asarray(getattr(timed, clock)[1:])
    by_length = {}
    for low, high in pairwise((0, *LENGTH_BINS, math.inf)):
        inside = (lengths >= low) & (lengths < high)
        if inside.any():
            name = f"{low}-{high - 1}" if high != math.inf else f"{low} and more"
            by_length[name] = LengthLatency(
                texts=int(inside.sum()),
                p50=float(np.median(values[:, inside])),
                p95=float(np.quantile(values[:, inside], 0.95)),
            )
    return by_length


def label_agreement(logits: np.ndarray, reference: np.ndarray, answers: Answers) -> float:
    """Return the share of texts with the same label or labels, or under regression a value within 1e-3."""
    return float(answers.agree(torch.from_numpy(reference), torch.from_numpy(logits)).double().mean())


def control_ratio(found: Sequence[Timed], clock: str) -> float | None:
    """Return the control's time over that of the engine that it copies: 1 on a quiet machine, None without control."""
    twin = [timed for timed in found if timed.candidate.role == "control"]
    dtype = twin[0].candidate.dtype if twin else ""
    unpruned = [timed for timed in found if timed.candidate.role == "unpruned" and timed.candidate.dtype == dtype]
    return ratio(twin[0], unpruned[0], clock).median if unpruned and twin else None


def is_trusted(control: float | None) -> bool:
    """Return whether the control says that the machine was quiet."""
    return control is not None and abs(control - 1) <= CONTROL_TOLERANCE


def compare(found: Sequence[Timed], size: int, clock: str) -> list[Comparison]:
    """Return the four ratios for each precision and each of our engines, above 1 where ours is faster.

    1 pruned against the same engine unpruned, beside the ratio of the FLOPs that both execute
    2 against the best peer whose batches are sorted by length and padded to their longest text
    3 against the best peer that computes no padding; at batch 1 nobody does
    4 against Hugging Face's eager model padded to the task's length: for comparison with papers only

    `vs_each` are all peers of the same precision, by name.
    """
    ours = [timed for timed in found if timed.candidate.role in ("pruned", "unpruned")]
    return [_compare_one(own, found, size, clock) for own in ours]


def _compare_one(own: Timed, found: Sequence[Timed], size: int, clock: str) -> Comparison:
    dtype = own.candidate.dtype
    peers = [t for t in found if t.candidate.role == "peer" and t.candidate.dtype == dtype]
    sorted_peers = [t for t in peers if t.candidate.padded and (t.candidate.order == "sorted" or size == 1)]
    unpadded = [t for t in peers if not t.candidate.padded or size == 1]
    return Comparison(
        own=own.candidate.name,
        role=own.candidate.role,
        dtype=dtype,
        batch_size=size,
        vs_unpruned=_compare_unpruned(own, found, clock) if own.candidate.role == "pruned" else None,
        vs_sorted=_compare_best(own, sorted_peers, clock),
        vs_unpadded=_compare_best(own, unpadded, clock),
        vs_each={peer.candidate.name: ratio(peer, own, clock) for peer in peers},
        vs_padded_eager=_compare_best(own, [t for t in found if t.candidate.role == "padded"], clock),
    )


def _compare_unpruned(own: Timed, found: Sequence[Timed], clock: str) -> PruningRatio | None:
    twin = next((timed for timed in found if timed.candidate.name == own.candidate.twin), None)
    if twin is None:
        return None
    realised, flops_ratio = ratio(twin, own, clock), twin.candidate.weight / own.candidate.weight
    return PruningRatio(
        **vars(realised),
        against=twin.candidate.name,
        flops_ratio=flops_ratio,
        efficiency=realised.median / flops_ratio,
    )


def _compare_best(own: Timed, group: Sequence[Timed], clock: str) -> PeerRatio | None:
    """Return the ratio to the fastest of a group; None where the group is empty."""
    best = min(group, key=lambda timed: statistics.median(_counted_rounds(timed, clock)), default=None)
    return None if best is None else PeerRatio(**vars(ratio(best, own, clock)), against=best.candidate.name)
