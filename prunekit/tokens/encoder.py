"""The pruned encoder: one loop over Hugging Face's own layers that decides, after attention, which tokens to keep.

for each layer:   attend -> score -> keep -> trace -> feed forward

dense   no decisions
soft    hidden = feed_forward(attended) * keep, or log(keep) is added to the attention logits of later layers;
        tokens whose keep is exactly 0 are removed, so that they are hidden and receive no gradient
mask    dropped tokens are hidden from attention but still computed
drop    kept tokens are gathered and re-padded
pack    kept tokens of the whole batch are stored end to end, without padding
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from prunekit.tokens.attention import IMPLEMENTATION
from prunekit.tokens.dropout import replace_dropout
from prunekit.tokens.families.base import Family
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.layout import Survivors, TokenLayout
from prunekit.tokens.pruner import TokenPruner as TokenPruner  # plug-ins import it from here
from prunekit.tokens.segments import forward_protecting
from prunekit.tokens.state import Execution, LayerTrace, Need, Trace

# arguments that models pass down besides hidden states and mask; an encoder needs none of them
_IGNORED = frozenset(
    {
        "encoder_hidden_states",
        "encoder_attention_mask",
        "past_key_values",
        "use_cache",
        "position_ids",
        "cache_position",
        "head_mask",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)


class PrunedEncoder(nn.Module):
    """Replacement for the encoder of a Hugging Face model, which owns and calls its layers under the same names.

    `execution` is the default when the caller of the model gives none. `longest` is the length at which texts are cut
    before the model reads them (prunekit/tokens/cutting.py), None where they are read as they are. `separator` is the
    token that ends the first segment, where its tokens are always kept; None = no segment is protected.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        family: Family,
        pruner: TokenPruner | None,
        execution: Execution = "pack",
        longest: int | None = None,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        self.add_module(family.layers, layers)
        self.family = family
        self.pruner = pruner
        self.execution: Execution = execution
        self.longest = longest
        self.separator = separator

    @property
    def blocks(self) -> nn.ModuleList:
        """Hugging Face's layers, whatever their name in the family."""
        return getattr(self, self.family.layers)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch tokens hidden"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
        *,
        trace: Trace | None = None,
        execution: str | None = None,
        prune: bool = True,
        protected: Bool[Tensor, "batch tokens"] | None = None,
        budget: str | None = None,
        **ignored: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the layers and return hidden states in the incoming shape.

        A dropped token keeps the output of the last layer that it passed completely; padding is returned as zeros
        under every execution. `protected` marks tokens that must be kept besides [CLS]. `prune=False` makes no
        decisions, whatever the execution: with "pack" that is the dense model without padding. `budget` is one of those
        that the model was trained for; None is the first of them.

        Raises:
            TypeError: an argument that neither prunekit nor transformers knows.
            ValueError: an unknown execution or budget; texts that were not cut, of a model that reads cut ones; or
                nothing says which tokens are the first segment, which is protected.
        """
        unknown = sorted(set(ignored) - _IGNORED)
        if unknown:
            raise TypeError(
                f"the model was called with {', '.join(unknown)}, which the pruned encoder does not know; "
                f"it takes trace, execution, prune, protected and budget besides the arguments of transformers."
            )
        if self.longest is not None and hidden_states.shape[1] > self.longest:
            raise ValueError(
                f"this model was given {hidden_states.shape[1]} tokens, but reads texts cut at {self.longest}.\n"
                f"Allowed: up to {self.longest} tokens.\n"
                f"Give tokenizer(texts, truncation=True, max_length={self.longest}, padding=True, return_tensors='pt')."
            )
        layout = self._run_layers(hidden_states, attention_mask, trace, execution, prune, protected, budget)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=layout.restore())

    def _run_layers(
        self,
        hidden_states: Float[Tensor, "batch tokens hidden"],
        attention_mask: Bool[Tensor, "batch tokens"] | None,
        trace: Trace | None,
        execution: str | None,
        prune: bool,
        protected: Bool[Tensor, "batch tokens"] | None,
        budget: str | None = None,
    ) -> TokenLayout:
        execution = execution or self.execution
        if execution not in get_args(Execution):
            raise ValueError(f"execution={execution!r} is unknown; choose one of {', '.join(get_args(Execution))}.")
        pruner = self.pruner.at(budget) if self.pruner is not None and prune and execution != "dense" else None
        if pruner is not None and not self.training:
            _check_padding(pruner, execution, hidden_states.shape[1])
        if pruner is not None and self.separator is not None and protected is None:
            raise ValueError(
                "this model protects the first of two texts, but was called without token ids.\n"
                "Allowed: input_ids given to the whole model, or protected=... beside embeddings.\n"
                "Type model(**tokenizer(query, document, return_tensors='pt'))."
            )
        always_kept = self._protect(hidden_states, attention_mask, protected, pruner)
        removes_tokens = execution == "drop" or (execution == "soft" and pruner is not None and pruner.hide_gone)
        layout = TokenLayout(hidden_states, attention_mask, always_kept, execution, removes_tokens=removes_tokens)
        for index, layer in enumerate(self.blocks):
            self._run_layer(index, layer, layout, pruner, trace)
        return layout

    def _protect(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        marked: Bool[Tensor, "batch tokens"] | None,
        pruner: TokenPruner | None,
    ) -> Float[Tensor, "batch tokens"]:
        """Return 1 for tokens that are kept whatever their score: those the caller marks and those the head reads."""
        first = int(pruner is None or pruner.protect_first)
        return _protected_mask(hidden, mask, marked, first, last=pruner is not None and pruner.protect_last)

    def _run_layer(
        self, index: int, layer: nn.Module, layout: TokenLayout, pruner: TokenPruner | None, trace: Trace | None
    ) -> None:
        decides = pruner is not None and index in pruner.layers
        trace_scorer = trace.scorer if trace is not None and index in trace.score_layers else None
        needs: set[Need] = set()
        if trace is not None and index in trace.score_layers:
            needs |= getattr(trace_scorer, "needs", {"received"})
        if pruner is not None and decides:
            needs |= pruner.scorer.needs
        if layout.hidden.shape[1] == 0:
            layout.skip_layer(index, trace)
            return
        attended, signals = self.family.attend(
            layer, layout.hidden, layout.call(frozenset(needs), pruner, self._relative_bias(layout))
        )
        state = layout.state(index, needs)
        keep, scores = state.keep, None
        if pruner is not None and decides:
            scores, keep = pruner.decide(index, signals, state, soft=layout.execution == "soft")
            layout.scores = scores if "previous" in pruner.scorer.needs else None
        if trace is not None:
            trace.layers.append(
                LayerTrace(
                    layer=index,
                    decided=decides,
                    tokens_in=state.count,
                    tokens_out=(keep > 0).float().sum(-1),
                    keep=keep,
                    position=state.position,
                    protected=state.protected,
                    received=signals.received,
                    scores=scores if trace_scorer is None else trace_scorer(signals, state),
                    scorer_macs=pruner.scorer.macs(state.count) if pruner is not None and decides else None,
                )
            )
        if decides:
            attended = layout.apply_keep(keep, attended)
        layout.hidden = self.family.feed_forward(layer, attended)
        if pruner is not None and decides and pruner.finishes_layer:
            layout.store_dropped()
        if pruner is not None and decides and layout.execution == "soft":
            layout.soften(pruner.soft_form)

    def _relative_bias(self, layout: TokenLayout) -> Float[Tensor, "batch heads tokens tokens"] | None:
        return None if self.family.relative is None else self.family.relative(self.blocks, layout.position)


class TranslationEncoder(PrunedEncoder):
    """Replacement for the encoder of a translation model: embeds tokens and returns the kept ones for the decoder.

    The end of the sentence and the first `prefix` tokens, which name the task, are always kept. Call it through
    prunekit.tokens.translation, because the decoder has to know which tokens are left; a call of the whole model
    raises TypeError.
    """

    main_input_name = "input_ids"

    def __init__(
        self, encoder: nn.Module, family: Family, pruner: TokenPruner | None, execution: Execution, prefix: int
    ) -> None:
        super().__init__(getattr(encoder, family.layers), family, pruner, execution)
        for name, child in encoder.named_children():
            if name not in (family.layers, "pruner"):
                self.add_module(name, child)
        stock = getattr(encoder, "stock", None)  # set where the encoder was replaced before
        self.stock = {name: getattr(encoder, name) for name in family.stock} if stock is None else stock
        self.prefix = prefix
        self.training = encoder.training  # embeddings have dropout

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings, which Hugging Face asks the encoder for."""
        return self.get_submodule("embed_tokens")

    def encode(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        *,
        trace: Trace | None = None,
        execution: str | None = None,
        prune: bool = True,
        protected: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Survivors:
        """Embed and encode the source; return the tokens that a decoder may attend to, with the weight of each."""
        assert self.family.embed is not None
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        hidden = self.family.embed(self, input_ids)
        kept = self._run_layers(hidden, mask, trace, execution, prune, protected).survivors()
        return kept if self.family.finish is None else replace(kept, hidden=self.family.finish(self, kept.hidden))

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Raise an error, because a decoder called this way would read all tokens, dropped ones too.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a pruned translation model was called like a stock one, so its decoder would see dropped tokens; "
            "call prunekit.tokens.translation.forward(model, ...) or generate(model, ...)."
        )

    def _protect(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        marked: Bool[Tensor, "batch tokens"] | None,
        pruner: TokenPruner | None,
    ) -> Float[Tensor, "batch tokens"]:
        return _protected_mask(hidden, mask, marked, self.prefix, last=True)


def _check_padding(pruner: TokenPruner, execution: str, width: int) -> None:
    """Check that a model whose decisions depend on padding is evaluated with the padding that it was made for.

    Raises:
        ValueError: it is not.
    """
    padded_to = pruner.scorer.padded_to
    if padded_to is None or (width == padded_to and execution not in ("drop", "pack")):
        return
    raise ValueError(
        f"execution={execution!r} with texts padded to {width} tokens: the decisions of this model depend on padding.\n"
        f"Allowed: execution='mask' with texts padded to {padded_to} tokens.\n"
        f"Give tokenizer(texts, padding='max_length', truncation=True, max_length={padded_to}, return_tensors='pt')."
    )


def _protected_mask(
    hidden: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"] | None,
    marked: Bool[Tensor, "batch tokens"] | None,
    first: int,
    *,
    last: bool,
) -> Float[Tensor, "batch tokens"]:
    """Return 1 for marked tokens, for the `first` leading ones and, if `last`, for the last one before the padding."""
    protected = hidden.new_zeros(hidden.shape[:2], dtype=torch.float32) if marked is None else marked.float()
    protected = torch.cat([torch.ones_like(protected[:, :first]), protected[:, first:]], dim=1)
    if last:
        column = torch.arange(protected.shape[1], device=protected.device)
        end = column[-1:] if mask is None else (column * mask).argmax(-1, keepdim=True)
        protected = torch.where(column == end, 1.0, protected)
    return protected


def install(
    model: PreTrainedModel,
    pruner: TokenPruner | None,
    execution: Execution = "pack",
    *,
    prefix: int | None = None,
    longest: int | None = None,
    separator: int | None = None,
) -> PreTrainedModel:
    """Replace the encoder of a Hugging Face model by a pruned one, in place, and return the model.

    Its dropout modules are replaced as well (tokens/dropout.py). Calling it again exchanges the pruner. Parameters of
    `pruner` become `...encoder.pruner.*` of the model. `prefix` is for translation models: the number of leading
    source tokens that name the task (T5) and are always kept. None keeps the current number, which is 0 at first.
    `longest` is for models that read cut texts, which translation models do not.
    `separator` is for models of pairs of texts: the token that ends the first, all of whose tokens are then kept.

    Raises:
        ValueError: an unsupported architecture, or `pruner.layers` names a layer that the model does not have.
    """
    family = family_of(model)
    parent, current = _parent(model, family), encoder_module(model)
    layers = getattr(current, family.layers)
    count = len(layers)
    beyond = sorted(layer for layer in (pruner.layers if pruner else ()) if not 0 <= layer < count)
    if beyond:
        raise ValueError(
            f"the pruner decides at layer {beyond[-1]}, but {type(model).__name__} has layers 0..{count - 1}; "
            f"choose layers in that range, or another backbone."
        )
    replace_dropout(model)
    if family.has_decoder:
        first = getattr(current, "prefix", 0) if prefix is None else prefix
        setattr(parent, family.encoder, TranslationEncoder(current, family, pruner, execution, first))
        _use_pruning_attention(layers)
        return model
    setattr(parent, family.encoder, PrunedEncoder(layers, family, pruner, execution, longest, separator))
    model.set_attn_implementation(IMPLEMENTATION)
    model.__dict__.pop("forward", None)
    if separator is not None:  # the encoder sees no token ids, by which segments are told apart
        model.__dict__["forward"] = partial(forward_protecting, model, separator)
    return model


def _parent(model: PreTrainedModel, family: Family) -> Any:
    """Return the module that holds the encoder: the base model, or the model itself (T5, which is its own base)."""
    return model.base_model if hasattr(model.base_model, family.encoder) else model


def _use_pruning_attention(layers: nn.ModuleList) -> None:
    """Make the encoder's layers call prunekit's attention, in place, but not a decoder that shares their config."""
    copies: dict[int, Any] = {}
    for module in layers.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            if id(config) not in copies:
                copies[id(config)] = copy.deepcopy(config)
                copies[id(config)]._attn_implementation = IMPLEMENTATION
                copies[id(copies[id(config)])] = copies[id(config)]
            module.config = copies[id(config)]


def encoder_module(model: PreTrainedModel) -> Any:
    """Return the module of a model that holds its encoder's layers, stock or pruned."""
    family = family_of(model)
    return getattr(_parent(model, family), family.encoder)


def encoder_of(model: PreTrainedModel) -> PrunedEncoder:
    """Return the pruned encoder of a model that `install` prepared.

    Raises:
        TypeError: the model has a stock encoder.
    """
    encoder = encoder_module(model)
    if not isinstance(encoder, PrunedEncoder):
        raise TypeError(
            f"{type(model).__name__} has a stock encoder; call prunekit.tokens.encoder.install(model, pruner) first."
        )
    return encoder
