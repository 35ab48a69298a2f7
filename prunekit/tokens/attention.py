"""The attention function that prunekit registers with transformers: returns the output and what scorers need.

Padded and packed tokens share one kernel, `attend_padded`; a packed batch is a few padded groups of similar length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from prunekit.tokens.dropout import dropout as apply_dropout
from prunekit.tokens.packing import Packing
from prunekit.tokens.state import Need, Signals

IMPLEMENTATION = "prunekit"


@dataclass(frozen=True)
class AttentionCall:
    """Arguments that the encoder passes to one attention call; all but `packing` are in the padded view.

    `keys` marks the tokens that may be attended to (None: all), `queries` weights the rows summed in `received`
    (None: all count 1), `key_bias` is added to the logits of each key, `relative` to those of each pair (T5),
    `packing` is set for packed tokens.
    """

    needs: frozenset[Need] = frozenset()
    keys: Bool[Tensor, "batch tokens"] | None = None
    queries: Float[Tensor, "batch tokens"] | None = None
    key_bias: Float[Tensor, "batch tokens"] | None = None
    relative: Float[Tensor, "batch heads tokens tokens"] | None = None
    packing: Packing | None = None


def _additive_mask(
    keys: Bool[Tensor, "batch tokens"] | None, bias: Float[Tensor, "batch tokens"] | None, dtype: torch.dtype
) -> Float[Tensor, "batch 1 1 tokens"] | None:
    """Return the additive mask of the keys; hidden ones get the lowest finite number, so that no row becomes NaN."""
    if keys is None:
        return None if bias is None else bias.to(dtype)[:, None, None, :]
    hidden = torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill(~keys, torch.finfo(dtype).min)
    return (hidden if bias is None else torch.where(keys, bias.to(dtype), hidden))[:, None, None, :]


def attention_received(
    probs: Float[Tensor, "batch heads queries keys"], queries: Float[Tensor, "batch queries"] | None
) -> Float[Tensor, "batch keys"]:
    """Compute the canonical score: the attention each key receives, summed over alive queries, averaged over heads.

    Its mean over the alive tokens of a sentence is 1, whatever the length, the padding or the tokens already dropped.
    LTP (arXiv:2107.00910) and ToP (arXiv:2306.14393) divide this sum by the padded length instead.
    """
    probs = probs.float()
    if queries is None:
        return probs.sum(2).mean(1)
    return torch.einsum("bhqk,bq->bk", probs, queries.float()) / probs.shape[1]


def attend_padded(
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads tokens head"],
    value: Float[Tensor, "batch heads tokens head"],
    call: AttentionCall,
    dropout: float,
    scaling: float,
) -> tuple[Float[Tensor, "batch tokens heads head"], Signals]:
    """Compute attention over padded tokens, and the signals in `call.needs`.

    Without needs this is torch's fused attention. With needs the probabilities are computed, and returned only if a
    scorer needs them whole. They are computed for dropout on a CPU too, for which torch has no fused kernel.
    """
    if not call.needs & {"received", "probs", "dropped"} and not (dropout and query.device.type == "cpu"):
        mask: Tensor | None
        if call.relative is not None:
            hidden = _additive_mask(call.keys, call.key_bias, query.dtype)
            relative = call.relative.to(query.dtype)
            mask = relative if hidden is None else relative + hidden
        elif call.key_bias is None:
            mask = None if call.keys is None else call.keys[:, None, None, :].expand(-1, -1, query.shape[2], -1)
        else:
            mask = _additive_mask(call.keys, call.key_bias, query.dtype)
        fused = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scaling)
        return fused.transpose(1, 2), Signals()
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    if call.relative is not None:
        logits = logits + call.relative
    additive = _additive_mask(call.keys, call.key_bias, logits.dtype)
    probs = F.softmax(logits if additive is None else logits + additive, dim=-1)
    dropped = apply_dropout(probs, dropout) if dropout else probs
    output = torch.matmul(dropped.to(value.dtype), value).transpose(1, 2)
    return output, Signals(
        received=attention_received(probs, call.queries) if "received" in call.needs else None,
        probs=probs if "probs" in call.needs else None,
        dropped=dropped if "dropped" in call.needs else None,
    )


def attend_packed(
    query: Float[Tensor, "1 heads total head"],
    key: Float[Tensor, "1 heads total head"],
    value: Float[Tensor, "1 heads total head"],
    call: AttentionCall,
    packing: Packing,
    dropout: float,
    scaling: float,
) -> tuple[Float[Tensor, "1 total heads head"], Signals]:
    """Compute attention within each sentence of packed tokens; signals are returned in the padded view.

    Every packed row is alive, so every query counts.
    """
    heads, total, width = query.shape[1], query.shape[2], packing.width
    rows = [part[0].transpose(0, 1) for part in (query, key, value)]  # each [total, heads, head]
    output = value.new_empty((total, heads, value.shape[3]))
    batch = len(packing.lengths)
    collected: dict[str, Tensor] = {}
    for group in packing.groups:
        q, k, v = (part[group.rows].transpose(1, 2) for part in rows)  # [group, heads, width, head]
        queries = None if group.real is None else group.real.float()
        relative = None if call.relative is None else call.relative[group.sentences, :, : q.shape[2], : q.shape[2]]
        inner = AttentionCall(needs=call.needs, keys=group.real, queries=queries, relative=relative)
        mixed, signals = attend_padded(q, k, v, inner, dropout, scaling)
        if group.real is None:
            output[group.rows] = mixed.to(output.dtype)
        else:
            output[group.rows[group.real]] = mixed[group.real].to(output.dtype)
        for name in call.needs & {"received", "probs", "dropped"}:
            part = getattr(signals, name)
            if part.dim() == 4 and group.real is not None:
                part = part * group.real[:, None, :, None]  # zero the rows of padding queries
            shape = (batch, width) if part.dim() == 2 else (batch, heads, width, width)
            whole = collected.setdefault(name, part.new_zeros(shape))
            collected[name] = whole.index_put(
                (group.sentences,),
                F.pad(part, (0, width - part.shape[-1]) + (0, width - part.shape[-1]) * (part.dim() // 4)),
            )
    return output[None], Signals(**collected)


def pruning_attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads tokens head"],
    value: Float[Tensor, "batch heads tokens head"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    pruning_call: AttentionCall | None = None,
    **kwargs: object,
) -> tuple[Float[Tensor, "batch tokens heads head"], Signals]:
    """Compute attention for transformers' `attn_implementation="prunekit"`; the second result is `Signals`.

    Without `pruning_call` (a layer called outside the pruned encoder) this is plain attention under a padding mask.
    """
    call = pruning_call
    if call is None:
        call = AttentionCall(keys=None if attention_mask is None else attention_mask.bool())
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if call.packing is not None and not call.packing.is_uniform:
        return attend_packed(query, key, value, call, call.packing, dropout, scale)
    if call.packing is None:
        return attend_padded(query, key, value, call, dropout, scale)
    # equal lengths: the packed rows are the padded tokens, so no gather is needed
    batch = len(call.packing.lengths)
    q, k, v = (part[0].unflatten(1, (batch, -1)).transpose(0, 1) for part in (query, key, value))
    mixed, signals = attend_padded(q, k, v, AttentionCall(needs=call.needs, relative=call.relative), dropout, scale)
    return mixed.flatten(0, 1)[None], signals


def padding_mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: object
) -> Bool[Tensor, "batch tokens"] | None:
    """Return the padding mask as given, in two dimensions; None when nothing is padded.

    Registered along with the attention function: without it transformers silently passes no mask at all.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()


AttentionInterface.register(IMPLEMENTATION, pruning_attention)


AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
