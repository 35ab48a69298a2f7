"""The decoder blocks of a language model and the matrices in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
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

STORE = "prunekit_store"  # attribute of a model whose blocks are on disk: its weights.disk.BlockStore
Matrices = dict[str, nn.Module]  # full parameter name without ".weight" -> its module, in the model's order


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of a causal language model.

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


def prunable_matrices(model: PreTrainedModel, scope: str | None = None) -> list[Matrices]:
    """Return, per block, the linear layers whose name contains a match of the regular expression `scope` (None: all).

    Embeddings, norms and the output head are outside the blocks and never included.

    Raises:
        ValueError: no layer matches, or a matched weight is shared with another module.
    """
    place = FAMILIES.get(model.config.model_type, "")
    blocks: list[Matrices] = []
    for number, block in enumerate(decoder_blocks(model)):
        inside = {f"{place}.{number}.{name}": module for name, module in block.named_modules()}
        blocks.append(
            {
                name: module
                for name, module in inside.items()
                if isinstance(module, nn.Linear | Conv1D) and (scope is None or re.search(scope, name))
            }
        )
    if not any(blocks):
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
    for matrices in blocks:
        for name, module in matrices.items():
            shared = holders[id(module.weight)]
            if len(shared) > 1:
                raise ValueError(
                    f"{name} shares its weight with {', '.join(other for other in shared if other != name)}.\n"
                    "Allowed: weights that belong to one layer; a mask for one would also prune the other.\n"
                    "Leave it out with method.scope=..."
                )
    return blocks


def all_matrices(blocks: Iterable[Matrices]) -> Matrices:
    """Return the matrices of all blocks in one dict."""
    return {name: module for matrices in blocks for name, module in matrices.items()}


def weight_of(module: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """Return the weight with outputs in rows, as a view; GPT-2's Conv1D stores it transposed."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def set_weight(module: nn.Module, weight: Float[Tensor, "outputs inputs"]) -> None:
    """Copy a weight with outputs in rows into the module, in place."""
    weight_of(module).copy_(weight)


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of the model; a tied one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def hold_block(model: nn.Module, number: int) -> AbstractContextManager[None]:
    """Hold the weights of one block in memory while the context is open; a no-op where they always are in memory."""
    store = getattr(model, STORE, None)
    return nullcontext() if store is None else store.hold(number)


def mark_changed(model: nn.Module, number: int) -> None:
    """Mark the weights of a held block as changed, so that they are written back."""
    if (store := getattr(model, STORE, None)) is not None:
        store.mark_changed(number)
