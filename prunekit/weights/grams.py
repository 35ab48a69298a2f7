"""Gram matrices of every layer's inputs, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.weights.decoder import Matrices, changed, resident
from prunekit.weights.importance import finite
from prunekit.weights.streaming import BlockStream, Sample, Streamer


class CalibrationError(ValueError):
    """Calibration that cannot be used: no tokens, or activations or gradients that are not finite."""


class Gram:
    """Sum of X X^T over the tokens of all sequences that enter a layer, in float32; `sequences` counts them."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, size, device=device)
        self.sequences = 0

    def add(self, inputs: Float[Tensor, "*batch inputs"]) -> None:
        """Adds one sequence."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.total.addmm_(rows.T, rows)
        self.sequences += 1

    def merge(self, *others: Gram) -> Gram:
        """The Gram of this one's sequences and the others'."""
        found = Gram(len(self.total), self.total.device)
        found.total = torch.stack([self.total, *(other.total for other in others)]).sum(0)
        found.sequences = self.sequences + sum(other.sequences for other in others)
        return found

    @property
    def hessian(self) -> Float[Tensor, "inputs inputs"]:
        """Of the layer's squared reconstruction error: (2 / sequences) * sum of X X^T."""
        return self.total * (2.0 / max(1, self.sequences))

    @property
    def norms(self) -> Float[Tensor, "inputs"]:
        """L2 norm of each input over tokens, with the squares averaged over sequences (as Wanda keeps it)."""
        return (self.total.diagonal() / max(1, self.sequences)).sqrt()

    def all_reduce(self) -> None:
        """Sums over the processes of a distributed run; nothing where there is none."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.tensor(float(self.sequences))
            torch.distributed.all_reduce(self.total)
            torch.distributed.all_reduce(count)
            self.sequences = int(count)


@torch.no_grad()
def stream_grams(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    blocks: Sequence[Matrices],
    visit: Callable[[int, dict[str, Gram]], bool],
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Hands the Grams of each block's layers to `visit(block, grams)`, from the first block to the last.

    `visit` may take Grams out of the dict when it is done with them, so that their memory is free.
    Layers that read the same tensor (query, key and value; gate and up) share one Gram. Where `visit` returns True it
    has changed the block's weights, and the block runs again, so that later blocks see what the changed one puts out.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    _check(samples)
    streamer = Streamer(model)
    with BlockStream.through(streamer, [sample.inputs for sample in samples]) as walk:
        for number in progress(range(len(blocks))):
            with resident(model, number):
                grams = _observe(walk, number, blocks[number])
                _all_reduce(grams)
                if visit(number, grams):
                    changed(model, number)
                    del grams
                    if number + 1 < len(blocks):
                        walk.advance(number, keep=True)
            for place in range(len(samples)):
                walk.hidden.pop((place, number))


def _all_reduce(grams: Mapping[str, Gram]) -> None:
    for gram in {id(gram): gram for gram in grams.values()}.values():
        gram.all_reduce()


def _observe(walk: BlockStream, number: int, matrices: Matrices) -> dict[str, Gram]:
    """The Grams of one block's layers over all samples, which go on to the next block."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, module in matrices.items()
    ]
    grams: dict[str, Gram] = {}
    try:
        for place in range(len(walk.inputs)):
            seen.clear()
            x = walk.hidden[place, number]
            walk.hidden[place, number + 1] = walk.streamer.block(number, x, walk.call(place, number))
            for name, leader in _leaders(seen).items():
                if name not in grams:
                    size = seen[name].shape[-1]
                    grams[name] = grams[leader] if leader != name else Gram(size, x.device)
                if leader == name:
                    grams[name].add(seen[name])
    finally:
        seen.clear()
        for hook in hooks:
            hook.remove()
    for name, gram in grams.items():
        if not finite(gram.total):
            raise CalibrationError(
                f"the activations that enter {name} are not finite.\n"
                "Allowed: calibration text on which the model computes finite numbers.\n"
                "Look for a broken checkpoint, or run in float32."
            )
    return grams


def _leaders(seen: Mapping[str, Tensor]) -> dict[str, str]:
    """For each layer the first one that reads the very same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in seen.items()}


def _check(samples: Sequence[Sample]) -> None:
    if not samples or any(len(sample.ids) < 2 for sample in samples):
        what = "there are no calibration samples" if not samples else "a calibration sample has fewer than 2 tokens"
        raise CalibrationError(f"{what}.\nAllowed: 1 sample or more, each of 2 tokens or more.\nGive more text.")
