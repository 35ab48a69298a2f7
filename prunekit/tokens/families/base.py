"""What the encoder needs to know about an architecture: the two halves of its layers, and its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.state import Signals

# the first argument is a Hugging Face layer, whose submodules torch does not type
Attend = Callable[[Any, Tensor, AttentionCall], tuple[Tensor, Signals]]
FeedForward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer under common names, from which the packed engine builds its own layers.

    hidden = attention_norm(output(attention(query, key, value)) + hidden), then norm(down(activation(up(x))) + x).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    norm: nn.LayerNorm
    heads: int


@dataclass(frozen=True)
class Family:
    """A Hugging Face architecture: the submodule that loops over layers, their name in it, and a layer's two halves.

    `relative` computes the relative position bias of attention from the tokens' positions in the unpruned text.
    For translation models, whose encoder embeds the tokens itself, `embed` does that, `stock` names the encoder's
    attributes (not modules) that it needs, and `finish` is applied after the last layer. `parts` returns the modules
    of a layer; None where this is not implemented yet.
    """

    encoder: str
    attend: Attend
    feed_forward: FeedForward
    layers: str = "layer"
    relative: Callable[[nn.ModuleList, Tensor], Tensor] | None = None
    embed: Callable[[Any, Tensor], Tensor] | None = None
    finish: Callable[[Any, Tensor], Tensor] | None = None
    stock: tuple[str, ...] = ()
    parts: Callable[[Any], LayerParts] | None = None

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder reads the encoder's output."""
        return self.embed is not None
