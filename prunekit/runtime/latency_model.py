"""A latency model: the time of each part of a forward pass on this machine, measured once and cached in a file.

With few rows, time is not proportional to FLOPs: a matrix product reads all its weights however few rows it has, and
rows are rounded up (inputs.py). So each part is timed at a range of sizes, in the engine's own layers and in their
order, so that caches are as cold as in service. The time of a schedule is then a sum of interpolated table values.
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

from prunekit.files import damage, json_sha256, write_sealed_text
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.inputs import round_up
from prunekit.runtime.kernels.native import native_attention
from prunekit.runtime.kernels.threads import threads as use_threads
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner

FORMAT = 2
# lengths of the timed texts; in between, times are interpolated, beyond, extrapolated from the last two
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MOST_ROWS = 2048  # beyond this, time is linear in rows and measuring it teaches nothing
LEAST_PASSES, MOST_PASSES, SECONDS = 3, 40, 0.2  # per size: at least 3 passes, then until 40 passes or 0.2 s
Read = Callable[[], float]
Steps = tuple[tuple[float | int, float | int], ...]  # (size, ms), rising sizes


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of each part of a forward pass, at measured sizes.

    `enter` (the product before attention) and `finish` (everything after attention) are per layer, by computed rows.
    `start` (embeddings), `attend` (attention of one layer) and `decide` (scores, decision and removal at one layer,
    besides attention) are per text, by its length, in a batch of `batch` texts. `last` is what follows the layers, by
    rows: the head and, with `first_only`, the whole last layer, which is then computed for the first token only.
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
        """Read a model back from the JSON of its `asdict`.

        Raises:
            KeyError, TypeError, ValueError: `stored` is not a latency model.
        """
        parts = ("enter", "finish", "start", "attend", "decide", "last")
        tables = {name: tuple((float(size), float(ms)) for size, ms in stored[name]) for name in parts}
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
        """Predict the time of each batch from the tokens of each text that enter attention and feed-forward per layer.

        `batches` are indices of texts; `decides` are the decision layers.
        """
        attended = tokens_in.double().numpy()[:, batches.numpy()]  # [layers, batches, texts_each]
        kept = tokens_out.double().numpy()[:, batches.numpy()]
        full = len(attended) - int(self.first_only)
        rows_in, rows_out = attended.sum(-1), kept.sum(-1)
        texts = batches.shape[1]
        ms = interpolate(self.start, attended[0]).sum(-1) + interpolate(self.last, rows_in[-1])
        for layer in range(full):
            ms = ms + interpolate(self.enter, computed_rows(rows_in[layer], texts))
            ms = ms + interpolate(self.attend, attended[layer]).sum(-1)
            ms = ms + interpolate(self.finish, computed_rows(rows_out[layer], texts))
        for layer in set(decides) & set(range(full)):
            ms = ms + interpolate(self.decide, attended[layer]).sum(-1)
        return np.asarray(ms)


def interpolate(steps: Steps, sizes: Num[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the milliseconds at these sizes: linear between steps, constant below the first, and beyond the last
    with the slope of the last two, or flat if that falls.
    """
    known, ms = np.array(steps, np.float64).T
    inside = np.interp(sizes, known, ms)
    if len(known) == 1:
        return np.asarray(inside)
    slope = max(0.0, (ms[-1] - ms[-2]) / (known[-1] - known[-2]))
    return np.asarray(inside + slope * np.maximum(0.0, sizes - known[-1]))


def computed_rows(rows: Num[np.ndarray, "batches"], texts: int) -> Float[np.ndarray, "batches"]:
    """Return how many rows the engine computes for `rows` tokens, dummy rows included; fractions are rounded up."""
    return np.array([round_up(int(np.ceil(count - 1e-6)), texts) for count in rows], np.float64)


# -- measuring -------------------------------------------------------------------------------------------


def sizes(batch: int, longest: int) -> list[tuple[int, int]]:
    """Return (texts, length) of each timed batch, longest first; fewer texts where rows would exceed `MOST_ROWS`."""
    lengths = [*(length for length in LENGTHS if length < longest), longest]
    return [(max(1, min(batch, MOST_ROWS // length)), length) for length in reversed(lengths)]


def measure(
    engine: PackedEngine,
    pruner: TokenPruner,
    batch: int,
    shapes: Iterable[tuple[int, int]],
    read: Read = time.process_time,
) -> LatencyModel:
    """Time the parts of `engine` at each shape of `sizes`, with the scorer and the first decision layer of `pruner`.

    `read` is a clock in seconds.
    """
    by_rows: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    by_length: dict[str, dict[int, float]] = defaultdict(dict)
    layers = len(engine.layers) - int(engine.cls_last)
    probe = _probe(pruner)
    with torch.inference_mode(), use_threads(engine.threads):
        for texts, length in shapes:
            ids = _uniform_texts(engine, texts, length)
            parts = _median_ms(partial(_time_pass, engine, ids, read))
            decision = _median_ms(partial(_time_decision, engine, ids, probe, read))
            rows = round_up(texts * length, texts)
            for name in ("enter", "finish"):
                by_rows[name][rows].append(parts[name] / layers)
            by_length["start"][length] = parts["start"] / texts
            by_length["attend"][length] = parts["attend"] / layers / texts
            by_length["decide"][length] = max(0.0, decision["with"] - decision["without"]) / texts
            if texts == batch:
                by_rows["last"][texts * length].append(parts["last"])
    tables: dict[str, Steps] = {
        name: tuple((float(size), statistics.mean(ms)) for size, ms in sorted(times.items()))
        for name, times in by_rows.items()
    }
    tables |= {name: tuple((float(s), ms) for s, ms in sorted(times.items())) for name, times in by_length.items()}
    return LatencyModel(batch, engine.cls_last, **tables)


def _probe(pruner: TokenPruner) -> TokenPruner:
    """Return the method's scorer with a policy that drops half of each text at the method's first decision layer."""
    first = min(pruner.layers)
    return TokenPruner(
        pruner.scorer,
        KeepRatio({first: 0.5}),
        [first],
        protect_first=pruner.protect_first,
        protect_last=pruner.protect_last,
    ).eval()


def _uniform_texts(engine: PackedEngine, texts: int, length: int) -> list[list[int]]:
    """Return token ids of texts of one length; which ids they are does not affect the time."""
    most = engine.config.vocab_size
    return [[(text + place) % most for place in range(length)] for text in range(texts)]


def _median_ms(time_once: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Return the median ms of each part over several passes, after one warm-up pass for the new shape."""
    time_once()
    passes: list[Mapping[str, float]] = []
    while len(passes) < LEAST_PASSES or (
        len(passes) < MOST_PASSES and sum(sum(parts.values()) for parts in passes) < SECONDS
    ):
        passes.append(time_once())
    return {name: 1000 * statistics.median(parts[name] for parts in passes) for name in passes[0]}


def _time_pass(engine: PackedEngine, ids: list[list[int]], read: Read) -> dict[str, float]:
    """Return the seconds of each part of one unpruned forward pass, summed over the layers."""
    spent: dict[str, float] = dict.fromkeys(("start", "enter", "attend", "finish", "last"), 0.0)
    then = read()

    def add_time(part: str) -> None:
        nonlocal then
        now = read()
        spent[part] += now - then
        then = now

    forward_pass = engine.begin(engine._rows(ids), None)
    add_time("start")
    full = engine.layers[: len(engine.layers) - int(engine.cls_last)]
    for index, layer in enumerate(full):
        qkv = layer.qkv(forward_pass.hidden)
        add_time("enter")
        mixed, hidden = forward_pass.attend_and_drop(index, qkv, layer.heads, None)
        add_time("attend")
        forward_pass.hidden = layer.finish(mixed, hidden)
        add_time("finish")
    if engine.cls_last:
        output = forward_pass.finish_first_only(len(full), engine.layers[-1])
    else:
        output = forward_pass.restore()
    engine._result(output, forward_pass)
    add_time("last")
    return spent


def _time_decision(engine: PackedEngine, ids: list[list[int]], pruner: TokenPruner, read: Read) -> dict[str, float]:
    """Return the seconds of one layer's attention without and with a decision."""
    (index,) = pruner.layers
    rows, spent = engine._rows(ids), {}
    for name, decider in (("without", None), ("with", pruner)):
        forward_pass = engine.begin(rows, decider)
        qkv = forward_pass.hidden.repeat(1, 3)  # attention costs the same whatever the values
        start = read()
        forward_pass.attend_and_drop(index, qkv, engine.layers[index].heads, decider)
        spent[name] = read() - start
    return spent


# -- the cache -------------------------------------------------------------------------------------------


def identity(
    pruner: TokenPruner, *, cpu: str, linears: str, dtype: str, threads: int, batch: int, longest: int, **model: Any
) -> dict[str, Any]:
    """Return everything that a latency model depends on: machine, torch, engine, scorer, batch and layer shapes."""
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
    """Return the file of the latency model with this identity."""
    return folder / f"{json_sha256(known)[:16]}.json"


def load(path: Path, known: Mapping[str, Any]) -> tuple[LatencyModel, str] | None:
    """Return the stored latency model and when it was measured; None if it is missing, damaged or another one's."""
    try:
        if damage(path) is not None:
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["identity"] != json.loads(json.dumps(known)):
            return None
        return LatencyModel.from_json(stored["staircase"]), str(stored["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(path: Path, known: Mapping[str, Any], model: LatencyModel, load_average: Sequence[float] | None) -> None:
    """Write a latency model atomically, sealed; the machine's load average is stored with it for information only."""
    content = {
        "identity": dict(known),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": load_average,
        "staircase": asdict(model),
    }
    write_sealed_text(path, json.dumps(content, indent=1) + "\n")
