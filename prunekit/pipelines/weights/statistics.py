"""Collect calibration statistics of all matrices, and keep them in a cache folder.

A file of statistics is named by a hash of everything that it depends on: the dense model, the calibration tokens and a
few options. Another sparsity, group or lambda therefore reuses it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from prunekit.config.errors import first_line
from prunekit.console import say, track
from prunekit.data.text.samples import samples_digest
from prunekit.files import damage, json_sha256, write_sealed
from prunekit.methods.weight_base import Need, Statistic, Statistics, WeightOptions
from prunekit.pipelines.weights.calibration import Calibration
from prunekit.pipelines.weights.loading import LoadedModel
from prunekit.runs.storage import keep_in_cache
from prunekit.weights.decoder import Matrices, weight_of
from prunekit.weights.disk import StoredTensors, merge_files, save_atomically
from prunekit.weights.gradients import stream_gradients
from prunekit.weights.grams import Gram, stream_grams
from prunekit.weights.importance import GradientSums, Metric, Sum, general_importance, normalise
from prunekit.weights.streaming import Sample

STATISTICS = 1  # version of the cached statistics: raise it when their meaning changes
STORED = torch.bfloat16


@dataclass(frozen=True)
class CollectedStatistic:
    """One statistic of all matrices, over `samples` sequences; `<matrix>.<statistic>` names each tensor.

    `file` is its name in the cache; `seconds` is None if it was there already.
    """

    need: Need
    tensors: Mapping[str, Tensor]
    samples: int
    file: str
    seconds: float | None

    def of_matrix(self, matrix: str) -> Tensor:
        """Return the statistic of one matrix in float32."""
        return self.tensors[f"{matrix}.{self.need.what}"].float()


@dataclass(frozen=True)
class StatisticsStore:
    """The statistics of a model that is not pruned yet: read from the folder `cache`, or computed and put there."""

    loaded: LoadedModel
    calibration: Calibration
    options: WeightOptions
    cache: Path
    scratch: Path

    def collect(self, need: Need) -> CollectedStatistic:
        """Return one statistic of all matrices."""
        samples = self.calibration.samples[need.on]
        path = self.cache / f"{need.what}-{need.on}-{self._digest(need)[:16]}.safetensors"
        if path.is_file() and (stored := _read_stored(path)) is not None:
            say(f"reused     {need.what} on {need.on}: {path}")
            return CollectedStatistic(need, stored, len(samples), path.name, seconds=None)
        start = time.monotonic()
        parts = self._collect(need)
        # renamed when it is complete: another run may read the same cache
        merge = partial(merge_files, parts, header={"format": "pt"})
        if keep_in_cache(path, lambda: write_sealed(path, merge)):
            place = path
        else:
            place = self.scratch.parent / path.name
            merge(place)
        shutil.rmtree(self.scratch)
        return CollectedStatistic(need, StoredTensors(place), len(samples), path.name, seconds=time.monotonic() - start)

    def _digest(self, need: Need) -> str:
        key = {
            "version": STATISTICS,
            "what": need.what,
            "model": self.loaded.identity,
            "tokens": samples_digest(self.calibration.samples[need.on]),
            "scope": self.options.scope,
            "general": [need.metric, self.options.damping] if need.what == "general" else None,
        }
        return json_sha256(key)

    def _collect(self, need: Need) -> list[Path]:
        """Compute a statistic and return its files, one per block, so that only one block's is in memory."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        if need.what == "general" or need.what == "norms":
            self._collect_from_inputs(need)
        else:
            self._collect_from_gradients(need.what, self.calibration.sequences(need.on))
        return [self._part(number) for number, matrices in enumerate(self.loaded.blocks) if matrices]

    def _part(self, number: int) -> Path:
        return self.scratch / f"{number:05d}.safetensors"

    def _put(self, number: int, what: Statistic, values: Mapping[str, Tensor]) -> None:
        tensors = {f"{name}.{what}": tensor.to(STORED).cpu() for name, tensor in values.items()}
        if tensors:  # none if method.scope matches nothing in this block
            save_atomically(tensors, self._part(number))

    def _collect_from_inputs(self, need: Need) -> None:
        """Collect what the Gram matrices of the layers' inputs give."""
        blocks = self.loaded.blocks

        def visit(number: int, grams: dict[str, Gram]) -> bool:
            if need.what == "norms":
                self._put(number, need.what, {name: gram.norms for name, gram in grams.items()})
            else:
                general = _general_importance(blocks[number], grams, need.metric, self.options.damping)
                self._put(number, need.what, general)
            return False

        sequences = self.calibration.sequences(need.on)
        stream_grams(self.loaded.model, sequences, blocks, visit, partial(track, label=need.what))

    def _collect_from_gradients(self, what: Sum, sequences: Sequence[Sample]) -> None:
        """Collect a sum over the sequences' gradients, `method.chunk` sequences at a time."""
        blocks = self.loaded.blocks
        sums: dict[str, GradientSums] = {}
        seen = [0] * len(blocks)  # samples whose gradients are summed, per block

        @contextmanager
        def around(number: int) -> Iterator[None]:
            """Add a chunk's gradients of one block to those of earlier chunks, which wait in a file, in float32."""
            path = self.scratch / f"sums-{number:05d}.safetensors"
            earlier = StoredTensors(path) if path.is_file() else None
            for name, module in blocks[number].items():
                own: dict[str, Tensor] | None = None if earlier is None else {what: earlier[name]}
                sums[name] = GradientSums(weight_of(module), [what], earlier=own, samples=seen[number])
            yield
            if not sums:
                return
            seen[number] = max(total.samples for total in sums.values())
            done = seen[number] == len(sequences)
            if done:
                for total in sums.values():
                    total.all_reduce()
            values = {name: total.state[what] for name, total in sums.items()}
            sums.clear()
            if done:
                self._put(number, what, values)
                path.unlink(missing_ok=True)
            else:
                save_atomically({name: tensor.cpu() for name, tensor in values.items()}, path)

        stream_gradients(
            self.loaded.model,
            sequences,
            blocks,
            lambda name, gradient: sums[name].add(gradient),
            chunk=self.options.chunk,
            progress=partial(track, label=f"gradients ({what})"),
            around=around,
        )


def _read_stored(path: Path) -> StoredTensors | None:
    """Return the tensors of a file in the cache; None where it is damaged, which is printed."""
    wrong = damage(path)
    if wrong is None:
        try:
            return StoredTensors(path)
        except (OSError, SafetensorError) as error:
            wrong = f"cannot be read ({first_line(error)})"
    say(f"cache      {path} {wrong}; it is made again.")
    return None


def _general_importance(
    matrices: Matrices, grams: dict[str, Gram], metric: Metric, damping: float | int
) -> dict[str, Tensor]:
    """Return the normalised general importance of one block's matrices; `grams` is emptied to free their memory."""
    found = {}
    while grams:
        gram = grams[next(iter(grams))]
        # one factorisation for the layers that share an input; then their Gram is freed
        weights = {name: weight_of(matrices[name]).detach() for name, other in grams.items() if other is gram}
        for name in weights:
            del grams[name]
        hessian = gram.hessian
        del gram
        first = next(iter(weights))
        rows = torch.cat(list(weights.values())) if len(weights) > 1 else weights[first]
        values = general_importance(rows, hessian, metric, damping, first)
        for name, own in zip(weights, values.split([len(weight) for weight in weights.values()]), strict=True):
            found[name] = normalise(own).to(STORED).cpu()
    return found


def matrix_statistics(matrix: str, collected: Iterable[CollectedStatistic]) -> Statistics:
    """Return what was collected for one matrix."""
    found: dict[str, Any] = {}
    for statistic in collected:
        found[statistic.need.what] = statistic.of_matrix(matrix)
        if statistic.need.what not in ("general", "norms"):
            found["samples"] = statistic.samples
    return Statistics(**found)
