"""Gram matrices of every layer's inputs, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.weights.decoder import Matrices, hold_block, mark_changed
from prunekit.weights.finite import is_finite
from prunekit.weights.streaming import BlockStream, Sample, Streamer


class CalibrationError(ValueError):
    """Unusable calibration: no tokens, or activations or gradients that are not finite."""


class Gram:
    """Sum of X X^T over the input tokens of a layer, in float32; `sequences` is the number of sequences added."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(size, size, device=device)
        self.sequences = 0

    def add(self, inputs: Float[Tensor, "*batch inputs"]) -> None:
        """Add one sequence, in place."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.total.addmm_(rows.T, rows)
        self.sequences += 1

    def merge(self, *others: Gram) -> Gram:
        """Return the Gram of this one's sequences and the others'."""
        merged = Gram(len(self.total), self.total.device)
        merged.total = torch.stack([self.total, *(other.total for other in others)]).sum(0)
        merged.sequences = self.sequences + sum(other.sequences for other in others)
        return merged

    @property
    def hessian(self) -> Float[Tensor, "inputs inputs"]:
        """Hessian of the layer's squared reconstruction error: (2 / sequences) * sum of X X^T."""
        return self.total * (2.0 / max(1, self.sequences))

    @property
    def norms(self) -> Float[Tensor, "inputs"]:
        """L2 norm of each input over tokens, with the squares averaged over sequences, as in Wanda."""
        return (self.total.diagonal() / max(1, self.sequences)).sqrt()

    def all_reduce(self) -> None:
        """Sum over the processes of a distributed run, in place; a no-op outside one."""
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
    """Pass the Grams of each block's layers to `visit(block, grams)`, from the first block to the last.

    `visit` may remove Grams from the dict once it no longer needs them, to free their memory.
    Layers that read the same tensor (query, key and value; gate and up) share one Gram. If `visit` returns True, it has
    changed the block's weights, and the block is run again so that later blocks see the output of the changed one.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    check_samples(samples)
    streamer = Streamer(model)
    with BlockStream.open(streamer, [sample.inputs for sample in samples]) as stream:
        for number in progress(range(len(blocks))):
            with hold_block(model, number):
                grams = _collect_grams(stream, number, blocks[number])
                _all_reduce(grams)
                if visit(number, grams):
                    mark_changed(model, number)
                    del grams
                    if number + 1 < len(blocks):
                        stream.advance(number, keep=True)
            for place in range(len(samples)):
                stream.hidden.pop((place, number))


def _all_reduce(grams: Mapping[str, Gram]) -> None:
    for gram in {id(gram): gram for gram in grams.values()}.values():
        gram.all_reduce()


def _collect_grams(stream: BlockStream, number: int, matrices: Matrices) -> dict[str, Gram]:
    """Run all samples through one block and return the Grams of its layers."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, module in matrices.items()
    ]
    grams: dict[str, Gram] = {}
    try:
        for place in range(len(stream.inputs)):
            inputs.clear()
            x = stream.hidden[place, number]
            stream.hidden[place, number + 1] = stream.streamer.block(number, x, stream.call(place, number))
            for name, leader in _leaders(inputs).items():
                if name not in grams:
                    size = inputs[name].shape[-1]
                    grams[name] = grams[leader] if leader != name else Gram(size, x.device)
                if leader == name:
                    grams[name].add(inputs[name])
    finally:
        inputs.clear()
        for hook in hooks:
            hook.remove()
    for name, gram in grams.items():
        if not is_finite(gram.total):
            raise CalibrationError(
                f"the activations that enter {name} are not finite.\n"
                "Allowed: calibration text on which the model computes finite numbers.\n"
                "Look for a broken checkpoint, or run in float32."
            )
    return grams


def _leaders(inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each layer the first one that reads the very same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in inputs.items()}


def check_samples(samples: Sequence[Sample]) -> None:
    """Check that there are samples, each of 2 tokens or more.

    Raises:
        CalibrationError: there are none, or one is too short.
    """
    if not samples or any(len(sample.ids) < 2 for sample in samples):
        what = "there are no calibration samples" if not samples else "a calibration sample has fewer than 2 tokens"
        raise CalibrationError(f"{what}.\nAllowed: 1 sample or more, each of 2 tokens or more.\nGive more text.")
