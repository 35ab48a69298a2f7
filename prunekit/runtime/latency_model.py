"""What each part of a forward pass takes on this machine, by rows and by lengths: measured once, kept in a file.

Time does not follow FLOPs where rows are few: a matrix product streams its weights however few rows it has, and rows
are rounded up (engine.py). So the parts are timed on a ladder of sizes, in the engine's own layers and in their own
order, so that weights come from where they will come from in service. A schedule's time is then a sum of table values.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from prunekit.files import atomic_write_text, json_sha256
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.inputs import rounded
from prunekit.runtime.kernels.native import native_attention
from prunekit.runtime.kernels.threads import threads as computing_with
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner

FORMAT = 2
# lengths of the texts that are timed; what lies between two is interpolated, what lies beyond goes on as the last two
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MOST_ROWS = 2048  # beyond, time is linear in rows and nothing is learned by waiting
LEAST_PASSES, MOST_PASSES, SECONDS = 3, 40, 0.2  # of each size: at least 3, then until so much is spent
Read = Callable[[], float]
Steps = tuple[tuple[float | int, float | int], ...]  # (size, ms), rising sizes


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of each part of a forward pass, at measured sizes.

    `enter` (the product before attention) and `finish` (all behind it) are of one layer by rows computed. `start`
    (embeddings), `attend` (attention of one layer) and `decide` (score, choice and removal at one layer, beside
    attention) are of one text by its length, in a batch of `batch` texts. `last` is what stands behind the layers, by
    rows: the head, and where `first_only` the whole last layer, which is then computed for the first token alone.
    """

    batch: int
    first_only: bool
    enter: Steps
    finish: Steps
    start: Steps
    attend: Steps
    decide: Steps
    last: Steps

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> LatencyModel:
        """What `asdict` and JSON made of one.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        curves = ("enter", "finish", "start", "attend", "decide", "last")
        tables = {name: tuple((float(size), float(ms)) for size, ms in stored[name]) for name in curves}
        if not all(tables.values()):
            raise ValueError("a part without a measured size")
        return cls(int(stored["batch"]), bool(stored["first_only"]), **tables)

    def milliseconds(
        self,
        tokens_in: Float[Tensor, "layers texts"],
        tokens_out: Float[Tensor, "layers texts"],
        batches: Int[Tensor, "batches texts_each"],
        decides: Iterable[int] = (),
    ) -> Float[np.ndarray, "batches"]:
        """Predicted time of each batch, if so many tokens of each text enter the two halves of each layer.

        `batches` are numbers of texts; `decides` the layers that decide who stays.
        """
        entering = tokens_in.double().numpy()[:, batches.numpy()]  # [layers, batches, texts_each]
        protected_count = tokens_out.double().numpy()[:, batches.numpy()]
        full = len(entering) - int(self.first_only)
        rows_in, rows_out = entering.sum(-1), protected_count.sum(-1)
        each = batches.shape[1]
        spent = at(self.start, entering[0]).sum(-1) + at(self.last, rows_in[-1])
        for layer in range(full):
            spent = spent + at(self.enter, computed(rows_in[layer], each)) + at(self.attend, entering[layer]).sum(-1)
            spent = spent + at(self.finish, computed(rows_out[layer], each))
        for layer in set(decides) & set(range(full)):
            spent = spent + at(self.decide, entering[layer]).sum(-1)
        return np.asarray(spent)


def at(steps: Steps, sizes: Num[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Milliseconds at these sizes: interpolated, below the first as there, beyond the last as steep as just before."""
    known, ms = np.array(steps, np.float64).T
    found = np.interp(sizes, known, ms)
    if len(known) > 1:
        slope = max(0.0, (ms[-1] - ms[-2]) / (known[-1] - known[-2]))
        found = found + slope * np.maximum(0.0, sizes - known[-1])
    return np.asarray(found)


def computed(rows: Num[np.ndarray, "batches"], texts: int) -> Float[np.ndarray, "batches"]:
    """Rows that the engine computes for so many, dummies included; fractions of a row count as whole."""
    return np.array([rounded(int(np.ceil(count - 1e-6)), texts) for count in rows], np.float64)


# -- measuring -------------------------------------------------------------------------------------------


def sizes(batch: int, longest: int) -> list[tuple[int, int]]:
    """Texts and length of each batch that is timed, the longest first; fewer texts where they would be `MOST_ROWS`."""
    lengths = [*(length for length in LENGTHS if length < longest), longest]
    return [(max(1, min(batch, MOST_ROWS // length)), length) for length in reversed(lengths)]


def measure(
    engine: PackedEngine,
    pruner: TokenPruner,
    batch: int,
    shapes: Iterable[tuple[int, int]],
    read: Read = time.process_time,
) -> LatencyModel:
    """Times the parts of `engine` at each shape of `sizes`; `pruner` says who scores, and from which layer on.

    `read` is a clock in seconds.
    """
    by_rows: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_length: dict[str, dict[int, float]] = defaultdict(dict)
    layers = len(engine.layers) - int(engine.cls_last)
    probe = _probe(pruner)
    with torch.inference_mode(), computing_with(engine.threads):
        for texts, length in shapes:
            ids = _uniform(engine, texts, length)
            parts = _typical(partial(_pass, engine, ids, read))
            decided = _typical(partial(_decision, engine, ids, probe, read))
            whole = rounded(texts * length, texts)
            for name in ("enter", "finish"):
                by_rows[name][whole].append(parts[name] / layers)
            by_length["start"][length] = parts["start"] / texts
            by_length["attend"][length] = parts["attend"] / layers / texts
            by_length["decide"][length] = max(0.0, decided["with"] - decided["without"]) / texts
            if texts == batch:
                by_rows["last"][texts * length].append(parts["last"])
    tables: dict[str, Steps] = {
        name: tuple((float(size), statistics.mean(ms)) for size, ms in sorted(found.items()))
        for name, found in by_rows.items()
    }
    tables |= {name: tuple((float(s), ms) for s, ms in sorted(found.items())) for name, found in by_length.items()}
    return LatencyModel(batch, engine.cls_last, **tables)


def _probe(pruner: TokenPruner) -> TokenPruner:
    """The method's scorer with a policy that removes half of each text at the method's first layer."""
    first = min(pruner.layers)
    half = KeepRatio({first: 0.5})
    stays, ends = pruner.protect_first, pruner.protect_last
    return TokenPruner(pruner.scorer, half, [first], protect_first=stays, protect_last=ends).eval()


def _uniform(engine: PackedEngine, texts: int, length: int) -> list[list[int]]:
    """Texts of one length; which tokens these are plays no part."""
    most = engine.config.vocab_size
    return [[(text + place) % most for place in range(length)] for text in range(texts)]


def _typical(once: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The median ms of each part over several passes, after one that does what is done once for a new shape."""
    once()
    found: list[Mapping[str, float]] = []
    while len(found) < LEAST_PASSES or (
        len(found) < MOST_PASSES and sum(sum(parts.values()) for parts in found) < SECONDS
    ):
        found.append(once())
    return {name: 1000 * statistics.median(parts[name] for parts in found) for name in found[0]}


def _pass(engine: PackedEngine, ids: list[list[int]], read: Read) -> dict[str, float]:
    """Seconds of each part of one unpruned forward pass, summed over the layers."""
    spent: dict[str, float] = dict.fromkeys(("start", "enter", "attend", "finish", "last"), 0.0)
    then = read()

    def took(part: str) -> None:
        nonlocal then
        now = read()
        spent[part] += now - then
        then = now

    walk = engine.begin(engine._rows(ids), None)
    took("start")
    full = engine.layers[: len(engine.layers) - int(engine.cls_last)]
    for index, layer in enumerate(full):
        product = layer.qkv(walk.hidden)
        took("enter")
        handed = walk.between(index, product, layer.heads, None)
        took("attend")
        walk.hidden = layer.finish(*handed)
        took("finish")
    hidden = walk.first_only(len(full), engine.layers[-1]) if engine.cls_last else walk.restored()
    engine._result(hidden, walk)
    took("last")
    return spent


def _decision(engine: PackedEngine, ids: list[list[int]], pruner: TokenPruner, read: Read) -> dict[str, float]:
    """Seconds of a layer's attention without and with a decision."""
    (index,) = pruner.layers
    rows, spent = engine._rows(ids), {}
    for name, who in (("without", None), ("with", pruner)):
        walk = engine.begin(rows, who)
        product = walk.hidden.repeat(1, 3)  # whatever is in it, attention costs the same
        start = read()
        walk.between(index, product, engine.layers[index].heads, who)
        spent[name] = read() - start
    return spent


# -- keeping ---------------------------------------------------------------------------------------------


def identity(
    pruner: TokenPruner, *, cpu: str, linears: str, dtype: str, threads: int, batch: int, longest: int, **model: Any
) -> dict[str, Any]:
    """All that a staircase hangs on: the machine, torch, the engine's backends, and the shape of the layers."""
    return {
        "format": FORMAT,
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "linears": linears,
        "attention": "torch" if native_attention() is None else "native",
        "dtype": dtype,
        "threads": threads,
        "batch": batch,
        "longest": longest,
        "scorer": [type(pruner.scorer).__name__, sorted(pruner.scorer.needs)],
        "decides_first": min(pruner.layers),
        **model,
    }


def place(folder: Path, known: Mapping[str, Any]) -> Path:
    """The file of the staircase of this identity."""
    return folder / f"{json_sha256(known)[:16]}.json"


def load(path: Path, known: Mapping[str, Any]) -> tuple[LatencyModel, str] | None:
    """The stored staircase and when it was measured; None where there is none of this identity, or a broken one."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["identity"] != json.loads(json.dumps(known)):
            return None
        return LatencyModel.from_json(stored["staircase"]), str(stored["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, known: Mapping[str, Any], found: LatencyModel, load_average: Sequence[float] | None) -> None:
    """Stores a staircase, whole or not at all; the load of the machine stands beside it for the reader."""
    content = {
        "identity": dict(known),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": load_average,
        "staircase": asdict(found),
    }
    atomic_write_text(path, json.dumps(content, indent=1) + "\n")
