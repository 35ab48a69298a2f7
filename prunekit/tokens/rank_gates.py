"""ToP's policy: a learned gate per rank bin times a learned switch per layer.

Source: ToP, arXiv:2306.14393; reference code microsoft/Moonlit, ToP/models/l0_module.py and modeling_bert.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.budget import bisect
from prunekit.tokens.gates import (
    DEFAULT,
    LOGA_BOUND,
    HardConcrete,
    deterministic_coarse,
    deterministic_fine,
    keep_from_gates,
    open_probability,
    rank_bins,
    sample_gates,
)
from prunekit.tokens.policies import KeepPolicy, ranks
from prunekit.tokens.state import TokenState

FULL_SHIFT = 20.0  # of the log odds: opens, or closes, every bin whatever was learned


class RankGate(KeepPolicy):
    """Policy that sorts alive tokens into `bins` by relative rank and keeps those in bins whose gate is open.

    `token_loga` [locations, bins] and `pruner_loga` [locations] are the log odds of the gates and of the layers'
    switches. `shift` [locations] is added to the former before the hard decision, to meet a budget.
    The bins' log odds start at `init_fine` and fall by `init_slope` from the first bin to the last.
    Protected tokens are not ranked. The batch shares one draw per layer and step.
    `monotone` closes every bin after a closed one; the `min_tokens` best tokens are always kept.
    """

    shift: Tensor

    def __init__(
        self,
        layers: Sequence[int],
        bins: int,
        *,
        distribution: HardConcrete | Mapping[str, float] = DEFAULT,
        init_fine: float = LOGA_BOUND,
        init_slope: float = 0.0,
        init_coarse: float = -LOGA_BOUND,
        min_tokens: int = 0,
        monotone: bool = False,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.row = {layer: row for row, layer in enumerate(layers)}
        self.bins = bins
        self.distribution = distribution if isinstance(distribution, HardConcrete) else HardConcrete(**distribution)
        self.min_tokens = min_tokens
        self.monotone = monotone
        self.compat = compat
        self.token_loga = nn.Parameter((init_fine - init_slope * torch.linspace(0, 1, bins)).repeat(len(layers), 1))
        self.pruner_loga = nn.Parameter(torch.full((len(layers),), init_coarse))
        self.register_buffer("shift", torch.zeros(len(layers)))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that rebuild the policy; the gates are tensors of the checkpoint."""
        return {
            "layers": list(self.row),
            "bins": self.bins,
            "min_tokens": self.min_tokens,
            "monotone": self.monotone,
            "compat": self.compat,
            "distribution": asdict(self.distribution),
        }

    def hard_gates(
        self, shift: Float[Tensor, "locations"] | None = None
    ) -> tuple[Float[Tensor, "locations bins"], Float[Tensor, "locations"]]:
        """Return the binary gates of all bins and the switches of all layers, as evaluation uses them."""
        by = self.shift if shift is None else shift
        fine = deterministic_fine(self._make_monotone(self.token_loga.detach() + by[:, None]), self.distribution)
        return fine, deterministic_coarse(self.pruner_loga.detach(), self.distribution)

    def open_probabilities(self) -> tuple[Float[Tensor, "locations bins"], Float[Tensor, "locations"]]:
        """Return P(gate > 0) of all bins and all layers' switches; differentiable."""
        fine = open_probability(self._make_monotone(self.token_loga), self.distribution)
        return fine, open_probability(self.pruner_loga, self.distribution)

    def _make_monotone(self, fine: Float[Tensor, "*locations bins"]) -> Float[Tensor, "*locations bins"]:
        """Return values that never rise from bin to bin, if `monotone`; else the values as they are."""
        return fine.cummin(-1).values if self.monotone else fine

    def _eligible_mask(self, state: TokenState) -> Float[Tensor, "batch tokens"]:
        return state.alive * (state.protected == 0)

    def _bin_values(
        self, gates: Float[Tensor, "bins"], scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return the gate of each eligible token's bin; 0 for dropped and protected tokens."""
        eligible = self._eligible_mask(state)
        rank = ranks(scores, eligible)
        bins = rank_bins(rank, eligible.sum(-1).long(), self.bins, compat=self.compat)
        values = torch.cat([gates, gates.new_zeros(1)])[bins] * eligible
        return torch.where((rank < self.min_tokens) & (eligible > 0), 1.0, values)

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return 1 where the deterministic gate of the token's bin is open, or where the layer's switch is off."""
        fine, coarse = self.hard_gates()
        row = self.row[layer]
        return keep_from_gates(self._bin_values(fine[row], scores, state), coarse[row], self._eligible_mask(state))

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return keep under gates drawn from their hard-concrete distribution; one draw for the whole batch."""
        row = self.row[layer]
        fine = self._make_monotone(sample_gates(self.token_loga[row], self.distribution))
        coarse = sample_gates(self.pruner_loga[row], self.distribution)
        return keep_from_gates(self._bin_values(fine, scores, state), coarse, self._eligible_mask(state))

    def counts(
        self,
        lengths: Int[Tensor, "sentences"],
        layers: int,
        shift: Float[Tensor, "locations"] | None = None,
        protected: Int[Tensor, "sentences"] | int = 1,
    ) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
        """Return the tokens entering attention and feed-forward of each of `layers` layers, for these lengths.

        Exact without running the model, because the number of kept ranks depends on the length alone. `protected` is
        the number of protected tokens per sentence, [CLS] included; they are kept and have no rank.
        """
        fine, coarse = self.hard_gates(shift)
        fixed = torch.as_tensor(protected).cpu().expand(len(lengths))
        unique, inverse = torch.stack([lengths.cpu().long(), fixed.long()], -1).unique(dim=0, return_inverse=True)
        fixed = unique[:, 1]
        tokens_in, tokens_out = [], []
        ranked = unique[:, 0] - fixed
        for layer in range(layers):
            tokens_in.append(ranked + fixed)
            row = self.row.get(layer)
            if row is not None and coarse[row] > 0:
                ranked = self._count_kept(fine[row].cpu(), ranked)
            tokens_out.append(ranked + fixed)
        return torch.stack(tokens_in)[:, inverse].float(), torch.stack(tokens_out)[:, inverse].float()

    def _count_kept(self, gates: Float[Tensor, "bins"], ranked: Int[Tensor, "sentences"]) -> Int[Tensor, "sentences"]:
        rank = torch.arange(max(1, int(ranked.max()))).expand(len(ranked), -1)
        bins = rank_bins(rank, ranked, self.bins, compat=self.compat)
        kept = torch.cat([gates, gates.new_zeros(1)])[bins].maximum((rank < self.min_tokens).float())
        return (kept * (rank < ranked[:, None])).sum(-1).long()

    @torch.no_grad()
    def meet(
        self, measure: Callable[[Float[Tensor, "locations"]], float], target: float, tolerance: float = 0.02
    ) -> None:
        """Set `shift` so that `measure`, a FLOPs reduction as a function of the shift, is nearest to `target`.

        One constant for all locations comes close; then each location in turn moves by at most 1, because a bin of a
        late layer weighs less than one of an early layer. Where bins are few and the target is still not within
        `tolerance`, each location moves further, and then two at once: one closes a bin while the other opens one. If
        no layer's switch is on, all are switched on first; if those that are on cannot reach the target, others are
        switched on too, the likeliest first.
        """
        on = deterministic_coarse(self.pruner_loga, self.distribution) > 0
        if not on.any():
            self.pruner_loga.fill_(LOGA_BOUND)
            on.fill_(True)
        while not on.all() and measure(torch.full_like(self.shift, -FULL_SHIFT)) < target:
            likeliest = self.pruner_loga.masked_fill(on, -math.inf).argmax()
            self.pruner_loga[likeliest] = LOGA_BOUND
            on[likeliest] = True
        constant = bisect(
            lambda knob: measure(torch.full_like(self.shift, -knob)),
            target,
            low=-FULL_SHIFT,
            high=FULL_SHIFT,
            tolerance=0.0,
        )
        self.shift.fill_(-constant.knob)
        error = abs(target / constant.reached - 1)
        units = torch.eye(len(self.shift), device=self.shift.device)
        for pairs, reach in ((False, 1.0), (False, FULL_SHIFT), (True, FULL_SHIFT)):
            firsts = self._moves() if pairs else [torch.zeros_like(self.shift)]
            for first, unit in product(firsts, units):
                measure_along = partial(_measure_along, measure, self.shift + first, -unit)
                finer = bisect(measure_along, target, low=-reach, high=reach, tolerance=0.0)
                if abs(target / finer.reached - 1) < error:
                    error = abs(target / finer.reached - 1)
                    self.shift.add_(first - finer.knob * unit)
                    if pairs and error <= tolerance:
                        return  # as few moves as suffice
            if error <= tolerance:
                return

    def _moves(self) -> list[Float[Tensor, "locations"]]:
        """Return changes of one location's shift that open or close up to three of its bins, fewest bins first."""
        current = self.hard_gates()[0].sum(-1).long()
        moves: dict[tuple[int, int, int], Tensor] = {}
        for by in torch.arange(-2 * FULL_SHIFT, 2 * FULL_SHIFT, 0.25, device=self.shift.device):
            open_bins = self.hard_gates(self.shift + by)[0].sum(-1).long()
            for row, unit in enumerate(torch.eye(len(current), device=self.shift.device)):
                if 1 <= abs(change := int(open_bins[row] - current[row])) <= 3:
                    moves.setdefault((abs(change), change, row), by * unit)
        return [moves[key] for key in sorted(moves)]

    @torch.no_grad()
    def clamp(self, bound: float = LOGA_BOUND) -> None:
        """Clamp the log odds to +-bound, in place, as the reference code does after every step."""
        self.token_loga.clamp_(-bound, bound)
        self.pruner_loga.clamp_(-bound, bound)


def _measure_along(measure: Callable[[Tensor], float], start: Tensor, direction: Tensor, knob: float) -> float:
    return measure(start + knob * direction)
