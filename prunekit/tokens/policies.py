"""How many tokens stay: policies turn importance into keep, 1 = stays.

A `KeepPolicy` makes the hard decision of every evaluation; a policy that is trained has a `soft` decision too.
Protection, and that a gone token stays gone, are the traversal's business (encoder.py), not a policy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.budget import Bisected, bisect
from prunekit.tokens.state import TokenState

MOST_SHIFT = 1e6  # of k: a deviation is 1e-3 at least, so that everything goes, or nothing
LEAST_SHARE = 0.01  # where the published schedule ends, whatever its rate


class KeepPolicy(nn.Module):
    """A decision per layer: calling it returns keep in {0, 1}; `soft` may return values between while training."""

    def arguments(self) -> dict[str, Any]:
        """What `__init__` needs to make this policy again; plain JSON."""
        return {}

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """The hard decision at `layer` (0-based)."""
        raise NotImplementedError(
            f"{type(self).__name__} is a policy without forward(layer, scores, state); define it."
        )

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """The decision while the policy is trained; by default the hard one."""
        return self(layer, scores, state)


def ranks(
    scores: Float[Tensor, "batch tokens"], eligible: Float[Tensor, "batch tokens"]
) -> Int[Tensor, "batch tokens"]:
    """Rank of each eligible token by descending score, 0 = best, the earlier first of equals; the others behind."""
    order = scores.float().masked_fill(eligible == 0, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def published_dense_layers(layers: int) -> int:
    """How many first layers SpAtten, and LTP's top-k baseline after it, leave whole: 3 of 12, 4 of 24."""
    return max(3, math.ceil(0.15 * layers))


def linear_ratios(layers: int, dense: int, rate: float) -> dict[int, float]:
    """Shares of the sentence that `layers` layers keep: 1 in the first `dense`, then linear down to `rate`.

    A `rate` below 0 lets the line reach its floor of 1 % before the last layer.
    Source: the top-k baseline of LTP, arXiv:2107.00910, in its reference code.
    """
    shares = dict.fromkeys(range(min(dense, layers)), 1.0)
    for layer in range(dense, layers):
        shares[layer] = max(LEAST_SHARE, 1 + (rate - 1) * (layer - dense + 1) / (layers - dense))
    return shares


def geometric_ratios(layers: int, dense: int, rate: float) -> dict[int, float]:
    """Shares of the sentence that `layers` layers keep: 1 in the first `dense`, then falling by one factor to `rate`.

    The floor is that of `linear_ratios`; a `rate` of 0 puts every layer behind the dense ones there.
    """
    shares = dict.fromkeys(range(min(dense, layers)), 1.0)
    for layer in range(dense, layers):
        shares[layer] = max(LEAST_SHARE, max(rate, 0.0) ** ((layer - dense + 1) / (layers - dense)))
    return shares


class KeepRatio(KeepPolicy):
    """Keeps the best share of the *unpruned* sentence at each layer, protected tokens included in the count.

    `ratios` maps a layer to its share in [0, 1]; K = max(1, floor(share * length + 1/2)).
    """

    def __init__(self, ratios: Mapping[Any, float]) -> None:
        super().__init__()
        self.ratios = {int(layer): float(share) for layer, share in ratios.items()}

    def arguments(self) -> dict[str, Any]:
        """The share of each layer."""
        return {"ratios": self.ratios}

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """The K best of the alive tokens; protected ones come first whatever their score."""
        first = scores.float().masked_fill(state.protected > 0, torch.inf)
        return (ranks(first, state.alive) < self._count(layer, state.length)[:, None]).float()

    def _count(self, layer: int, lengths: Float[Tensor, "sentences"]) -> Float[Tensor, "sentences"]:
        return (self.ratios[layer] * lengths + 0.5).floor().clamp(min=1)

    def counts(
        self, lengths: Int[Tensor, "sentences"], layers: int, protected: Int[Tensor, "sentences"] | int = 1
    ) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
        """Tokens entering attention and feed-forward of each of `layers` layers, for sentences of these lengths.

        Exact without running the model; `protected` tokens of each stay, of which [CLS] is one.
        """
        whole = lengths.float()
        left, tokens_in, tokens_out = whole, [], []
        for layer in range(layers):
            tokens_in.append(left)
            if layer in self.ratios:
                left = left.minimum(self._count(layer, whole).clamp(min=protected))
            tokens_out.append(left)
        return torch.stack(tokens_in), torch.stack(tokens_out)


class Threshold(KeepPolicy):
    """Keeps tokens whose score reaches the layer's threshold, in the score's unit: 1 = uniform attention.

    Ties stay. `scale` multiplies every threshold; with it they meet a budget. Source: LTP, arXiv:2107.00910, hard mode.
    """

    scale: Tensor

    def __init__(self, thresholds: Mapping[Any, float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.thresholds = {int(layer): float(threshold) for layer, threshold in thresholds.items()}

    def arguments(self) -> dict[str, Any]:
        """The threshold of each layer."""
        return {"thresholds": self.thresholds}

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """1 where the score is at least the threshold."""
        return (scores.float() >= self.threshold(layer)).float()

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """The threshold of a layer, as the hard decision uses it."""
        return self.scale * self.thresholds[layer]

    @torch.no_grad()
    def meet(self, measure: Callable[[], float], target: float, *, most: float, tolerance: float) -> Bisected:
        """Sets `scale` so that `measure()`, the FLOPs reduction under it, is within `tolerance` of `target`.

        `most` is the reduction when every threshold is out of reach. The scale that is set is tried first; then a
        bisection over s / (1 + s), which takes all scales into the unit interval.
        """

        def at(knob: float) -> float:
            self.scale.fill_(knob / (1 - knob))
            return measure()

        known = {1 - 1 / (1 + float(self.scale)): measure(), 0.0: 1.0, 1.0: most}
        found = bisect(at, target, low=0.0, high=1.0, tolerance=tolerance, iterations=20, known=known)
        self.scale.fill_(math.inf if found.knob == 1 else found.knob / (1 - found.knob))
        return found


class ProfileThreshold(Threshold):
    """Thresholds of any form over the layers, set from scores: `values`, in the order of the layers."""

    values: Tensor

    def __init__(self, thresholds: Mapping[Any, float]) -> None:
        super().__init__(thresholds)
        self.row = {layer: row for row, layer in enumerate(self.thresholds)}
        self.register_buffer("values", torch.tensor(list(self.thresholds.values())))

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """What was set, scaled."""
        return self.scale * self.values[self.row[layer]]


class LearnedThreshold(Threshold):
    """A threshold per layer that is trained: softly a token counts sigmoid((score - threshold) / temperature).

    `thresholds` are where training starts. It may push one below 0; the hard decision takes at least `floor`.
    Source: LTP, arXiv:2107.00910; ltp.md 1.4 and 1.6.
    """

    def __init__(self, thresholds: Mapping[Any, float], temperature: float, floor: float = 0.0) -> None:
        super().__init__(thresholds)
        self.temperature = temperature
        self.floor = floor
        self.row = {layer: row for row, layer in enumerate(self.thresholds)}
        self.values = nn.Parameter(torch.tensor(list(self.thresholds.values())))

    def arguments(self) -> dict[str, Any]:
        """Start, temperature and floor; what was learned is a tensor of the checkpoint."""
        return {"thresholds": self.thresholds, "temperature": self.temperature, "floor": self.floor}

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """What was learned, not below the floor, scaled."""
        return self.scale * self.values[self.row[layer]].clamp(min=self.floor)

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Between 0 and 1, 1/2 at the threshold; differentiable in scores and threshold."""
        return torch.sigmoid((scores - self.values[self.row[layer]]) / self.temperature)


def linear_thresholds(layers: int, final: float, first: int = 1) -> dict[int, float]:
    """Thresholds final * l / layers of the layers l = first .. layers-1; layer 0 would have 0, and never prune.

    Source: LTP's reference code (its README says (l + 1) / layers); ltp.md 1.3.
    """
    return {layer: final * layer / layers for layer in range(first, layers)}


class MeanMinusStd(KeepPolicy):
    """Prunes candidates whose score is below mean - k * standard deviation of the sentence's candidates.

    Candidates are tokens that are here and not protected. `k` names the layers that prune and where their k starts;
    other layers only pass on. `space` "log" compares logarithms, so that a token that receives most of the
    attention does not hide the differences among the others. The best `least` candidates stay, and all of a sentence
    with fewer than two, or whose candidates are equal. `shift` is taken off every k; with it they meet a budget.
    `temperature` is that of `soft`, and falls while training.
    Source: TS-DTP (tokens/task_attention.py); for the logarithm and the small numbers docs/methods/tsdtp.md.
    """

    shift: Tensor
    EPSILON = 1e-6  # in the root, so that its gradient at equal scores is a number
    LEAST_GATE = 1e-9  # softly nobody is quite gone: a logarithm is taken

    def __init__(self, k: Mapping[Any, float], space: str = "log", least: int = 1, temperature: float = 0.5) -> None:
        super().__init__()
        self.start = {int(layer): float(value) for layer, value in k.items()}
        self.space, self.least, self.temperature = space, least, temperature
        self.row = {layer: row for row, layer in enumerate(self.start)}
        self.k = nn.Parameter(torch.tensor(list(self.start.values())))
        self.register_buffer("shift", torch.zeros(()))

    def arguments(self) -> dict[str, Any]:
        """What k started from, and the rule; what was learned is a tensor of the checkpoint."""
        return {"k": self.start, "space": self.space, "least": self.least, "temperature": self.temperature}

    def margin(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"], Float[Tensor, "batch"]]:
        """How far each score is above the threshold; how much of a candidate each token is; the candidates' variance.

        float64, so that the order in which a layout adds does not move the threshold. A token that was softly kept
        counts by as much: in the limit of hard gates mean and deviation are those of who is left.
        """
        candidate = state.keep.double() * (state.protected <= 0)
        value = scores.double().clamp(min=1e-9)
        value = value.log() if self.space == "log" else value
        count = candidate.sum(-1, keepdim=True).clamp(min=1e-9)
        mean = (value * candidate).sum(-1, keepdim=True) / count
        variance = ((value - mean) ** 2 * candidate).sum(-1, keepdim=True) / count
        k = self.k[self.row[layer]] - self.shift
        return value - mean + k * (variance + self.EPSILON).sqrt(), candidate, variance.squeeze(-1)

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """1 where the score is not below the threshold."""
        if layer not in self.row:
            return state.alive
        margin, candidate, variance = self.margin(layer, scores, state)
        everyone = (candidate.sum(-1) < 2) | (variance <= self.EPSILON**2)
        best = ranks(scores, candidate) < self.least
        return ((margin >= -self.EPSILON) | best | everyone[:, None]).float()

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """What was kept so far times sigmoid(distance from the threshold / temperature)."""
        if layer not in self.row:
            return state.keep
        margin, candidate, _ = self.margin(layer, scores, state)
        alone = candidate.sum(-1, keepdim=True) < 2
        gate = torch.where(alone, 1.0, torch.sigmoid(margin / self.temperature).float())
        return (state.keep * gate).clamp(min=self.LEAST_GATE)

    @torch.no_grad()
    def meet(
        self, measure: Callable[[], float], target: float, *, least: float, most: float, tolerance: float
    ) -> Bisected:
        """Sets `shift` so that `measure()`, which rises with it, is within `tolerance` of `target`.

        `least` and `most` are what is measured when nothing is pruned, and when everything goes that may. The shift
        that is set is tried first; then a bisection over sigmoid(shift), which takes all shifts into (0, 1).
        """

        def at(knob: float) -> float:
            self.shift.fill_(_logit(knob))
            return measure()

        known = {0.0: least, 1.0: most}
        if target > least:
            known = {float(self.shift.double().sigmoid()): measure(), **known}
        found = bisect(at, target, low=0.0, high=1.0, tolerance=tolerance, iterations=20, known=known)
        self.shift.fill_(_logit(found.knob))
        return found


def _logit(share: float) -> float:
    """Finite at the ends too: an infinite shift has no gradient, and a soft stage may go on with it."""
    return -MOST_SHIFT if share == 0 else MOST_SHIFT if share == 1 else math.log(share / (1 - share))
