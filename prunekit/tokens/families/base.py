"""What the encoder needs to know about an architecture: its layers' two halves and its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunekit.tokens.attention import AttentionCall
from prunekit.tokens.state import Signals

# a layer of Hugging Face: a module whose parts torch does not type
Attend = Callable[[Any, Tensor, AttentionCall], tuple[Tensor, Signals]]
FeedForward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer, whatever its family calls them: what a runtime of its own is compiled from.

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
    """A Hugging Face architecture: the submodule that loops over layers, what it calls them, and a layer's two halves.

    `relative` is what attention adds for distances, from the tokens' positions in the unpruned text. Where the encoder
    of a translation model embeds tokens itself, `embed` does that, with what is not a module of it named in `stock`;
    `finish` is what it does behind the last layer. `parts` takes a layer apart, None where nobody wrote that yet.
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
    def translates(self) -> bool:
        """Whether a decoder reads what the encoder leaves."""
        return self.embed is not None
