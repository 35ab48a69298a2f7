"""ToP's gates with their bins tied: at each layer those of the best ranks are open, and one share says how many.

Gates: ToP, arXiv:2306.14393; hard concrete, arXiv:1712.01312. That a layer's gates share one draw and one parameter, so
that few steps suffice to learn them, is prunekit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.budget import bisect
from prunekit.tokens.gates import DEFAULT, HardConcrete, gates_at, rank_bins
from prunekit.tokens.policies import KeepPolicy, KeepRatio, ranks
from prunekit.tokens.state import TokenState

MOST_ODDS = 14.0  # of a share: so close to 1 that also after 24 layers a text of 4,096 tokens keeps them all
MOST_SHIFT = 20.0  # of the log odds of all shares, to meet a budget
STEEPNESS = 6.0  # log odds by which the gates fall from the best rank to the one where half of the draws are open


class PrefixGate(KeepPolicy):
    """Policy with a gate for each rank, open for the best ones: each layer keeps a share of the tokens it is given.

    `loga` [layers] are the log odds of these shares, the only parameters. The hard decision of a layer keeps the share
    of the *unpruned* sentence that is left after the shares of all layers so far, as `KeepRatio` counts it. In training
    the gate of a rank is hard concrete, and all ranks share one draw: a random cut near the share. With `bins`
    the ranks of a bin share a gate too; exactly as many tokens are kept all the same.
    """

    def __init__(
        self,
        shares: Mapping[Any, float],
        *,
        bins: int | None = None,
        distribution: HardConcrete | Mapping[str, float] = DEFAULT,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.start = {int(layer): float(share) for layer, share in shares.items()}
        self.row = {layer: row for row, layer in enumerate(self.start)}
        self.distribution = distribution if isinstance(distribution, HardConcrete) else HardConcrete(**distribution)
        self.loga = nn.Parameter(torch.empty(len(self.start)))
        self.reset()

    def arguments(self) -> dict[str, Any]:
        """Return the profile that the policy starts with; what was learned is a tensor of the checkpoint."""
        return {"shares": self.start, "bins": self.bins, "distribution": asdict(self.distribution)}

    @torch.no_grad()
    def reset(self) -> None:
        """Set the log odds to those of the profile that the policy starts with."""
        whole = torch.tensor([1.0, *self.start.values()], dtype=torch.float64)
        self.loga.copy_((whole[1:] / whole[:-1]).logit().clamp(-MOST_ODDS, MOST_ODDS))

    def profile(self, shift: float = 0.0) -> dict[int, float]:
        """Return the share of the unpruned sentence that each layer keeps, with `shift` added to all log odds."""
        left = torch.sigmoid(self.loga.detach().double() + shift).cumprod(0)
        return dict(zip(self.row, left.tolist(), strict=True))

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Keep the best tokens, as many as the profile says."""
        return KeepRatio(self.profile())(layer, scores, state)

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return the gates of the ranks for one draw, which the whole batch shares."""
        eligible = state.alive * (state.protected == 0)
        rank, count = ranks(scores, eligible), eligible.sum(-1).long()
        if self.bins is not None:
            rank, count = rank_bins(rank, count, self.bins), torch.full_like(count, self.bins)
        place = (rank + 0.5) / count.clamp(min=1)[:, None]
        log_alpha = STEEPNESS * (1 - place / torch.sigmoid(self.loga[self.row[layer]]))
        drawn = place.new_empty(()).uniform_(self.distribution.eps, 1 - self.distribution.eps)
        return gates_at(drawn.expand_as(place), log_alpha, self.distribution) * eligible

    def counts(
        self, lengths: Int[Tensor, "sentences"], layers: int, protected: Int[Tensor, "sentences"] | int = 1
    ) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
        """Return the tokens entering attention and feed-forward of each of `layers` layers, as in `KeepRatio`."""
        return KeepRatio(self.profile()).counts(lengths, layers, protected)

    def expected_keep(self) -> Float[Tensor, "locations"]:
        """Return the share that each layer keeps of the tokens it is given; differentiable."""
        return torch.sigmoid(self.loga)

    @torch.no_grad()
    def meet(self, measure: Callable[[Mapping[int, float]], float], target: float) -> None:
        """Add one constant to all log odds, such that `measure(profile)`, a FLOPs reduction, is nearest to `target`."""
        knob = bisect(
            lambda knob: measure(self.profile(-knob)), target, low=-MOST_SHIFT, high=MOST_SHIFT, tolerance=0.0
        ).knob
        self.loga.sub_(knob).clamp_(-MOST_ODDS, MOST_ODDS)
