"""The one traversal: a loop over Hugging Face's own layers that decides, after attention, which tokens go on.

for each layer:   attend -> score -> keep -> trace -> feed forward

dense   nothing is decided
soft    hidden = feed_forward(attended) * keep, or log(keep) joins the attention logits of later layers;
        tokens whose keep is exactly 0 are gathered away: they are hidden, and no gradient reaches them
mask    gone tokens are hidden from attention, and still computed
drop    survivors are gathered and re-padded
pack    survivors of the whole batch lie end to end, without padding
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from prunekit.tokens.attention import IMPLEMENTATION
from prunekit.tokens.dropout import with_cheap_masks
from prunekit.tokens.families.base import Family
from prunekit.tokens.families.registry import family_of
from prunekit.tokens.layout import Survivors, TokenLayout
from prunekit.tokens.pruner import TokenPruner as TokenPruner  # plug-ins import it from here
from prunekit.tokens.state import Execution, LayerTrace, Need, Trace

# what the models pass down beside hidden states and mask; an encoder has no use for any of it
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
    """Replaces the encoder of a Hugging Face model; calls its layers, and owns them under the same names.

    `execution` is what happens when the caller of the model names none.
    """

    def __init__(
        self, layers: nn.ModuleList, family: Family, pruner: TokenPruner | None, execution: Execution = "pack"
    ) -> None:
        super().__init__()
        self.add_module(family.layers, layers)
        self.family = family
        self.pruner = pruner
        self.execution: Execution = execution

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers of Hugging Face, whatever the family calls them."""
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
        **ignored: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Hidden states in the incoming shape; a gone token has the output of the last layer that it passed whole.

        `protected` marks tokens that must stay, beside [CLS]. `prune=False` decides nothing, whatever the execution:
        with "pack" that is the dense model without padding. Padding comes back as zeros under every execution.

        Raises:
            TypeError: an argument that neither prunekit nor transformers knows.
            ValueError: an unknown execution.
        """
        unknown = sorted(set(ignored) - _IGNORED)
        if unknown:
            raise TypeError(
                f"the model was called with {', '.join(unknown)}, which the pruned encoder does not know; "
                f"it takes trace, execution, prune and protected beside the arguments of transformers."
            )
        walk = self._walk(hidden_states, attention_mask, trace, execution, prune, protected)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=walk.restore())

    def _walk(
        self,
        hidden_states: Float[Tensor, "batch tokens hidden"],
        attention_mask: Bool[Tensor, "batch tokens"] | None,
        trace: Trace | None,
        execution: str | None,
        prune: bool,
        protected: Bool[Tensor, "batch tokens"] | None,
    ) -> TokenLayout:
        how: str = execution or self.execution
        if how not in get_args(Execution):
            raise ValueError(f"execution={how!r} is unknown; choose one of {', '.join(get_args(Execution))}.")
        pruner = self.pruner if prune and how != "dense" else None
        stays = self._stays(hidden_states, attention_mask, protected, pruner)
        removes = how == "drop" or (how == "soft" and pruner is not None and pruner.hide_gone)
        walk = TokenLayout(hidden_states, attention_mask, stays, how, removes=removes)
        for index, layer in enumerate(self.blocks):
            self._step(index, layer, walk, pruner, trace)
        return walk

    def _stays(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        marked: Bool[Tensor, "batch tokens"] | None,
        pruner: TokenPruner | None,
    ) -> Float[Tensor, "batch tokens"]:
        """1 where a token stays whatever its score: marked by the caller, or what the head reads."""
        first = int(pruner is None or pruner.protect_first)
        return _protected(hidden, mask, marked, first, last=pruner is not None and pruner.protect_last)

    def _step(
        self, index: int, layer: nn.Module, walk: TokenLayout, pruner: TokenPruner | None, trace: Trace | None
    ) -> None:
        decides = pruner is not None and index in pruner.layers
        asked = trace.scorer if trace is not None and index in trace.score_layers else None
        needs: set[Need] = set()
        if trace is not None and index in trace.score_layers:
            needs |= getattr(asked, "needs", {"received"})
        if pruner is not None and decides:
            needs |= pruner.scorer.needs
        if walk.hidden.shape[1] == 0:
            walk.pass_by(index, trace)
            return
        attended, signals = self.family.attend(
            layer, walk.hidden, walk.call(frozenset(needs), pruner, self._relative(walk))
        )
        state = walk.state(index, needs)
        keep, scores = state.keep, None
        if pruner is not None and decides:
            scores, keep = pruner.decide(index, signals, state, soft=walk.execution == "soft")
            walk.scores = scores if "previous" in pruner.scorer.needs else None
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
                    scores=scores if asked is None else asked(signals, state),
                    scorer_macs=pruner.scorer.macs(state.count) if pruner is not None and decides else None,
                )
            )
        if decides:
            attended = walk.leave(keep, attended)
        walk.hidden = self.family.feed_forward(layer, attended)
        if pruner is not None and decides and walk.execution == "soft":
            walk.soften(pruner.soft_form)

    def _relative(self, walk: TokenLayout) -> Float[Tensor, "batch heads tokens tokens"] | None:
        return None if self.family.relative is None else self.family.relative(self.blocks, walk.position)


class TranslationEncoder(PrunedEncoder):
    """Replaces the encoder of a translation model: embeds, traverses, and hands a decoder the tokens that are left.

    The end of the sentence stays, and the first `prefix` tokens, which name the task. It is called by
    prunekit.tokens.translation, because the decoder has to know who is left; a model that calls it is refused.
    """

    main_input_name = "input_ids"

    def __init__(
        self, encoder: nn.Module, family: Family, pruner: TokenPruner | None, execution: Execution, prefix: int
    ) -> None:
        super().__init__(getattr(encoder, family.layers), family, pruner, execution)
        for name, child in encoder.named_children():
            if name not in (family.layers, "pruner"):
                self.add_module(name, child)
        stock = getattr(encoder, "stock", None)  # of one that was prepared before
        self.stock = {name: getattr(encoder, name) for name in family.stock} if stock is None else stock
        self.prefix = prefix
        self.training = encoder.training  # embeddings have dropout

    def get_input_embeddings(self) -> nn.Module:
        """Of the words, where Hugging Face asks the encoder for them."""
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
        """What a decoder may attend to, and how much each of it counts."""
        assert self.family.embed is not None
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        hidden = self.family.embed(self, input_ids)
        left = self._walk(hidden, mask, trace, execution, prune, protected).survivors()
        return left if self.family.finish is None else replace(left, hidden=self.family.finish(self, left.hidden))

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Refuses: what a decoder would read with it are all tokens, pruned ones too.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a pruned translation model was called as a stock one, so its decoder would see tokens that are gone; "
            "call prunekit.tokens.translation.forward(model, ...) or generate(model, ...)."
        )

    def _stays(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        marked: Bool[Tensor, "batch tokens"] | None,
        pruner: TokenPruner | None,
    ) -> Float[Tensor, "batch tokens"]:
        return _protected(hidden, mask, marked, self.prefix, last=True)


def _protected(
    hidden: Float[Tensor, "batch tokens hidden"],
    mask: Bool[Tensor, "batch tokens"] | None,
    marked: Bool[Tensor, "batch tokens"] | None,
    first: int,
    *,
    last: bool,
) -> Float[Tensor, "batch tokens"]:
    """1 for marked tokens, the first so many, and the last real one."""
    stays = hidden.new_zeros(hidden.shape[:2], dtype=torch.float32) if marked is None else marked.float()
    stays = torch.cat([torch.ones_like(stays[:, :first]), stays[:, first:]], dim=1)
    if last:
        column = torch.arange(stays.shape[1], device=stays.device)
        end = column[-1:] if mask is None else (column * mask).argmax(-1, keepdim=True)
        stays = torch.where(column == end, 1.0, stays)
    return stays


def install(
    model: PreTrainedModel, pruner: TokenPruner | None, execution: Execution = "pack", *, prefix: int | None = None
) -> PreTrainedModel:
    """Puts the traversal into a Hugging Face model, in place, and returns the model; its dropout becomes ours.

    Calling it again exchanges the pruner. Parameters of `pruner` become `...encoder.pruner.*` of the model.
    `prefix` is of translation models: how many first tokens of a source name the task (T5), and always stay. None = as
    before, at first 0.

    Raises:
        ValueError: unsupported architecture, or `pruner.layers` names a layer that the model does not have.
    """
    family = family_of(model)
    parent = _parent(model, family)
    current = getattr(parent, family.encoder)
    layers = getattr(current, family.layers)
    count = len(layers)
    beyond = sorted(layer for layer in (pruner.layers if pruner else ()) if not 0 <= layer < count)
    if beyond:
        raise ValueError(
            f"the pruner decides at layer {beyond[-1]}, but {type(model).__name__} has layers 0..{count - 1}; "
            f"choose layers of that range, or another backbone."
        )
    with_cheap_masks(model)
    if family.translates:
        first = getattr(current, "prefix", 0) if prefix is None else prefix
        setattr(parent, family.encoder, TranslationEncoder(current, family, pruner, execution, first))
        _attend_with_ours(layers)
        return model
    setattr(parent, family.encoder, PrunedEncoder(layers, family, pruner, execution))
    model.set_attn_implementation(IMPLEMENTATION)
    return model


def _parent(model: PreTrainedModel, family: Family) -> Any:
    """The module that holds the encoder; T5 names itself as its base."""
    return model.base_model if hasattr(model.base_model, family.encoder) else model


def _attend_with_ours(layers: nn.ModuleList) -> None:
    """Has the encoder's layers call our attention function; a decoder that shares their config stays as it is."""
    own: dict[int, Any] = {}
    for module in layers.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            if id(config) not in own:
                own[id(config)] = copy.deepcopy(config)
                own[id(config)]._attn_implementation = IMPLEMENTATION
                own[id(own[id(config)])] = own[id(config)]
            module.config = own[id(config)]


def encoder_of(model: PreTrainedModel) -> PrunedEncoder:
    """The traversal inside a model that `install` prepared.

    Raises:
        TypeError: the model has none.
    """
    family = family_of(model)
    encoder = getattr(_parent(model, family), family.encoder)
    if not isinstance(encoder, PrunedEncoder):
        raise TypeError(
            f"{type(model).__name__} has a stock encoder; call prunekit.tokens.encoder.install(model, pruner) first."
        )
    return encoder
