"""Build the engines under test: prunekit's own and the peers, with a record of those that could not be built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prunekit.bench.flops import Flops
from prunekit.bench.inputs import to_engine_inputs
from prunekit.bench.machine import measure_memory
from prunekit.bench.peers import Peer, PeerUnavailableError, build_padded_eager
from prunekit.bench.protocol import Candidate, Engine, Workload
from prunekit.bench.result import EngineRecord
from prunekit.bench.subject import BenchSubject
from prunekit.console import say
from prunekit.runtime import onnx_engine
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.extras import MissingPackageError, version
from prunekit.runtime.onnx_graph import NotExportableError

Built = TypeVar("Built", bound=Engine)
LONGEST_TEXTS = 32  # that an engine reads while its memory is measured


@dataclass(frozen=True)
class Plan:
    """What is asked of a measurement, whatever the number of threads."""

    batch_sizes: Sequence[int]
    rounds: int
    seconds: float | int | None  # after which a batch size ends early
    dtypes: Sequence[str]
    attention_backend: str  # of the packed engine
    warm: bool  # whether the packed engine compiles its products first


@dataclass(frozen=True)
class BenchContext:
    """Everything needed to build the engines under test on one number of threads."""

    subject: BenchSubject
    work: Workload
    flops: Flops
    plan: Plan
    threads: int
    scratch: Path  # a folder for graphs and conversions


@dataclass(frozen=True)
class EnginesUnderTest:
    """Engines as candidates, a record of each that was built, and a reason for each that was not."""

    candidates: Sequence[Candidate]
    records: Mapping[str, EngineRecord]
    absent: Mapping[str, str]

    @classmethod
    def join(cls, parts: Iterable[EnginesUnderTest]) -> EnginesUnderTest:
        """Return all engines of several parts."""
        parts = list(parts)
        return cls(
            [candidate for part in parts for candidate in part.candidates],
            {name: record for part in parts for name, record in part.records.items()},
            {name: reason for part in parts for name, reason in part.absent.items()},
        )


class PackedBenchEngine:
    """The packed engine as the protocol calls it."""

    def __init__(self, name: str, engine: PackedEngine, prune: bool) -> None:
        self.name = name
        self.engine = engine
        self.prune = prune

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Return the logits [batch, outputs] of token ids."""
        return self.engine(to_engine_inputs(batch), prune=self.prune).logits


def build_own_engines(context: BenchContext) -> EnginesUnderTest:
    """Build the packed engine, pruned and unpruned, with a second copy as the control, and the graph."""
    parts = []
    for number, dtype in enumerate(context.plan.dtypes):
        parts.append(_build_packed(context, dtype, has_control=number == 0))
        if dtype != "bf16" and not context.subject.is_quick:  # ONNX Runtime has no bf16 on a CPU
            variants = (False, True) if context.subject.prunes else (False,)
            parts += [_build_graph(context, dtype, prune) for prune in variants]
    return EnginesUnderTest.join(parts)


def _build_packed(context: BenchContext, dtype: str, has_control: bool) -> EnginesUnderTest:
    name, plan = f"prunekit packed {dtype}", context.plan

    def make() -> PackedBenchEngine:
        engine = PackedEngine(
            context.subject.model, dtype=dtype, threads=context.threads, attention=plan.attention_backend
        )
        return PackedBenchEngine(name, engine, prune=False)

    dense, peak_mb = _build(context, make)
    if plan.warm:
        dense.engine.warm()
    fused = dense.engine.fused
    record = EngineRecord(
        peak_mb=peak_mb,
        linears=dense.engine.layers[0].output.backend,
        attention="torch" if fused is None else fused.name,
    )
    unpruned, pruned = context.flops.packed
    twin = f"{name}, unpruned"
    candidates = [Candidate(twin, dense, "unpruned", dtype, weight=unpruned)]
    if has_control:
        candidates.append(Candidate("control", dense, "control", dtype, weight=unpruned))
    if context.subject.prunes:
        own = PackedBenchEngine(name, dense.engine, prune=True)
        candidates.append(Candidate(f"{name}, pruned", own, "pruned", dtype, weight=pruned, twin=twin))
    return EnginesUnderTest(candidates, {name: record}, {})


def _build_graph(context: BenchContext, dtype: str, prune: bool) -> EnginesUnderTest:
    """Build the graph of one text at a precision."""
    dense = f"prunekit onnx {dtype}, unpruned"
    name = f"prunekit onnx {dtype}, pruned" if prune else dense
    folder, subject = context.scratch / name.replace(", ", "_").replace(" ", "_"), context.subject

    def make() -> onnx_engine.GraphEngine:
        runtime = onnx_engine.OnnxRuntime(folder / onnx_engine.FILES[dtype], context.threads)
        return onnx_engine.GraphEngine(runtime, name)

    try:
        inputs = onnx_engine.graph_inputs(subject.folder)
        onnx_engine.write(subject.model, folder, inputs, int8=dtype == "int8", prune=prune)
        engine, peak_mb = _build(context, make)
    except (MissingPackageError, NotExportableError) as error:
        return EnginesUnderTest([], {}, {name: str(error).splitlines()[0]})
    weight, twin = context.flops.graph[prune], dense if prune else None
    candidate = Candidate(name, engine, "pruned" if prune else "unpruned", dtype, weight=weight, twin=twin)
    return EnginesUnderTest([candidate], {name: EngineRecord(peak_mb=peak_mb)}, {})


def build_peers(context: BenchContext, peers: Sequence[Peer]) -> EnginesUnderTest:
    """Build every peer that can run here, and Hugging Face's model padded as in papers."""
    parts = [_build_peer(context, peer) for peer in peers]
    if peers:
        subject = context.subject
        eager, peak_mb = _build(
            context, partial(build_padded_eager, subject.folder, context.threads, subject.padded_to)
        )
        candidate = Candidate(eager.name, eager, "padded", "fp32", padded=True)
        parts.append(EnginesUnderTest([candidate], {eager.name: EngineRecord(peak_mb=peak_mb)}, {}))
    return EnginesUnderTest.join(parts)


def _build_peer(context: BenchContext, peer: Peer) -> EnginesUnderTest:
    folder = context.subject.folder
    try:
        peer.prepare(folder, context.scratch)
        engine, peak_mb = _build(context, partial(peer.build, folder, context.threads, context.scratch))
    except Exception as error:  # somebody else's runtime must not end the measurement
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, PeerUnavailableError):
            reason = f"fails here: {reason[:120]}"
        say(f"absent     {peer.name}: {reason}")
        return EnginesUnderTest([], {}, {peer.name: reason})
    candidate = Candidate(peer.name, engine, "peer", peer.dtype, padded=peer.padded)
    record = EngineRecord(peak_mb=peak_mb, version=f"{peer.package} {version(peer.package)}")
    return EnginesUnderTest([candidate], {peer.name: record}, {})


def _build(context: BenchContext, make: Callable[[], Built]) -> tuple[Built, float | None]:
    """Build an engine and run its longest texts once; return it with the peak memory that this added, in MB."""
    longest = sorted(context.work.texts, key=len)[-LONGEST_TEXTS:]

    def build() -> Built:
        engine = make()
        engine.logits(longest)
        return engine

    return measure_memory(build)


def candidates_at(size: int, own: Sequence[Candidate], peers: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of a batch size: graphs at batch 1 alone, padded peers also on texts sorted by length."""
    chosen = [candidate for candidate in own if size == 1 or not candidate.name.startswith("prunekit onnx")]
    for candidate in peers:
        chosen.append(candidate)
        if size > 1 and candidate.padded and candidate.role == "peer":
            chosen.append(replace(candidate, name=f"{candidate.name}, sorted", order="sorted"))
    return chosen
