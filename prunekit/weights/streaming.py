"""A decoder one block at a time: what enters each linear layer, and exact gradients, without the whole graph in memory.

The parent model prepares masks, positions and rotary embeddings; here its blocks are replaced by a stub for one call,
so that nothing of that is written anew. Caches are forced off: with one left on, running a block again would append to
it and give wrong gradients without any error.
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

from prunekit.weights.decoder import STORE, decoder_blocks, resident

CACHES = ("past_key_values", "past_key_value", "layer_past")


@dataclass(frozen=True)
class Sample:
    """One calibration sequence, unpadded; `counts` marks the tokens whose prediction enters the loss."""

    ids: Int[Tensor, "tokens"]
    counts: Int[Tensor, "tokens"] | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with."""
        ids = self.ids[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# -- one block at a time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """What the parent passes to a block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def without_cache(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The call with caches removed, wherever they were passed."""
        plain = tuple(None if hasattr(arg, "get_seq_length") else arg for arg in args)
        off = {name: None for name in CACHES if name in kwargs}
        return cls(plain, {**kwargs, **off, **({"use_cache": False} if "use_cache" in kwargs else {})})


class _BlockEnteredError(Exception):
    """The last block was reached: nothing after it is wanted."""


class Streamer:
    """Runs a model's decoder block by block. The model is in evaluation mode and is never changed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = decoder_blocks(model)

    @torch.no_grad()
    def enter(self, inputs: Mapping[str, Tensor]) -> tuple[Float[Tensor, "1 tokens hidden"], list[Call]]:
        """The hidden states that enter the first block, and what every block is called with."""
        entered: list[Tensor] = []
        calls: list[Call] = []

        def look(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entered.append(hidden)
            calls.append(Call.without_cache(args, kwargs))
            if len(calls) == len(self.blocks):
                raise _BlockEnteredError  # the head over all words costs more than a block
            return hidden

        with _stubbed(self.blocks, look), suppress(_BlockEnteredError):
            self.model(**_on(inputs, self.model.device), use_cache=False)
        return entered[0].clone(), calls

    def block(self, number: int, hidden: Tensor, call: Call) -> Float[Tensor, "1 tokens hidden"]:
        """The output of one block."""
        out = self.blocks[number](hidden, *call.args, **call.kwargs)
        found = out[0] if isinstance(out, tuple) else out
        assert isinstance(found, Tensor)
        return found

    def logits(self, inputs: Mapping[str, Tensor], hidden: Tensor) -> Float[Tensor, "1 tokens vocabulary"]:
        """What the model makes of hidden states that leave the last block: its final norm and its head."""
        with _stubbed(self.blocks, lambda *args, **kwargs: hidden):
            logits = self.model(**_on(inputs, self.model.device), use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits


def _on(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _stubbed(blocks: nn.ModuleList, stub: Callable[..., Tensor]) -> Iterator[None]:
    """Calls `stub` in place of every block."""
    # an instance's own `forward` hides that of its class; one whose block lies on disk has an own one already
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = stub
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


class BlockStream:
    """Sequences on their way through the blocks: `hidden[place, number]` is what enters block `number`.

    Where the blocks lie on disk, so do the hidden states, and what blocks are called with is found anew each time.
    """

    def __init__(self, streamer: Streamer, inputs: Sequence[Mapping[str, Tensor]], folder: Path | None) -> None:
        self.streamer, self.inputs = streamer, inputs
        self.hidden = Tensors(folder, streamer.model.device)
        self._calls: list[list[Call]] = []
        for place, own in enumerate(inputs):
            self.hidden[place, 0], calls = streamer.enter(own)
            if folder is None:
                self._calls.append(calls)

    @classmethod
    @contextmanager
    def through(cls, streamer: Streamer, inputs: Sequence[Mapping[str, Tensor]]) -> Iterator[BlockStream]:
        """A walk whose files, if it has any, are gone afterwards."""
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
        """What block `number` is called with."""
        calls = self._calls[place] if self._calls else self.streamer.enter(self.inputs[place])[1]
        return calls[number]

    @torch.no_grad()
    def advance(self, number: int, *, keep: bool = False) -> None:
        """Takes all sequences through one block; `keep` leaves what entered it."""
        with resident(self.streamer.model, number):
            for place in range(len(self.inputs)):
                entered = self.hidden[place, number] if keep else self.hidden.pop((place, number))
                self.hidden[place, number + 1] = self.streamer.block(number, entered, self.call(place, number))


class Tensors:
    """Tensors by key, in memory, or as files of a folder and read back to `device`."""

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.here: dict[tuple[int, int], Tensor] = {}

    def _file(self, key: tuple[int, int]) -> Path:
        assert self.folder is not None
        return self.folder / f"{key[0]}-{key[1]}.npy"

    def __setitem__(self, key: tuple[int, int], tensor: Tensor) -> None:
        if self.folder is None:
            self.here[key] = tensor
        else:
            np.save(self._file(key), tensor.detach().cpu().numpy(), allow_pickle=False)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        if self.folder is None:
            return self.here[key]
        return torch.from_numpy(np.load(self._file(key), allow_pickle=False)).to(self.device)

    def pop(self, key: tuple[int, int]) -> Tensor:
        """The tensor, which is forgotten."""
        found = self[key]
        if self.folder is None:
            del self.here[key]
        else:
            self._file(key).unlink()
        return found


def all_logits(
    model: PreTrainedModel, inputs: Sequence[Mapping[str, Tensor]], progress: Callable[[range], Iterable[int]] = iter
) -> Iterator[Float[Tensor, "1 tokens vocabulary"]]:
    """The logits of each sequence in turn; where the blocks lie on disk, each is read once for all sequences."""
    if getattr(model, STORE, None) is None:
        for place in progress(range(len(inputs))):
            with torch.no_grad():
                logits = model(**_on(inputs[place], model.device), use_cache=False).logits
            yield logits
        return
    streamer = Streamer(model)
    count = len(streamer.blocks)
    with BlockStream.through(streamer, inputs) as walk:
        for number in progress(range(count)):
            walk.advance(number)
        for place, own in enumerate(inputs):
            with torch.no_grad():
                logits = streamer.logits(own, walk.hidden.pop((place, count)))
            yield logits
