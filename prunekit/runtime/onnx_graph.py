"""A pruned model as an ONNX graph: one text of any length, whose dropped tokens are really removed.

The graph is traced through Hugging Face's own layers and the method's own scorer and policy. Dropping tokens is a
`NonZero` and a `Gather` after the attention of each decision layer, so everything after them computes fewer rows.

inputs    input_ids [1, tokens]; token_type_ids, protected [1, tokens] where the model and the task have them
outputs   logits [1, outputs], or [1, tokens, 2] for question answering;
          depth [tokens]: the number of layers whose feed-forward a token entered
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
from prunekit.models.heads import head_of, logits_of
from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.encoder import PrunedEncoder, encoder_of
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.state import TokenState

OPSET = 17  # LayerNormalization as one operator, which ONNX Runtime fuses; OpenVINO reads it as well
INPUTS = ("input_ids", "token_type_ids", "protected")
OUTPUTS = ("logits", "depth")
# length of the text that a graph is traced with; prime, so that no other size is a multiple of it by chance
EXAMPLE_TOKENS = 23


class NotExportableError(ValueError):
    """The method's decision cannot be exported as a graph."""


class SingleTextEncoder(nn.Module):
    """The pruned encoder for one unpadded text, without data-dependent branches, so that it can be traced.

    Replaces `PrunedEncoder` and calls the same layer halves, scorer and policy. `read` is the number of leading rows
    that the head reads: with 1, the last layer's feed-forward computes [CLS] only; None means all rows. `kept_only`
    leaves out those that were dropped.
    """

    def __init__(self, encoder: PrunedEncoder, read: int | None, *, kept_only: bool = False) -> None:
        super().__init__()
        self.blocks = encoder.blocks
        self.family = encoder.family
        self.pruner = encoder.pruner
        self.read = read
        self.kept_only = kept_only

    def forward(
        self,
        hidden_states: Float[Tensor, "one tokens hidden"],
        attention_mask: Tensor | None = None,
        *,
        depths: list[Tensor],
        protected: Tensor | None = None,
        **ignored: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the hidden states of all tokens, or of the first `read`; append each token's depth to `depths`."""
        hidden = output = hidden_states
        pruner = self.pruner
        position = torch.arange(hidden.shape[1]).unsqueeze(0)
        length = (position[:, -1] + 1).float()
        is_protected = torch.zeros_like(position).float() if protected is None else (protected > 0).float()
        if pruner is not None and pruner.protect_first:
            is_protected = torch.where(position == 0, 1.0, is_protected)
        if pruner is not None and pruner.protect_last:
            is_protected = torch.where(position == length.long() - 1, 1.0, is_protected)
        # a token that is never dropped enters every layer
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
                    protected=is_protected,
                    length=length,
                    hidden=hidden if "hidden" in needs else None,
                    previous=previous,
                    embedded=embedded,
                    layer=index,
                )
                scores, keep = pruner.decide(index, signals, state, soft=False)
                kept, dropped = _row_numbers(keep > 0), _row_numbers(keep <= 0)
                origin = position[0].index_select(0, dropped)
                depth = depth.scatter(0, origin, torch.full_like(origin, index))
                if self.read is None and not self.kept_only:
                    output = output.index_copy(1, origin, hidden.index_select(1, dropped))
                attended = attended.index_select(1, kept)
                position, is_protected = position.index_select(1, kept), is_protected.index_select(1, kept)
                previous = scores.index_select(1, kept) if "previous" in needs else None
            if self.read is not None and index == len(self.blocks) - 1:
                attended = attended[:, : self.read]
            hidden = self.family.feed_forward(layer, attended)
        depths.append(depth)
        if self.read is None and not self.kept_only:
            hidden = output.index_copy(1, position[0], hidden)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)


def _row_numbers(mask: Tensor) -> Int[Tensor, "rows"]:
    return mask[0].nonzero().squeeze(1)


class _Graph(nn.Module):
    """A model whose inputs and outputs are positional, as the exporter needs them."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(self.names, given, strict=True))
        depths: list[Tensor] = []
        output = self.model(**inputs, depths=depths)
        ids = inputs["input_ids"]
        logits = logits_of(output, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return logits, depths[0]


def single_text_model(model: PreTrainedModel, *, prune: bool = True, first_only: bool | None = None) -> nn.Module:
    """Return a copy of a pruned model that takes one unpadded text; it shares its weights with `model`.

    `first_only` computes the last layer's feed-forward for [CLS] only, which changes no result; the default is to do so
    where the head reads nothing else and [CLS] is never dropped.
    """
    encoder = encoder_of(model)
    keeps_first = not prune or encoder.pruner is None or encoder.pruner.protect_first
    head = head_of(model)
    if first_only is None:
        first_only = head.first_only and keeps_first
    # the memo tells deepcopy that weights are already copied, so they are shared
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    copied = copy.deepcopy(model, memo).eval()
    parent = _parent_of(encoder_of(copied), copied)
    traced = SingleTextEncoder(encoder_of(copied), 1 if first_only else None, kept_only=head.reads == "kept")
    if not prune:
        traced.pruner = None
    setattr(parent, encoder.family.encoder, traced)
    return copied


def _parent_of(encoder: nn.Module, model: PreTrainedModel) -> nn.Module:
    return next(module for module in model.modules() if any(child is encoder for child in module.children()))


def write_graph(
    model: PreTrainedModel,
    path: str | Path,
    inputs: Sequence[str] = ("input_ids",),
    *,
    prune: bool = True,
    first_only: bool | None = None,
) -> None:
    """Write the ONNX file of a model prepared by `install`, in float32, atomically.

    `inputs` are the ones of `INPUTS` that the graph takes, `input_ids` first. `prune=False` writes the dense model,
    also for one text without padding.

    Raises:
        NotExportableError: the scorer or the policy uses an operation that ONNX does not have, or the model translates.
    """
    if family_of(model).has_decoder:
        raise NotExportableError(
            f"{type(model).__name__} translates: its decoder is a loop, which an encoder's graph cannot contain; "
            f"use prunekit.tokens.translation."
        )
    module = _Graph(single_text_model(model, prune=prune, first_only=first_only), inputs)
    ids = torch.randint(5, 90, (1, EXAMPLE_TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.clamp(max=int(model.config.vocab_size) - 1)
    values = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "protected": torch.zeros_like(ids)}
    axes = {name: {1: "tokens"} for name in inputs} | {"depth": {0: "tokens"}}
    head = head_of(model)
    if not head.first_only and not head.pools:
        axes["logits"] = {1: "tokens"}
    pruner = encoder_of(model).pruner
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.exporting")
    try:
        if prune and pruner is not None and pruner.scorer.no_graph:
            raise NotExportableError(f"{type(pruner.scorer).__name__} {pruner.scorer.no_graph}.")
        with export_settings(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(values[name] for name in inputs),
                str(scratch),
                input_names=list(inputs),
                output_names=list(OUTPUTS),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,  # torch.export cannot trace data-dependent sizes through a method's own code
            )
        atomic_write_bytes(path, scratch.read_bytes())
    except torch.onnx.errors.OnnxExporterError as error:
        raise NotExportableError(
            f"{_describe(model)} cannot be exported as a graph ({first_line(error)}); "
            f"use engine='packed', or only operations of ONNX opset {OPSET} in scorer and policy."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _describe(model: PreTrainedModel) -> str:
    pruner = encoder_of(model).pruner
    if pruner is None:
        return type(model).__name__
    return f"{type(pruner.scorer).__name__} with {type(pruner.policy).__name__}"


@contextmanager
def export_settings() -> Iterator[None]:
    """Silence torch's ONNX exporter, and teach it the stable sort that ranks need, inside the block."""
    # slow to import, and needed by an export alone
    from jaxtyping import config as jaxtyping_config
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic  # type: ignore[attr-defined]

    was_checking = not jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)  # sizes are tensors while a graph is traced
    register_custom_op_symbolic("aten::sort", _stable_sort, OPSET)
    try:
        with silence("torch.onnx", hide_warnings=True):
            yield
    finally:
        unregister_custom_op_symbolic("aten::sort", OPSET)
        jaxtyping_config.update("jaxtyping_disable", not was_checking)


def _stable_sort(graph: Any, values: Any, *options: Any) -> Any:
    """Translate `sort` into ONNX's TopK of all values, whose specification puts the earlier of equal values first."""
    from torch.onnx import symbolic_helper  # as above

    # sort(values, dim, descending) or sort(values, stable, dim, descending)
    dim, descending = (symbolic_helper._get_const(value, "i", "option") for value in options[-2:])
    shape = graph.op("Shape", values)
    size = graph.op("Gather", shape, graph.op("Constant", value_t=torch.tensor([dim])), axis_i=0)
    return graph.op("TopK", values, size, axis_i=dim, largest_i=int(descending), sorted_i=1, outputs=2)
