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
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from prunekit.tokens.attention import IMPLEMENTATION, AttentionCall
from prunekit.tokens.backbones import Family, family_of
from prunekit.tokens.dropout import with_cheap_masks
from prunekit.tokens.packing import Packing
from prunekit.tokens.policies import KeepPolicy
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import Execution, LayerTrace, Need, Signals, TokenState, Trace

SoftForm = Literal["scale", "bias"]

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


class TokenPruner(nn.Module):
    """A token-pruning method as the traversal sees it: who scores, who decides, at which layers.

    `layers` are the layers (0-based) that decide between their attention and their feed-forward half.
    `soft_form` says what a fractional keep does in training: "scale" multiplies the layer's output by it, "bias" adds
    its logarithm to later attention, where the token then counts as a fraction of a key and of a vote.
    `protect_first` keeps [CLS] whatever its score, `protect_last` the last token, [SEP] or the end of a sentence.
    `hide_gone=False` lets tokens whose soft keep is 0 stay keys of later layers, as the references of ToP and LTP do.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: KeepPolicy,
        layers: Iterable[int],
        *,
        soft_form: SoftForm = "scale",
        protect_first: bool = True,
        protect_last: bool = False,
        hide_gone: bool = True,
    ) -> None:
        super().__init__()
        self.scorer = scorer
        self.policy = policy
        self.layers = frozenset(layers)
        self.soft_form = soft_form
        self.protect_first = protect_first
        self.protect_last = protect_last
        self.hide_gone = hide_gone

    def decide(
        self, layer: int, signals: Signals, state: TokenState, *, soft: bool
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Scores and keep at one layer."""
        scores = self.scorer(signals, state).float()
        return scores, self.keep(layer, scores, state, soft=soft)

    def keep(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState, *, soft: bool
    ) -> Float[Tensor, "batch tokens"]:
        """The decision on these scores; here a gone token stays gone and a protected one stays."""
        policy = self.policy.soft if soft else self.policy
        return torch.where(state.protected > 0, 1.0, policy(layer, scores, state).float()) * state.alive


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
    ) -> _Walk:
        how: str = execution or self.execution
        if how not in get_args(Execution):
            raise ValueError(f"execution={how!r} is unknown; choose one of {', '.join(get_args(Execution))}.")
        pruner = self.pruner if prune and how != "dense" else None
        stays = self._stays(hidden_states, attention_mask, protected, pruner)
        removes = how == "drop" or (how == "soft" and pruner is not None and pruner.hide_gone)
        walk = _Walk(hidden_states, attention_mask, stays, how, removes=removes)
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

    def _step(self, index: int, layer: nn.Module, walk: _Walk, pruner: TokenPruner | None, trace: Trace | None) -> None:
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

    def _relative(self, walk: _Walk) -> Float[Tensor, "batch heads tokens tokens"] | None:
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


@dataclass(frozen=True)
class Survivors:
    """The encoder's tokens as a decoder gets them, padded to the widest sentence that is left; `keep` is 0 at padding
    and at tokens that are gone, and between 0 and 1 under execution "soft".
    """

    hidden: Float[Tensor, "batch tokens hidden"]
    keep: Float[Tensor, "batch tokens"]
    position: Int[Tensor, "batch tokens"]


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


class _Walk:
    """One batch on its way through the layers: the layout of its tokens under one execution.

    `hidden` is [batch, tokens, hidden], or [1, total, hidden] under "pack"; the rest is in the padded view, which
    narrows to the longest sentence that is left where gone tokens are removed.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        mask: Bool[Tensor, "batch tokens"] | None,
        protected: Float[Tensor, "batch tokens"],
        execution: str,
        *,
        removes: bool,
    ) -> None:
        self.execution = execution
        self.removes = removes  # gone tokens leave the padded view
        batch, tokens, _ = hidden.shape
        self.everyone = mask is None  # no key has to be hidden
        self.real = hidden.new_ones((batch, tokens), dtype=torch.float32) if mask is None else mask.float()
        self.keep = self.real
        self.length = self.real.sum(-1)
        self.protected = protected
        self.position = torch.arange(tokens, device=hidden.device).expand(batch, tokens)
        self.hidden = hidden
        self.start = hidden
        self.bias: Tensor | None = None
        self.scores: Tensor | None = None  # of the last decision, where a scorer looks back
        self.packing: Packing | None = None
        self.output = torch.zeros_like(hidden)
        if execution == "pack":
            self._pack(hidden, self.real)

    def _pack(self, view: Tensor, keep: Tensor) -> None:
        """Packs a padded view; the padded bookkeeping shrinks to the longest sentence that is left."""
        chosen = keep > 0
        self.packing = Packing.of(chosen.sum(-1).tolist(), view.device)
        self.hidden = view[chosen][None]
        self.position = self.packing.padded(self.position[chosen])
        self.protected = self.packing.padded(self.protected[chosen])
        self.keep = self.packing.real.float()

    def call(self, needs: frozenset[Need], pruner: TokenPruner | None, relative: Tensor | None) -> AttentionCall:
        if self.packing is not None:
            return AttentionCall(needs=needs, relative=relative, packing=self.packing)
        hide = pruner is None or pruner.hide_gone or self.execution != "soft"
        keys = None if self.everyone else (self.keep if hide else self.real) > 0
        votes = None if self.everyone else (self.keep > 0).float() if self.bias is None else self.keep
        return AttentionCall(needs=needs, keys=keys, queries=votes, key_bias=self.bias, relative=relative)

    def state(self, layer: int, needs: set[Need]) -> TokenState:
        hidden = embedded = None
        if "hidden" in needs:
            hidden = self.hidden if self.packing is None else self.packing.padded(self.hidden[0])
        if "embedded" in needs:
            embedded = self.start.gather(1, self.position[..., None].expand(-1, -1, self.start.shape[-1]))
        return TokenState(self.keep, self.position, self.protected, self.length, hidden, self.scores, embedded, layer)

    def leave(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Takes the decision: remembers who leaves, and returns the attended rows of who goes on."""
        leaving = (self.keep > 0) & (keep == 0)
        if self.packing is None and not self.removes:
            self.output = torch.where(leaving[..., None], self.hidden.to(self.output.dtype), self.output)
            self.keep = keep
            self.everyone = False
            return attended
        staying = keep > 0
        if self.packing is None:
            self._remember(self.hidden[leaving], leaving)
            return self._drop(keep, attended)
        gone = leaving[self.packing.real]
        self._remember(self.hidden[0, gone], leaving)
        rows = attended[0, ~gone]
        packing = Packing.of(staying.sum(-1).tolist(), keep.device)
        self.position = packing.padded(self.position[staying])
        self.protected = packing.padded(self.protected[staying])
        self.scores = None if self.scores is None else packing.padded(self.scores[staying])
        self.packing = packing
        self.keep = self.packing.real.float()
        return rows[None]

    def _drop(self, keep: Float[Tensor, "batch tokens"], attended: Tensor) -> Tensor:
        """Gathers survivors to the left, in their order, and cuts the width to the longest sentence that is left."""
        gone = keep == 0
        width = int((~gone).sum(-1).max())
        order = gone.long().sort(dim=-1, stable=True).indices[:, :width]
        self.keep = keep.gather(1, order)
        # as under "pack": a column behind a sentence's last token stands nowhere, however wide its batch is
        self.position = self.position.gather(1, order) * (self.keep > 0)
        self.protected = self.protected.gather(1, order)
        self.scores = None if self.scores is None else self.scores.gather(1, order)
        self.everyone = False
        return attended.gather(1, order[..., None].expand(-1, -1, attended.shape[-1]))

    def _remember(self, rows: Float[Tensor, "rows hidden"], which: Bool[Tensor, "batch tokens"]) -> None:
        sentence = torch.arange(which.shape[0], device=which.device)[:, None].expand_as(which)[which]
        self.output = self.output.index_put((sentence, self.position[which]), rows.to(self.output.dtype))

    def soften(self, form: SoftForm) -> None:
        """What a fractional keep does to training: scales the layer's output, or biases later attention."""
        if form == "scale":
            self.hidden = self.hidden * self.keep[..., None].to(self.hidden.dtype)
            return
        alive = self.keep > 0
        self.bias = torch.where(alive, self.keep, 1.0).log()

    def pass_by(self, index: int, trace: Trace | None) -> None:
        """A layer that no token of the batch enters; only where [CLS] is not protected."""
        if trace is not None:
            none = self.keep.sum(-1)
            trace.layers.append(
                LayerTrace(
                    index, False, none, none, self.keep, self.position, self.keep, received=self.keep, scores=self.keep
                )
            )

    def survivors(self) -> Survivors:
        """Who is left behind the last layer, in the padded view."""
        hidden = self.hidden if self.packing is None else self.packing.padded(self.hidden[0])
        return Survivors(hidden, self.keep, self.position)

    def restore(self) -> Float[Tensor, "batch tokens hidden"]:
        """All tokens in the incoming shape: survivors from the last layer, the others from where they left."""
        here = self.keep > 0
        if self.packing is not None or self.removes:
            rows = self.hidden[0] if self.packing is not None else self.hidden[here]
            self._remember(rows, here)
            return self.output
        if self.everyone:
            return self.hidden
        return torch.where(here[..., None], self.hidden.to(self.output.dtype), self.output)


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
