"""The supported Hugging Face families: where each keeps its layers, and how a layer splits into two halves.

A new family with the layers of a known one is one entry here. Only this package and attention.py know the insides of
a layer.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from prunekit.tokens.families.base import Family
from prunekit.tokens.families.bert import _BERT
from prunekit.tokens.families.distilbert import _attend_distilbert, _feed_forward_distilbert, _parts_distilbert
from prunekit.tokens.families.marian import _attend_marian, _embed_marian, _feed_forward_marian
from prunekit.tokens.families.t5 import _attend_t5, _embed_t5, _feed_forward_t5, _finish_t5, _relative_t5

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Family("transformer", _attend_distilbert, _feed_forward_distilbert, parts=_parts_distilbert),
    "marian": Family(
        "encoder",
        _attend_marian,
        _feed_forward_marian,
        layers="layers",
        embed=_embed_marian,
        stock=("embed_scale", "dropout"),
    ),
    "t5": Family(
        "encoder",
        _attend_t5,
        _feed_forward_t5,
        layers="block",
        relative=_relative_t5,
        embed=_embed_t5,
        finish=_finish_t5,
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    """Return the family of a Hugging Face model.

    Raises:
        ValueError: the architecture is not supported, or the model is a decoder.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"{type(model).__name__} is of the family {kind!r}, which prunekit cannot prune; "
            f"supported are {', '.join(sorted(FAMILIES))}; add it in tokens/families/ or choose another backbone."
        )
    if getattr(model.config, "is_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has is_decoder=True, but tokens can only be removed from encoders; "
            f"set is_decoder=False."
        )
    return FAMILIES[kind]
