"""Stage 1 of a weight-pruning run: calibration statistics, cached on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.console import track
from prunekit.data.text.samples import (
    TokenSample,
)
from prunekit.methods.weight_base import Need, Statistic, Statistics
from prunekit.weights.decoder import (
    Matrices,
    weight_of,
)
from prunekit.weights.disk import (
    Stored,
    save_whole,
)
from prunekit.weights.gradients import stream_gradients
from prunekit.weights.grams import Gram, stream_grams
from prunekit.weights.importance import GradientSums, general_importance, normalised
from prunekit.weights.streaming import Sample

STATISTICS = 1  # version of the cached statistics: raise it when their meaning changes
STORED = torch.bfloat16


def _collect(
    what: Statistic,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    blocks: Sequence[Matrices],
    options: Mapping[str, Any],
    folder: Path,
) -> list[Path]:
    """One statistic, a file per block with `<matrix>.<name>`; no more than one block's is in memory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = {number: folder / f"{number:05d}.safetensors" for number, own in enumerate(blocks) if own}

    def put(number: int, found: Mapping[str, Tensor]) -> None:
        if number in parts:  # method.scope may name nothing of a block
            save_whole({name: tensor.to(STORED).cpu() for name, tensor in found.items()}, parts[number])

    if what == "general" or what == "norms":

        def visit(number: int, grams: dict[str, Gram]) -> bool:
            if what == "norms":
                put(number, {f"{name}.norms": gram.norms for name, gram in grams.items()})
                return False
            found = {}
            while grams:
                gram = grams[next(iter(grams))]
                # one factorisation for the layers that share an input; then its Gram goes
                weights = {
                    name: weight_of(blocks[number][name]).detach() for name, other in grams.items() if other is gram
                }
                for name in weights:
                    del grams[name]
                hessian = gram.hessian
                del gram
                options_of_metric = (options["metric"], options["damping"], next(iter(weights)))
                rows = torch.cat(list(weights.values())) if len(weights) > 1 else weights[next(iter(weights))]
                values = general_importance(rows, hessian, *options_of_metric)
                for name, own in zip(weights, values.split([len(weight) for weight in weights.values()]), strict=True):
                    found[f"{name}.general"] = normalised(own).to(STORED).cpu()
            put(number, found)
            return False

        stream_grams(model, samples, blocks, visit, _tracked(what))
        return list(parts.values())
    sums: dict[str, GradientSums] = {}
    seen = [0] * len(blocks)

    @contextmanager
    def around(number: int) -> Iterator[None]:
        """The sums of one block: of a few samples' gradients on top of those of earlier samples, in float32."""
        path = folder / f"sums-{number:05d}.safetensors"
        earlier = Stored(path) if path.is_file() else None
        for name, module in blocks[number].items():
            own = None if earlier is None else {str(what): earlier[f"{name}.{what}"]}
            sums[name] = GradientSums(weight_of(module), [what], earlier=own, samples=seen[number])
        yield
        if number not in parts:
            return
        seen[number] = max(total.samples for total in sums.values())
        done = seen[number] == len(samples)
        found: dict[str, Tensor] = {}
        for name, total in sums.items():
            if done:
                total.all_reduce()
            found[f"{name}.{what}"] = total.state[what]
        sums.clear()
        if done:
            put(number, found)
            path.unlink(missing_ok=True)
        else:
            save_whole({name: tensor.cpu() for name, tensor in found.items()}, path)

    stream_gradients(
        model,
        samples,
        blocks,
        lambda name, gradient: sums[name].add(gradient),
        chunk=options["chunk"],
        progress=_tracked(f"gradients ({what})"),
        around=around,
    )
    return list(parts.values())


def _of_matrix(name: str, stored: Iterable[tuple[Need, Mapping[str, Tensor], int]]) -> Statistics:
    found: dict[str, Any] = {}
    for need, tensors, samples in stored:
        for key in ("general", "norms", "magnitude", "fisher", "signed"):
            if f"{name}.{key}" in tensors:
                found[key] = tensors[f"{name}.{key}"].float()
        if need.what in ("magnitude", "fisher", "signed"):
            found["samples"] = samples
    return Statistics(**found)


def _plain(samples: Sequence[TokenSample]) -> list[Sample]:
    return [Sample(sample.ids, sample.counts) for sample in samples]


def _tracked(label: str) -> Callable[[range], Iterable[int]]:
    return lambda steps: track(steps, label, len(steps))
