"""Running a decoder one block at a time, for the inputs of its layers and exact gradients without the whole graph.

The parent model prepares masks, positions and rotary embeddings: its blocks are replaced by a stub for one call, so
that none of that has to be reimplemented. Caches are forced off: if one were left on, running a block again would
append to it and silently give wrong gradients.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.weights.decoder import STORE, decoder_blocks, hold_block

CACHES = ("past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class Sample:
    """One unpadded calibration sequence; `counts` marks the tokens whose prediction enters the loss (None: all)."""

    ids: Int[Tensor, "tokens"]
    counts: Int[Tensor, "tokens"] | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model."""
        ids = self.ids[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# -- one block at a time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Arguments that the parent passes to a block, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def without_cache(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Return the call with all caches removed, positional ones included."""
        without = tuple(None if hasattr(arg, "get_seq_length") else arg for arg in args)
        off = {name: None for name in CACHES if name in kwargs}
        return cls(without, {**kwargs, **off, **({"use_cache": False} if "use_cache" in kwargs else {})})


class _BlockEnteredError(Exception):
    """The last block was reached, so that the rest of the model need not run."""


class Streamer:
    """A model whose decoder is run block by block, in evaluation mode and without changing it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = decoder_blocks(model)

    @torch.no_grad()
    def enter(self, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "1 tokens hidden"], list[Call]]:
        """Return the input of the first block, and the call of every block."""
        entered: list[Tensor] = []
        calls: list[Call] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entered.append(hidden)
            calls.append(Call.without_cache(args, kwargs))
            if len(calls) == len(self.blocks):
                raise _BlockEnteredError  # skips the head over the vocabulary, which costs more than a block
            return hidden

        with _replace_blocks(self.blocks, record), suppress(_BlockEnteredError):
            self.model(**_move(inputs, self.model.device), use_cache=False)
        return entered[0].clone(), calls

    def block(self, number: int, hidden: Tensor, call: Call) -> Float[Tensor, "1 tokens hidden"]:
        """Return the output of one block."""
        out = self.blocks[number](hidden, *call.args, **call.kwargs)
        output = out[0] if isinstance(out, tuple) else out
        assert isinstance(output, Tensor)
        return output

    def logits(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> Float[Tensor, "1 tokens vocabulary"]:
        """Apply the model's final norm and head to the output of the last block."""
        with _replace_blocks(self.blocks, lambda *args, **kwargs: hidden):
            logits = self.model(**_move(inputs, self.model.device), use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits


def _move(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _replace_blocks(blocks: nn.ModuleList, stub: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the forward of every block by `stub` while the context is open."""
    # a `forward` set on the instance hides that of its class; a block on disk already has one
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = stub
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


class BlockStream:
    """Sequences between blocks: `hidden[place, number]` is the input of block `number` for sequence `place`.

    If the blocks are on disk, so are the hidden states, and the blocks' calls are recomputed each time.
    """

    def __init__(self, streamer: Streamer, inputs: Sequence[Mapping[str, Tensor]], folder: Path | None) -> None:
        self.streamer, self.inputs = streamer, inputs
        self.hidden = TensorStore(folder, streamer.model.device)
        self._calls: list[list[Call]] = []
        for place, sequence in enumerate(inputs):
            self.hidden[place, 0], calls = streamer.enter(sequence)
            if folder is None:
                self._calls.append(calls)

    @classmethod
    @contextmanager
    def open(cls, streamer: Streamer, inputs: Sequence[Mapping[str, Tensor]]) -> Iterator[BlockStream]:
        """Open a stream at the first block; its files, if any, are deleted when the context closes."""
        store = getattr(streamer.model, STORE, None)
        if store is None:
            yield cls(streamer, inputs, None)
            return
        store.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="hidden-", dir=store.scratch))
        try:
            yield cls(streamer, inputs, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def call(self, place: int, number: int) -> Call:
        """Return the call of block `number` for one sequence."""
        calls = self._calls[place] if self._calls else self.streamer.enter(self.inputs[place])[1]
        return calls[number]

    @torch.no_grad()
    def advance(self, number: int, *, keep: bool = False) -> None:
        """Run all sequences through one block; `keep` retains the block's inputs."""
        with hold_block(self.streamer.model, number):
            for place in range(len(self.inputs)):
                entered = self.hidden[place, number] if keep else self.hidden.pop((place, number))
                self.hidden[place, number + 1] = self.streamer.block(number, entered, self.call(place, number))


class TensorStore:
    """Tensors by key, in memory, or in files of a folder from which they are read to `device`."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.tensors: dict[tuple[int, int], Tensor] = {}

    def _file(self, key: tuple[int, int]) -> Path:
        assert self.folder is not None
        return self.folder / f"{key[0]}-{key[1]}.npy"

    def __setitem__(self, key: tuple[int, int], tensor: Tensor) -> None:
        if self.folder is None:
            self.tensors[key] = tensor
        else:
            np.save(self._file(key), tensor.detach().cpu().numpy(), allow_pickle=False)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        if self.folder is None:
            return self.tensors[key]
        return torch.from_numpy(np.load(self._file(key), allow_pickle=False)).to(self.device)

    def pop(self, key: tuple[int, int]) -> Tensor:
        """Remove a tensor and return it."""
        tensor = self[key]
        if self.folder is None:
            del self.tensors[key]
        else:
            self._file(key).unlink()
        return tensor


def all_logits(
    model: PreTrainedModel, inputs: Sequence[Mapping[str, Tensor]], progress: Callable[[range], Iterable[int]] = iter
) -> Iterator[Float[Tensor, "1 tokens vocabulary"]]:
    """Yield the logits of each sequence; if the blocks are on disk, each is read once for all sequences."""
    if getattr(model, STORE, None) is None:
        for place in progress(range(len(inputs))):
            with torch.no_grad():
                logits = model(**_move(inputs[place], model.device), use_cache=False).logits
            yield logits
        return
    streamer = Streamer(model)
    count = len(streamer.blocks)
    with BlockStream.open(streamer, inputs) as stream:
        for number in progress(range(count)):
            stream.advance(number)
        for place, sequence in enumerate(inputs):
            with torch.no_grad():
                logits = streamer.logits(sequence, stream.hidden.pop((place, count)))
            yield logits
