"""Build the engines under test: prunekit's own, the peers, and a record of those that could not be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.bench.flops import Flops
from prunekit.bench.machine import _memory
from prunekit.bench.subject import BenchSubject

if TYPE_CHECKING:
    from prunekit.bench.peers import Peer, Runs
    from prunekit.bench.protocol import Candidate, Workload


@dataclass(frozen=True)
class Plan:
    """What is asked of a measurement, whatever the number of threads."""

    sizes: Sequence[int]  # of batches
    rounds: int
    seconds: float | int | None  # after which a batch size ends early
    dtypes: Sequence[str]
    attend_by: str  # backend of the packed engine
    warm: bool  # whether that is warmed up first


@dataclass(frozen=True)
class BenchContext:
    """Where engines are made to be timed: for whom and on how many threads, and where is noted what became of them."""

    subject: BenchSubject
    work: Workload
    threads: int
    scratch: Path  # for files of graphs and conversions
    flops: Flops
    absent: dict[str, str]  # name -> why it could not be made
    engines: dict[str, Any]  # name -> what is known about it
    plan: Plan


def _own(shop: BenchContext, dtypes: Sequence[str]) -> Iterator[Candidate]:
    """prunekit's own engines: packed, pruned and unpruned, with a second copy as the control; and the graph."""
    from prunekit.bench.protocol import Candidate
    from prunekit.runtime.engine import PackedEngine

    for position, dtype in enumerate(dtypes):

        def packed(dtype: str = dtype) -> Runs:
            engine = PackedEngine(shop.subject.model, dtype=dtype, threads=shop.threads, attention=shop.plan.attend_by)
            return Packed(f"prunekit packed {dtype}", engine, prune=False)

        dense: Any = _built(shop, packed)
        if shop.plan.warm:
            dense.engine.warm()
        name = f"prunekit packed {dtype}"
        fused = dense.engine.fused
        shop.engines[name] |= {
            "linears": dense.engine.layers[0].output.backend,
            "attention": "torch" if fused is None else fused.name,
        }
        unpruned, pruned = shop.flops.packed
        yield Candidate(f"{name}, unpruned", dense, "unpruned", dtype, weight=unpruned)
        if position == 0:
            yield Candidate("control", dense, "control", dtype, weight=unpruned)
        if shop.subject.prunes:
            ours = Packed(name, dense.engine, prune=True)
            twin = f"{name}, unpruned"
            yield Candidate(f"{name}, pruned", ours, "pruned", dtype, weight=pruned, twin=twin)
        if dtype == "bf16" or shop.subject.quick:  # ONNX Runtime has no bf16 on a CPU
            continue
        yield from _graphs(shop, dtype)


def _graphs(shop: BenchContext, dtype: str) -> Iterator[Candidate]:
    """The graph of one text, unpruned and pruned, at a precision."""
    from prunekit.bench.protocol import Candidate
    from prunekit.runtime import onnx_engine
    from prunekit.runtime.extras import MissingPackageError
    from prunekit.runtime.onnx_graph import NotExportableError

    dense = f"prunekit onnx {dtype}, unpruned"
    for prune in (False, True) if shop.subject.prunes else (False,):
        name = f"prunekit onnx {dtype}, pruned" if prune else dense
        path = shop.scratch / name.replace(", ", "_").replace(" ", "_")
        try:
            inputs = onnx_engine.graph_inputs(shop.subject.folder)
            onnx_engine.write(shop.subject.model, path, inputs, int8=dtype == "int8", prune=prune)
            file = path / onnx_engine.FILES[dtype]

            def opened(file: Path = file, name: str = name) -> Runs:
                return onnx_engine.GraphEngine(onnx_engine.OnnxRuntime(file, shop.threads), name)

            engine = _built(shop, opened)
        except (MissingPackageError, NotExportableError) as error:
            shop.absent[name] = str(error).splitlines()[0]
            continue
        if prune:
            yield Candidate(name, engine, "pruned", dtype, weight=shop.flops.graph[1], twin=dense)
        else:
            yield Candidate(name, engine, "unpruned", dtype, weight=shop.flops.graph[0])


class Packed:
    """The packed engine as the protocol calls it."""

    def __init__(self, name: str, engine: Any, prune: bool) -> None:
        self.name = name
        self.engine = engine
        self.prune = prune

    def logits(self, batch: Sequence[Sequence[int]]) -> Any:
        """Logits of token ids; pairs of texts, which have token types, go in as a padded batch."""
        import torch

        if all(getattr(ids, "types", None) is None for ids in batch):
            return self.engine(list(batch), prune=self.prune).logits
        from prunekit.bench.peers import Inputs

        given = Inputs(0, True).padded(batch)
        return self.engine({key: torch.from_numpy(array) for key, array in given.items()}, prune=self.prune).logits


def _peers(shop: BenchContext, taken: Sequence[Peer]) -> Iterator[Candidate]:
    """Every peer that can run, and who is padded as papers pad; the others are noted in `absent`."""
    from prunekit.bench.peers import PeerUnavailableError, eager_padded
    from prunekit.bench.protocol import Candidate
    from prunekit.console import say
    from prunekit.runtime.extras import version

    subject = shop.subject
    for peer in taken:
        try:
            peer.prepare(subject.folder, shop.scratch)
            engine = _built(shop, lambda peer=peer: peer.build(subject.folder, shop.threads, shop.scratch))  # type: ignore[misc]
        except Exception as error:  # somebody else's runtime must not end the measurement
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            shop.absent[peer.name] = (
                reason if isinstance(error, PeerUnavailableError) else f"fails here: {reason[:120]}"
            )
            say(f"absent     {peer.name}: {shop.absent[peer.name]}")
            continue
        shop.engines[peer.name]["version"] = f"{peer.package} {version(peer.package)}"
        yield Candidate(peer.name, engine, "peer", peer.dtype, padded=peer.padded)
    if taken:
        eager = _built(shop, lambda: eager_padded(subject.folder, shop.threads, subject.padded_to))
        yield Candidate(eager.name, eager, "padded", "fp32", padded=True)


def _candidates(own: Sequence[Candidate], others: Sequence[Candidate], size: int) -> Iterator[Candidate]:
    """Who runs at a batch size: graphs of one text at batch 1 alone, padded peers also on batches of like lengths."""
    from dataclasses import replace

    for candidate in own:
        if size == 1 or not candidate.name.startswith("prunekit onnx"):
            yield candidate
    for candidate in others:
        yield candidate
        if size > 1 and candidate.padded and candidate.role == "peer":
            yield replace(candidate, name=f"{candidate.name}, sorted", order="sorted")


def _built(shop: BenchContext, make: Callable[[], Runs]) -> Runs:
    """An engine, and how much memory making it and its largest batch took at most beside what was there before."""
    longest = sorted(shop.work.texts, key=len)[-32:]
    with _memory() as peak:
        engine = make()
        engine.logits(longest)
    shop.engines[engine.name] = {"peak_mb": peak[0]}
    return engine
