"""A pruned model as an ONNX graph: one text at a time, any length, and tokens that leave are really gone.

The graph is traced through Hugging Face's own layers and the method's own scorer and policy; what is removed is a
`NonZero` and a `Gather` behind the attention of each layer that decides, so every row behind them is a row less.

inputs    input_ids [1, tokens]; token_type_ids, protected [1, tokens] where the model and the task have them
outputs   logits [1, outputs], or [1, tokens, 2] where answers are found;
          depth [tokens]: the number of layers whose feed-forward half a token entered
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from prunekit.config.errors import first_line
from prunekit.console import silence
from prunekit.files import atomic_write_bytes
from prunekit.models.heads import CLASSIFIER, logits_of
from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.encoder import PrunedEncoder, encoder_of
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.state import TokenState

OPSET = 17  # LayerNormalization as one operator, which ONNX Runtime fuses; OpenVINO reads it as well
INPUTS = ("input_ids", "token_type_ids", "protected")
OUTPUTS = ("logits", "depth")
# of the lengths that a graph is tried on while it is made; one prime, so that no size is a multiple by chance
EXAMPLE_TOKENS = 23


class NotExportableError(ValueError):
    """The method's decision cannot be written as a graph."""


class OneText(nn.Module):
    """The traversal for a single unpadded text, without a branch that hangs on a value: it can be traced.

    Takes the place of `PrunedEncoder` and calls the same halves of layers, scorer and policy. `read` is how many
    first rows the head reads: 1 lets the last layer's feed-forward half work on [CLS] alone, None all rows.
    """

    def __init__(self, encoder: PrunedEncoder, read: int | None) -> None:
        super().__init__()
        self.blocks = encoder.blocks
        self.family = encoder.family
        self.pruner = encoder.pruner
        self.read = read

    def forward(
        self,
        hidden_states: Float[Tensor, "one tokens hidden"],
        attention_mask: Tensor | None = None,
        *,
        depths: list[Tensor],
        protected: Tensor | None = None,
        **ignored: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Hidden states of all tokens, or of the first `read`; `depths` receives the depth of each token."""
        hidden = output = hidden_states
        pruner = self.pruner
        position = torch.arange(hidden.shape[1]).unsqueeze(0)
        length = (position[:, -1] + 1).float()
        stays = torch.zeros_like(position).float() if protected is None else (protected > 0).float()
        if pruner is not None and pruner.protect_first:
            stays = torch.where(position == 0, 1.0, stays)
        if pruner is not None and pruner.protect_last:
            stays = torch.where(position == length.long() - 1, 1.0, stays)
        # a token that no layer drops enters all
        depth = torch.full_like(position[0], len(self.blocks))
        previous: Tensor | None = None
        for index, layer in enumerate(self.blocks):
            decides = pruner is not None and index in pruner.layers
            needs = pruner.scorer.needs if pruner is not None and decides else frozenset()
            attended, signals = self.family.attend(layer, hidden, AttentionCall(needs=needs))
            if pruner is not None and decides:
                embedded = hidden_states.index_select(1, position[0]) if "embedded" in needs else None
                state = TokenState(
                    keep=torch.ones_like(position).float(),
                    position=position,
                    protected=stays,
                    length=length,
                    hidden=hidden if "hidden" in needs else None,
                    previous=previous,
                    embedded=embedded,
                    layer=index,
                )
                scores, keep = pruner.decide(index, signals, state, soft=False)
                stay, leave = _rows(keep > 0), _rows(keep <= 0)
                gone = position[0].index_select(0, leave)
                depth = depth.scatter(0, gone, torch.full_like(gone, index))
                if self.read is None:
                    output = output.index_copy(1, gone, hidden.index_select(1, leave))
                attended = attended.index_select(1, stay)
                position, stays = position.index_select(1, stay), stays.index_select(1, stay)
                previous = scores.index_select(1, stay) if "previous" in needs else None
            if self.read is not None and index == len(self.blocks) - 1:
                attended = attended[:, : self.read]
            hidden = self.family.feed_forward(layer, attended)
        depths.append(depth)
        if self.read is None:
            hidden = output.index_copy(1, position[0], hidden)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)


def _rows(chosen: Tensor) -> Int[Tensor, "chosen"]:
    return chosen[0].nonzero().squeeze(1)


class _Graph(nn.Module):
    """Positional inputs and outputs, as a graph has them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(self.names, given, strict=True))
        depths: list[Tensor] = []
        output = self.model(**inputs, depths=depths)
        logits = logits_of(output, {"attention_mask": torch.ones_like(inputs["input_ids"])})
        return logits, depths[0]


def classifies(model: PreTrainedModel) -> bool:
    """Whether the model's head sees nothing but the first token, as every sequence classifier of our families."""
    return type(model).__name__.endswith(CLASSIFIER.architecture)


def one_text(model: PreTrainedModel, *, prune: bool = True, first_only: bool | None = None) -> nn.Module:
    """A copy of a pruned model that reads one unpadded text; inputs and outputs are those of the graph.

    `first_only` lets the last layer's feed-forward half compute [CLS] alone, which changes no result; by default
    where the head reads nothing else and [CLS] always stays. The copy shares its weights with `model`.
    """
    encoder = encoder_of(model)
    stays = not prune or encoder.pruner is None or encoder.pruner.protect_first
    alone = classifies(model) and stays if first_only is None else first_only
    # weights are not copied: the memo says that they are already there
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    ours = copy.deepcopy(model, memo).eval()
    parent = _holder(ours, encoder_of(ours))
    traced = OneText(encoder_of(ours), 1 if alone else None)
    if not prune:
        traced.pruner = None
    setattr(parent, encoder.family.encoder, traced)
    return ours


def _holder(model: PreTrainedModel, encoder: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if any(child is encoder for child in module.children()))


def write_graph(
    model: PreTrainedModel,
    path: str | Path,
    inputs: Sequence[str] = ("input_ids",),
    *,
    prune: bool = True,
    first_only: bool | None = None,
) -> None:
    """Writes the ONNX file of a model that `install` prepared, in float32, atomically.

    `inputs` are those of `INPUTS` that the graph takes, `input_ids` first. `prune=False` writes the dense model, still
    for one text without padding.

    Raises:
        NotExportableError: the scorer or the policy has an operation that no graph has.
    """
    if family_of(model).has_decoder:
        raise NotExportableError(
            f"{type(model).__name__} translates: its decoder is a loop, which is no part of an encoder's graph; "
            f"use prunekit.tokens.translation."
        )
    module = _Graph(one_text(model, prune=prune, first_only=first_only), inputs)
    ids = torch.randint(5, 90, (1, EXAMPLE_TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.clamp(max=int(model.config.vocab_size) - 1)
    values = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "protected": torch.zeros_like(ids)}
    axes = {name: {1: "tokens"} for name in inputs} | {"depth": {0: "tokens"}}
    if not classifies(model):
        axes["logits"] = {1: "tokens"}
    pruner = encoder_of(model).pruner
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.exporting")
    try:
        if prune and pruner is not None and pruner.scorer.no_graph:
            raise NotExportableError(f"{type(pruner.scorer).__name__} {pruner.scorer.no_graph}.")
        with exporting(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(values[name] for name in inputs),
                str(beside),
                input_names=list(inputs),
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,  # torch.export cannot trace sizes that hang on values through a method's own code
            )
        atomic_write_bytes(path, beside.read_bytes())
    except torch.onnx.errors.OnnxExporterError as error:
        raise NotExportableError(
            f"{_names(model)} cannot be written as a graph ({first_line(error)}); "
            f"use engine='packed', or operations of ONNX opset {OPSET} in scorer and policy."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _names(model: PreTrainedModel) -> str:
    pruner = encoder_of(model).pruner
    if pruner is None:
        return type(model).__name__
    return f"{type(pruner.scorer).__name__} with {type(pruner.policy).__name__}"


@contextmanager
def exporting() -> Iterator[None]:
    """Holds back what torch says about its own exporter, and teaches it the stable sort that ranks are made by."""
    from jaxtyping import config as jaxtyping_config
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic  # type: ignore[attr-defined]

    checked = not jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)  # sizes are tensors while a graph is traced
    register_custom_op_symbolic("aten::sort", _sorted, OPSET)
    try:
        with silence("torch.onnx", hide_warnings=True):
            yield
    finally:
        unregister_custom_op_symbolic("aten::sort", OPSET)
        jaxtyping_config.update("jaxtyping_disable", not checked)


def _sorted(graph: Any, values: Any, *how: Any) -> Any:
    """`sort` as ONNX's TopK of everything, which by its specification puts the earlier of equals first."""
    from torch.onnx import symbolic_helper

    # sort(values, dim, descending) or sort(values, stable, dim, descending)
    dim, descending = (symbolic_helper._get_const(value, "i", "how") for value in how[-2:])
    shape = graph.op("Shape", values)
    size = graph.op("Gather", shape, graph.op("Constant", value_t=torch.tensor([dim])), axis_i=0)
    return graph.op("TopK", values, size, axis_i=dim, largest_i=int(descending), sorted_i=1, outputs=2)
