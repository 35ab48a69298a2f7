"""The cost of a forward pass: multiply-accumulates from each layer's token counts; the only file with the formula.

FLOPs = 2 x MACs. Per layer, with p tokens entering attention and f entering the feed-forward half:

    MACs = 4*d*d*p + 2*d*p*p + 2*d*m*f        d hidden size, m feed-forward size

This counts the four projections, the two attention products and the two feed-forward products, but not embeddings,
biases, norms, softmax, pooler and head. LTP (arXiv:2107.00910, trainer.compute_macs) counts the same; ToP
(arXiv:2306.14393, Moonlit ToP/models/l0_module.py:461-594) adds one MAC per softmax element, `convention="top"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor
from torchmetrics import Metric

Convention = Literal["house", "top"]


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder on which its cost depends."""

    layers: int
    hidden: int
    ffn: int
    heads: int

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """Return the shape of a Hugging Face model, whatever names its family uses.

        Raises:
            ValueError: the configuration has a size under none of its known names.
        """

        def read(*names: str) -> int:
            for name in names:
                if hasattr(config, name):
                    return int(getattr(config, name))
            raise ValueError(
                f"{type(config).__name__} has neither {' nor '.join(names)}, so its cost cannot be counted; "
                f"build the shape by hand: Shape(layers, hidden, ffn, heads)."
            )

        return cls(
            layers=read("encoder_layers", "num_hidden_layers", "n_layers"),
            hidden=read("hidden_size", "dim"),
            ffn=read("encoder_ffn_dim", "d_ff", "intermediate_size", "hidden_dim"),
            heads=read("encoder_attention_heads", "num_attention_heads", "n_heads"),
        )


BERT_BASE = Shape(layers=12, hidden=768, ffn=3072, heads=12)


def layer_macs(
    shape: Shape,
    tokens_in: Num[Tensor, "*sentences"],
    tokens_out: Num[Tensor, "*sentences"],
    convention: Convention = "house",
) -> Float[Tensor, "*sentences"]:
    """Return the MACs of one layer per sentence, from the tokens entering its two halves; float64, differentiable."""
    p, f = tokens_in.double(), tokens_out.double()
    d = shape.hidden
    softmax = shape.heads * p * p if convention == "top" else 0.0
    return 4 * d * d * p + 2 * d * p * p + 2 * d * shape.ffn * f + softmax


def encoder_macs(
    shape: Shape,
    tokens_in: Num[Tensor, "layers *sentences"],
    tokens_out: Num[Tensor, "layers *sentences"],
    convention: Convention = "house",
    *,
    first_only: bool = False,
) -> Float[Tensor, "*sentences"]:
    """Return the MACs of the encoder per sentence; with `first_only` the last layer computes only the first token."""
    layers = layer_macs(shape, tokens_in, tokens_out, convention)
    if not first_only:
        return layers.sum(0)
    # keys and values of all tokens, everything else of one token
    d, p = shape.hidden, tokens_in[-1].double()
    softmax = shape.heads * p if convention == "top" else 0.0
    return layers[:-1].sum(0) + 2 * d * d * (p + 1) + 2 * d * p + 2 * d * shape.ffn + softmax


def dense_macs(
    shape: Shape, lengths: Num[Tensor, "*sentences"], convention: Convention = "house"
) -> Float[Tensor, "*sentences"]:
    """Return the MACs of the unpruned encoder for sentences of these lengths, without padding."""
    return shape.layers * layer_macs(shape, lengths, lengths, convention)


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder on which its cost depends."""

    layers: int
    hidden: int
    ffn: int
    heads: int  # total width of all heads
    vocabulary: int

    @classmethod
    def from_config(cls, config: Any) -> DecoderShape:
        """Return the shape of the decoder of a Hugging Face translation model (Marian, T5)."""
        heads = getattr(config, "num_heads", None)
        return cls(
            layers=int(getattr(config, "decoder_layers", None) or config.num_decoder_layers),
            hidden=int(config.hidden_size),
            ffn=int(getattr(config, "decoder_ffn_dim", None) or config.d_ff),
            heads=int(heads * config.d_kv if heads else config.hidden_size),
            vocabulary=int(config.vocab_size),
        )


def decoder_macs(
    shape: DecoderShape, sources: Num[Tensor, "sentences"], words: Num[Tensor, "sentences"]
) -> Float[Tensor, "sentences"]:
    """Return the MACs of one decoder pass per sentence, over `words` words that attend to `sources` tokens; float64.

    Counted like the encoder, per layer: self-attention over all words as in teacher forcing, cross-attention,
    feed-forward; plus the product with the vocabulary once per word. A search with n beams costs about n times that,
    except for the keys and values of the source.
    """
    s, t = sources.double(), words.double()
    d, a = shape.hidden, shape.heads
    self_attention = 4 * d * a * t + 2 * a * t * t
    cross_attention = 2 * d * a * t + 2 * d * a * s + 2 * a * t * s
    return shape.layers * (self_attention + cross_attention + 2 * d * shape.ffn * t) + d * shape.vocabulary * t


def expected_keep(
    fine: Float[Tensor, "locations bins"], coarse: Float[Tensor, "locations"]
) -> Float[Tensor, "locations"]:
    """Return the expected keep ratio of each location if all bins have equal weight: 1 - (1 - mean fine) * coarse."""
    return 1 - (1 - fine.mean(-1)) * coarse


def nominal_counts(
    keep: Float[Tensor, "locations"],
    lengths: Shaped[Tensor, "sentences"],
    decision_layers: Sequence[int],
    layers: int,
    protected: Shaped[Tensor, "sentences"] | int = 1,
) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
    """Return the fractional tokens entering attention and feed-forward if each location keeps exactly its share.

    `protected` is the number of protected tokens per sentence, [CLS] included.
    Source: top.md 2.1, Moonlit l0_module.py:596-663, where the length is (L - 1) * r + 1.
    """
    share = keep.new_ones(())
    row = {layer: index for index, layer in enumerate(decision_layers)}
    ranked = lengths.to(keep.dtype) - protected
    tokens_in, tokens_out = [], []
    for layer in range(layers):
        tokens_in.append(ranked * share + protected)
        if layer in row:
            share = share * keep[row[layer]]
        tokens_out.append(ranked * share + protected)
    return torch.stack(tokens_in), torch.stack(tokens_out)


def bin_occupancy(count: Float[Tensor, "sentences"], bins: int) -> Float[Tensor, "sentences bins"]:
    """Return how many of `count` ranked tokens fall in each bin under the rule (rank * bins) // count.

    Exact for integers, and interpolated between them, because expected counts are fractional.
    """

    def of_integer(number: Tensor) -> Tensor:
        # ranks r with b <= r*bins/n < b+1 are those of [ceil(b*n/bins), ceil((b+1)*n/bins))
        edges = torch.arange(bins + 1, device=number.device, dtype=number.dtype)
        bounds = (edges * number[:, None] / bins).ceil()
        return bounds[:, 1:] - bounds[:, :-1]

    count = count.double()
    lower = count.floor()
    part = (count - lower)[:, None]
    return (1 - part) * of_integer(lower) + part * of_integer(lower + 1)


def expected_counts(
    fine: Float[Tensor, "locations bins"],
    coarse: Float[Tensor, "locations"],
    lengths: Shaped[Tensor, "sentences"],
    decision_layers: Sequence[int],
    layers: int,
    min_tokens: int = 0,
    protected: Shaped[Tensor, "sentences"] | int = 1,
) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
    """Return the expected tokens entering attention and feed-forward, each bin weighted by the tokens it really holds.

    A sentence with fewer tokens than bins leaves bins empty: closing those saves nothing, and is counted as nothing
    here. `protected` tokens ([CLS] included) and `min_tokens` others are kept whatever the gates. Differentiable in
    the open probabilities, not in how many tokens a bin holds.
    """
    row = {layer: index for index, layer in enumerate(decision_layers)}
    ranked = lengths.to(fine.dtype) - protected
    tokens_in, tokens_out = [], []
    for layer in range(layers):
        tokens_in.append(ranked + protected)
        if layer in row:
            held = bin_occupancy(ranked.detach(), fine.shape[-1]).to(fine.dtype)
            kept = (held * fine[row[layer]]).sum(-1) / held.sum(-1).clamp(min=1e-9)
            fewest = ranked.clamp(max=float(min_tokens))
            ranked = torch.maximum(ranked * (1 - (1 - kept) * coarse[row[layer]]), fewest)
        tokens_out.append(ranked + protected)
    return torch.stack(tokens_in), torch.stack(tokens_out)


def straight_through_counts(
    keep: Float[Tensor, "decisions batch tokens"],
    lengths: Shaped[Tensor, "batch"],
    decision_layers: Sequence[int],
    layers: int,
) -> tuple[Float[Tensor, "layers batch"], Float[Tensor, "layers batch"]]:
    """Return the tokens entering attention and feed-forward if soft masks are cut at 1/2, with their soft gradient.

    A token that one layer drops is dropped for all later ones. `keep` is 0 at padding.
    """
    cut = (keep >= 0.5).to(keep.dtype) + keep - keep.detach()
    left = cut.cumprod(0).sum(-1)
    row = {layer: index for index, layer in enumerate(decision_layers)}
    now, tokens_in, tokens_out = lengths.to(keep.dtype), [], []
    for layer in range(layers):
        tokens_in.append(now)
        if layer in row:
            now = left[row[layer]]
        tokens_out.append(now)
    return torch.stack(tokens_in), torch.stack(tokens_out)


def sparsity(
    shape: Shape,
    tokens_in: Float[Tensor, "layers sentences"],
    tokens_out: Float[Tensor, "layers sentences"],
    lengths: Shaped[Tensor, "sentences"],
    convention: Convention = "house",
) -> Float[Tensor, ""]:
    """Return 1 - the mean over sentences of pruned MACs / MACs of the same sentence unpruned and unpadded."""
    left = encoder_macs(shape, tokens_in, tokens_out, convention) / dense_macs(shape, lengths, convention)
    return (1 - left).mean()


def max_sparsity(
    shape: Shape, lengths: Shaped[Tensor, "sentences"], first_decision_layer: int, convention: Convention = "house"
) -> float:
    """Return the sparsity if everything but [CLS] is dropped after the attention of `first_decision_layer` (0-based).

    No decision from that layer on saves more, so a target above it cannot be met. A prune location of ToP is the layer
    before which tokens are dropped: location 2 is decision layer 1.
    """
    nothing = torch.zeros(1, dtype=torch.float64, device=lengths.device)
    tokens_in, tokens_out = nominal_counts(nothing, lengths, [first_decision_layer], shape.layers)
    return float(sparsity(shape, tokens_in, tokens_out, lengths, convention))


def reference_macs_sparsity(ratios: Sequence[float], average_length: int, shape: Shape = BERT_BASE) -> float:
    """Return what ToP's code prints as `macs_sparsity`: constant length, cumulative ratios rounded to two decimals.

    `ratios` are the keep ratios at the input of each layer; their products are rounded, half to even, and not carried
    on rounded. Only for comparison with published logs.
    """
    shares = torch.tensor(ratios, dtype=torch.float64).cumprod(0).round(decimals=2).tolist()
    counts = [int((average_length - 1) * share) + 1 for share in shares]
    tokens_in = torch.tensor(counts)
    tokens_out = torch.tensor([*counts[1:], counts[-1]])
    dense = dense_macs(shape, torch.tensor(average_length), "top")
    return float(1 - encoder_macs(shape, tokens_in, tokens_out, "top") / dense)


class CostMeter(Metric):
    """Mean cost per sentence, from executed token counts, compared with both baselines.

    `flops_vs_unpadded` compares with the same sentences unpruned and without padding, `flops_vs_padded` with every
    sentence padded to `padded_to` tokens (ToP's convention; longer sentences have the same constant baseline there,
    and so here). Both are ratios of sums. `extra_macs` adds the scorer's work per sentence. `shape` is that of the
    unpruned encoder: an update with fewer layers is of a model that has no more, and no tokens enter the others.
    """

    full_state_update = False
    sentences: Tensor
    pruned: Tensor
    unpadded: Tensor
    ratios: Tensor
    tokens: Tensor

    def __init__(self, shape: Shape, padded_to: int) -> None:
        super().__init__()
        self.shape = shape
        self.padded_to = padded_to
        for name in ("sentences", "pruned", "unpadded", "ratios"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(shape.layers, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        tokens_in: Float[Tensor, "layers batch"],
        tokens_out: Float[Tensor, "layers batch"],
        lengths: Int[Tensor, "batch"],
        extra_macs: Float[Tensor, "batch"] | float = 0.0,
    ) -> None:
        """Add a batch; `lengths` are the numbers of real tokens before pruning."""
        spent = encoder_macs(self.shape, tokens_in, tokens_out) + extra_macs
        dense = dense_macs(self.shape, lengths)
        self.sentences += len(lengths)
        self.pruned += spent.sum()
        self.unpadded += dense.sum()
        self.ratios += (spent / dense).sum()
        self.tokens[: len(tokens_out)] += tokens_out.double().sum(-1)

    def compute(self) -> dict[str, Tensor]:
        """Return GFLOPs per sentence (dense_unpadded_g, dense_padded_g, pruned_g), reductions and tokens per layer."""
        padded = self.sentences * dense_macs(self.shape, torch.tensor(self.padded_to)).to(self.sentences.device)
        giga = 2e-9 / self.sentences
        return {
            "dense_unpadded_g": self.unpadded * giga,
            "dense_padded_g": padded * giga,
            "pruned_g": self.pruned * giga,
            "flops_vs_unpadded": self.unpadded / self.pruned,
            "flops_vs_padded": padded / self.pruned,
            "mean_of_ratios": self.ratios / self.sentences,
            "tokens_out_mean": self.tokens / self.sentences,
        }
