"""A decoder one block at a time: what enters each linear layer, and exact gradients, without the whole graph in memory.

The parent model prepares masks, positions and rotary embeddings; here its blocks are replaced by a stub for one call,
so that nothing of that is written anew. Caches are forced off: with one left on, running a block again would append to
it and give wrong gradients without any error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

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


class Streamer:
    """Runs a model's decoder block by block. The model is in evaluation mode and is never changed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = decoder_blocks(model)

    @torch.no_grad()
    def enter(self, sample: Sample) -> tuple[Float[Tensor, "1 tokens hidden"], list[Call]]:
        """The hidden states that enter the first block, and what every block is called with."""
        entered: list[Tensor] = []
        calls: list[Call] = []

        def look(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entered.append(hidden)
            calls.append(Call.without_cache(args, kwargs))
            return hidden

        with _stubbed(self.blocks, look):
            self.model(**_on(sample.inputs, self.model.device), use_cache=False)
        return entered[0].clone(), calls

    def block(self, number: int, hidden: Tensor, call: Call) -> Float[Tensor, "1 tokens hidden"]:
        """The output of one block."""
        out = self.blocks[number](hidden, *call.args, **call.kwargs)
        found = out[0] if isinstance(out, tuple) else out
        assert isinstance(found, Tensor)
        return found

    def logits(self, sample: Sample, hidden: Tensor) -> Float[Tensor, "1 tokens vocabulary"]:
        """What the model makes of hidden states that leave the last block: its final norm and its head."""
        with _stubbed(self.blocks, lambda *args, **kwargs: hidden):
            logits = self.model(**_on(sample.inputs, self.model.device), use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits


def _on(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _stubbed(blocks: nn.ModuleList, stub: Callable[..., Tensor]) -> Iterator[None]:
    """Calls `stub` in place of every block."""
    # an instance's own `forward` hides that of its class
    for block in blocks:
        block.forward = stub
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


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

    Layers that read the same tensor (query, key and value; gate and up) share one Gram. Where `visit` returns True it
    has changed the block's weights, and the block runs again, so that later blocks see what the changed one puts out.

    Raises:
        BadCalibration: no samples, or activations that are not finite.
    """
    _check(samples)
    streamer = Streamer(model)
    entries = [streamer.enter(sample) for sample in samples]
    hidden = [entry[0] for entry in entries]
    for number in progress(range(len(blocks))):
        grams, hidden_out = _observe(streamer, number, hidden, [entry[1][number] for entry in entries], blocks[number])
        for gram in {id(gram): gram for gram in grams.values()}.values():
            gram.all_reduce()
        changed = visit(number, grams)
        if changed:
            hidden_out = [streamer.block(number, x, entry[1][number]) for x, entry in zip(hidden, entries, strict=True)]
        hidden = hidden_out


def _observe(
    streamer: Streamer, number: int, hidden: Sequence[Tensor], calls: Sequence[Call], matrices: Matrices
) -> tuple[dict[str, Gram], list[Tensor]]:
    """The Grams of one block's layers over all samples, and the block's outputs."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, module in matrices.items()
    ]
    grams: dict[str, Gram] = {}
    outputs = []
    try:
        for x, call in zip(hidden, calls, strict=True):
            seen.clear()
            outputs.append(streamer.block(number, x, call))
            for name, leader in _leaders(seen).items():
                if name not in grams:
                    size = seen[name].shape[-1]
                    grams[name] = grams[leader] if leader != name else Gram(size, x.device)
                if leader == name:
                    grams[name].add(seen[name])
    finally:
        for hook in hooks:
            hook.remove()
    for name, gram in grams.items():
        if not torch.isfinite(gram.total).all():
            raise BadCalibration(
                f"the activations that enter {name} are not finite.\n"
                "Allowed: calibration text on which the model computes finite numbers.\n"
                "Look for a broken checkpoint, or run in float32."
            )
    return grams, outputs


def _leaders(seen: Mapping[str, Tensor]) -> dict[str, str]:
    """For each layer the first one that reads the very same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in seen.items()}


def _check(samples: Sequence[Sample]) -> None:
    if not samples or any(len(sample.ids) < 2 for sample in samples):
        what = "there are no calibration samples" if not samples else "a calibration sample has fewer than 2 tokens"
        raise BadCalibration(f"{what}.\nAllowed: 1 sample or more, each of 2 tokens or more.\nGive more text.")


# -- gradients ---------------------------------------------------------------------------------------


def stream_gradients(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    blocks: Sequence[Matrices],
    visit: Callable[[str, Float[Tensor, "outputs inputs"]], None],
    *,
    chunk: int = 16,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[float]:
    """Hands the gradient of each sample's loss to `visit(name, gradient)`, matrix by matrix; returns the losses.

    Exact: each block is run again from its stored input and differentiated, from the last block to the first. Of
    `chunk` samples the inputs of all blocks are kept at a time. The model's own `.grad` stays as it is.

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
        stored, calls = [], []
        for sample in part:
            inputs, own = _forward(streamer, sample, len(blocks))
            stored.append(inputs)
            calls.append(own)
        above = []
        for sample, inputs in zip(part, stored, strict=True):
            top = inputs.pop().detach().requires_grad_()
            with torch.enable_grad():
                loss = next_token_loss(streamer.logits(sample, top), sample)
                above.append(torch.autograd.grad(loss, top)[0])
            losses.append(float(loss.detach()))
        for number in reversed(range(len(blocks))):
            next(steps, None)
            for place, inputs in enumerate(stored):
                above[place] = _backward(
                    streamer, number, inputs.pop(), calls[place][number], above[place], blocks[number], visit
                )
    next(steps, None)  # lets a progress bar end
    return losses


@torch.no_grad()
def _forward(streamer: Streamer, sample: Sample, count: int) -> tuple[list[Tensor], list[Call]]:
    """The input of every block and the last one's output."""
    hidden, calls = streamer.enter(sample)
    found = [hidden]
    for number in range(count):
        found.append(streamer.block(number, found[-1], calls[number]))
    return found, calls


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
    weights = [module.get_parameter("weight") for module in matrices.values()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            out = streamer.block(number, hidden, call)
            below, *found = torch.autograd.grad(out, [hidden, *weights], above)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    for (name, module), gradient in zip(matrices.items(), found, strict=True):
        if not torch.isfinite(gradient).all():
            raise BadCalibration(
                f"the gradient of {name} is not finite.\n"
                "Allowed: calibration text on which the loss is finite.\n"
                "Look for a broken checkpoint, or run in float32."
            )
        visit(name, gradient.T if isinstance(module, Conv1D) else gradient)
    return below
