"""A decoder one block at a time: what enters each linear layer, and exact gradients, without the whole graph in memory.

The parent model prepares masks, positions and rotary embeddings; here its blocks are replaced by a stub for one call,
so that nothing of that is written anew. Caches are forced off: with one left on, running a block again would append to
it and give wrong gradients without any error.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunekit.weights.importance import finite

# where a family keeps its decoder blocks
FAMILIES = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
}
CACHES = ("past_key_values", "past_key_value", "layer_past")
STORE = "prunekit_store"  # attribute of a model whose blocks lie on disk: its weights.disk.BlockStore

Matrices = dict[str, nn.Module]  # full parameter name without ".weight" -> its module, in the model's order


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


class BadCalibration(ValueError):  # noqa: N818
    """Calibration that cannot be used: no tokens, or activations or gradients that are not finite."""


# -- where the weights are ---------------------------------------------------------------------------


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a causal language model.

    Raises:
        ValueError: a family without an entry in `FAMILIES`.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"the model is of the family {kind!r}, whose decoder blocks prunekit does not know.\n"
            f"Allowed: {', '.join(sorted(FAMILIES))}.\nChoose another backbone."
        )
    blocks = model.get_submodule(FAMILIES[kind])
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def prunable(model: PreTrainedModel, scope: str | None = None) -> list[Matrices]:
    """The linear layers of every block whose name `scope` (a regular expression) is found in; None takes all.

    Embeddings, norms and the output head lie outside the blocks and are never among them.

    Raises:
        ValueError: no layer matches, or a matched weight is shared with another module.
    """
    place = FAMILIES.get(model.config.model_type, "")
    found: list[Matrices] = []
    for number, block in enumerate(decoder_blocks(model)):
        inside = {f"{place}.{number}.{name}": module for name, module in block.named_modules()}
        found.append(
            {
                name: module
                for name, module in inside.items()
                if isinstance(module, nn.Linear | Conv1D) and (scope is None or re.search(scope, name))
            }
        )
    if not any(found):
        example = next(
            f"{place}.0.{n}" for n, m in decoder_blocks(model)[0].named_modules() if n and not list(m.children())
        )
        raise ValueError(
            f"method.scope={scope} matches no linear layer.\n"
            f"Allowed: a regular expression found in names such as {example}.\nSet method.scope=null for all."
        )
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor):
            holders.setdefault(id(weight), []).append(name)
    for matrices in found:
        for name, module in matrices.items():
            shared = holders[id(module.weight)]
            if len(shared) > 1:
                raise ValueError(
                    f"{name} shares its weight with {', '.join(other for other in shared if other != name)}.\n"
                    "Allowed: weights of one layer each; a mask of one would prune the other.\n"
                    "Leave it out with method.scope=..."
                )
    return found


def all_matrices(blocks: Iterable[Matrices]) -> Matrices:
    """The matrices of all blocks in one dict."""
    return {name: module for matrices in blocks for name, module in matrices.items()}


def weight_of(module: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """The weight with outputs in rows, a view: GPT-2's Conv1D stores it the other way round."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def set_weight(module: nn.Module, weight: Float[Tensor, "outputs inputs"]) -> None:
    """Writes a weight with outputs in rows into the module."""
    weight_of(module).copy_(weight)


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def resident(model: nn.Module, number: int) -> AbstractContextManager[None]:
    """Has the weights of one block in memory; nothing to do where they always are."""
    store = getattr(model, STORE, None)
    return nullcontext() if store is None else store.resident(number)


def changed(model: nn.Module, number: int) -> None:
    """Says that a resident block's weights were changed, so that they are kept."""
    if (store := getattr(model, STORE, None)) is not None:
        store.changed(number)


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


class _Entered(Exception):  # noqa: N818
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
                raise _Entered  # the head over all words costs more than a block
            return hidden

        with _stubbed(self.blocks, look), suppress(_Entered):
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


class Walk:
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
    def through(cls, streamer: Streamer, inputs: Sequence[Mapping[str, Tensor]]) -> Iterator[Walk]:
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
    with Walk.through(streamer, inputs) as walk:
        for number in progress(range(count)):
            walk.advance(number)
        for place, own in enumerate(inputs):
            with torch.no_grad():
                logits = streamer.logits(own, walk.hidden.pop((place, count)))
            yield logits


def next_token_loss(logits: Float[Tensor, "1 tokens vocabulary"], sample: Sample) -> Float[Tensor, ""]:
    """Mean cross-entropy of the next token, in float32, over the tokens that count; the first has no prediction.

    Raises:
        BadCalibration: no token counts.
    """
    target = sample.ids[1:].to(logits.device)
    losses = F.cross_entropy(logits[0, :-1].float(), target, reduction="none")
    if sample.counts is None:
        counted = torch.ones_like(losses)
    else:
        counted = sample.counts[1:].to(losses)
    if counted.sum() == 0:
        raise BadCalibration(
            f"a calibration sample of {len(sample.ids)} tokens has none whose prediction counts.\n"
            "Allowed: 2 tokens or more, one of them in the completion.\nUse longer texts, or task.loss_on=all."
        )
    return (losses * counted).sum() / counted.sum()


# -- what enters the linear layers -------------------------------------------------------------------


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
        BadCalibration: no samples, or activations that are not finite.
    """
    _check(samples)
    streamer = Streamer(model)
    with Walk.through(streamer, [sample.inputs for sample in samples]) as walk:
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


def _observe(walk: Walk, number: int, matrices: Matrices) -> dict[str, Gram]:
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
            raise BadCalibration(
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
        raise BadCalibration(f"{what}.\nAllowed: 1 sample or more, each of 2 tokens or more.\nGive more text.")


# -- gradients ---------------------------------------------------------------------------------------

ABOVE = -1  # in a walk: the gradient of what leaves the block at hand


def stream_gradients(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    blocks: Sequence[Matrices],
    visit: Callable[[str, Float[Tensor, "outputs inputs"]], None],
    *,
    chunk: int = 16,
    progress: Callable[[range], Iterable[int]] = iter,
    around: Callable[[int], AbstractContextManager[object]] = lambda number: nullcontext(),
) -> list[float]:
    """Hands the gradient of each sample's loss to `visit(name, gradient)`, matrix by matrix; returns the losses.

    Exact: each block is run again from its stored input and differentiated, from the last block to the first. Of
    `chunk` samples the inputs of all blocks are kept at a time. The model's own `.grad` stays as it is. `around(block)`
    is entered while a block's gradients of a chunk are visited, with its weights in memory.

    Raises:
        BadCalibration: no samples, or gradients that are not finite.
    """
    _check(samples)
    streamer = Streamer(model)
    losses: list[float] = []
    starts = range(0, len(samples), chunk)
    steps = iter(progress(range(len(starts) * len(blocks))))
    for start in starts:
        part = samples[start : start + chunk]
        with Walk.through(streamer, [sample.inputs for sample in part]) as walk:
            for number in range(len(blocks)):
                walk.advance(number, keep=True)
            for place, sample in enumerate(part):
                top = walk.hidden.pop((place, len(blocks))).detach().requires_grad_()
                with torch.enable_grad():
                    loss = next_token_loss(streamer.logits(sample.inputs, top), sample)
                    walk.hidden[place, ABOVE] = torch.autograd.grad(loss, top)[0]
                losses.append(float(loss.detach()))
            for number in reversed(range(len(blocks))):
                next(steps, None)
                with resident(model, number), around(number):
                    for place in range(len(part)):
                        walk.hidden[place, ABOVE] = _backward(
                            streamer,
                            number,
                            walk.hidden.pop((place, number)),
                            walk.call(place, number),
                            walk.hidden.pop((place, ABOVE)),
                            blocks[number],
                            visit,
                        )
    next(steps, None)  # lets a progress bar end
    return losses


def _backward(
    streamer: Streamer,
    number: int,
    hidden: Tensor,
    call: Call,
    above: Tensor,
    matrices: Matrices,
    visit: Callable[[str, Tensor], None],
) -> Tensor:
    """Visits the gradients of one block's matrices for one sample; returns the gradient of the block's input."""
    hidden = hidden.detach().requires_grad_()
    with _visiting(matrices, visit) as weights, torch.enable_grad():
        out = streamer.block(number, hidden, call)
        torch.autograd.backward(out, above, inputs=[hidden, *weights])
    assert hidden.grad is not None
    return hidden.grad


@contextmanager
def _visiting(matrices: Matrices, visit: Callable[[str, Tensor], None]) -> Iterator[list[nn.Parameter]]:
    """Weights whose gradients are visited, and let go, as soon as they are there; afterwards all is as before."""
    weights = [module.get_parameter("weight") for module in matrices.values()]
    before = [(weight.requires_grad, weight.grad) for weight in weights]

    def arrived(name: str, module: nn.Module, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if not finite(gradient):
            raise BadCalibration(
                f"the gradient of {name} is not finite.\n"
                "Allowed: calibration text on which the loss is finite.\n"
                "Look for a broken checkpoint, or run in float32."
            )
        visit(name, gradient.T if isinstance(module, Conv1D) else gradient)

    hooks = []
    for (name, module), weight in zip(matrices.items(), weights, strict=True):
        weight.requires_grad_(True)
        weight.grad = None
        hooks.append(weight.register_post_accumulate_grad_hook(partial(arrived, name, module)))
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()
        for weight, (wanted, gradient) in zip(weights, before, strict=True):
            weight.grad = gradient
            weight.requires_grad_(wanted)
