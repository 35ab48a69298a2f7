"""Keep policies: modules that turn importance into keep, 1 = kept, and so decide how many tokens to keep.

A `KeepPolicy` makes the hard decision of every evaluation; a trained policy has a `soft` decision as well.
Protecting tokens and never bringing back a dropped one is the job of the pruner (pruner.py), not of a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prunekit.tokens.budget import BisectionResult, bisect
from prunekit.tokens.state import TokenState

BEYOND = 1e30  # of thresholds: no score reaches it, and it is a number, as a saved model needs
MOST_SHIFT = 1e6  # of k: a deviation is at least 1e-3, so this prunes every candidate, or none
LEAST_SHARE = 0.01  # the floor of the published schedule, whatever its rate


class KeepPolicy(nn.Module):
    """A decision per layer: calling it returns keep in {0, 1}; in training `soft` may return values in between."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `__init__` that rebuild this policy, as JSON values."""
        return {}

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return the hard decision at `layer` (0-based)."""
        raise NotImplementedError(
            f"{type(self).__name__} is a policy without forward(layer, scores, state); define it."
        )

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return the decision in training; by default the hard one."""
        return self(layer, scores, state)

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets that this policy serves, by name, the default first; empty where it serves one without a name."""
        return ()

    def at(self, budget: str | None) -> KeepPolicy:
        """Return the policy of one of its budgets; None is the default.

        Raises:
            ValueError: it has no such budget.
        """
        if budget is None:
            return self
        known = ", ".join(self.budgets)
        served = f"the budgets {known}" if known else "only the one of its training"
        raise ValueError(
            f"budget={budget!r}, but this model serves {served}.\n"
            f"Allowed: {known or 'no budget'}.\n"
            f"Give {f'budget={self.budgets[0]!r}' if known else 'none; method.also=[2x,4x] trains for several'}."
        )

    def protect_segment(self) -> None:
        """Prepare for sentences of which a whole segment is protected; by default there is nothing to prepare."""


def ranks(
    scores: Float[Tensor, "batch tokens"], eligible: Float[Tensor, "batch tokens"]
) -> Int[Tensor, "batch tokens"]:
    """Rank eligible tokens by descending score, 0 = best, the earlier token first on a tie; the others come last."""
    order = scores.float().masked_fill(eligible == 0, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def published_dense_layers(layers: int) -> int:
    """Return how many first layers SpAtten, and LTP's top-k baseline after it, leave unpruned: 3 of 12, 4 of 24."""
    return max(3, math.ceil(0.15 * layers))


def linear_ratios(layers: int, dense: int, rate: float) -> dict[int, float]:
    """Return the share of the sentence that each layer keeps: 1 in the first `dense` layers, then linear to `rate`.

    With a `rate` below 0 the line reaches its floor of 1 % before the last layer.
    Source: the top-k baseline of LTP, arXiv:2107.00910, in its reference code.
    """
    shares = dict.fromkeys(range(min(dense, layers)), 1.0)
    for layer in range(dense, layers):
        shares[layer] = max(LEAST_SHARE, 1 + (rate - 1) * (layer - dense + 1) / (layers - dense))
    return shares


def geometric_ratios(layers: int, dense: int, rate: float) -> dict[int, float]:
    """Return the share of the sentence that each layer keeps: 1 in the first `dense` layers, then geometric to `rate`.

    The floor is that of `linear_ratios`; a `rate` of 0 puts every layer after the dense ones at the floor.
    """
    shares = dict.fromkeys(range(min(dense, layers)), 1.0)
    for layer in range(dense, layers):
        shares[layer] = max(LEAST_SHARE, max(rate, 0.0) ** ((layer - dense + 1) / (layers - dense)))
    return shares


def step_ratios(layers: int, dense: int, rate: float) -> dict[int, float]:
    """Return the share of the sentence that each layer keeps: 1 in the first `dense` layers, and then `rate` at once.

    The floor is that of `linear_ratios`.
    """
    return {layer: 1.0 if layer < dense else max(LEAST_SHARE, rate) for layer in range(layers)}


class KeepRatio(KeepPolicy):
    """Policy that keeps the best share of the *unpruned* sentence at each layer, protected tokens counted.

    `ratios` maps a layer to its share in [0, 1]; K = max(1, floor(share * length + 1/2)). With `beside`, the share is
    that of the tokens which are not protected, P in number, so that a document is pruned alike beside a long query and
    a short one: K = P + floor(share * (length - P) + 1/2).
    """

    def __init__(self, ratios: Mapping[Any, float], beside: bool = False) -> None:
        super().__init__()
        self.ratios = {int(layer): float(share) for layer, share in ratios.items()}
        self.beside = beside

    def arguments(self) -> dict[str, Any]:
        """Return the share of each layer, and of what it is where that is not the whole sentence."""
        return {"ratios": self.ratios} | ({"beside": True} if self.beside else {})

    def protect_segment(self) -> None:
        """Take shares of what is not protected."""
        self.beside = True

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Keep the K best alive tokens; protected ones come first, whatever their score."""
        protected = state.protected > 0
        first = scores.float().masked_fill(protected, torch.inf)
        count = self._count(layer, state.length, protected.sum(-1) if self.beside else 0)
        return (ranks(first, state.alive) < count[:, None]).float()

    def _count(
        self, layer: int, lengths: Float[Tensor, "sentences"], protected: Int[Tensor, "sentences"] | int
    ) -> Float[Tensor, "sentences"]:
        fixed = protected if self.beside else 0
        return (self.ratios[layer] * (lengths - fixed) + 0.5).floor().clamp(min=0 if self.beside else 1) + fixed

    def counts(
        self, lengths: Int[Tensor, "sentences"], layers: int, protected: Int[Tensor, "sentences"] | int = 1
    ) -> tuple[Float[Tensor, "layers sentences"], Float[Tensor, "layers sentences"]]:
        """Return the tokens entering attention and feed-forward of each of `layers` layers, for these lengths.

        Exact without running the model. `protected` is the number of protected tokens per sentence, [CLS] included.
        """
        unpruned = lengths.float()
        kept, tokens_in, tokens_out = unpruned, [], []
        for layer in range(layers):
            tokens_in.append(kept)
            if layer in self.ratios:
                kept = kept.minimum(self._count(layer, unpruned, protected).clamp(min=protected))
            tokens_out.append(kept)
        return torch.stack(tokens_in), torch.stack(tokens_out)


class KeepRatioTable(KeepRatio):
    """Shares for several budgets: `table` maps the name of each to the share of each layer; `default` is one."""

    def __init__(self, table: Mapping[str, Mapping[Any, float]], default: str, beside: bool = False) -> None:
        super().__init__(table[default], beside)
        self.table = {name: KeepRatio(ratios, beside) for name, ratios in table.items()}
        self.default = default

    def arguments(self) -> dict[str, Any]:
        """Return the table, the default, and of what the shares are where that is not the whole sentence."""
        table = {name: policy.ratios for name, policy in self.table.items()}
        return {"table": table, "default": self.default} | ({"beside": True} if self.beside else {})

    def protect_segment(self) -> None:
        """Take shares of what is not protected, for every budget."""
        super().protect_segment()
        for policy in self.table.values():
            policy.protect_segment()

    @property
    def budgets(self) -> tuple[str, ...]:
        """The names of the table, the default first."""
        return (self.default, *(name for name in self.table if name != self.default))

    def at(self, budget: str | None) -> KeepPolicy:
        """Return the shares of a budget."""
        return super().at(budget) if budget is None or budget not in self.table else self.table[budget]


class Threshold(KeepPolicy):
    """Policy that keeps tokens whose score is at least the layer's threshold.

    Thresholds are in the score's unit: 1 = uniform attention.
    `scale` multiplies every threshold, so that together they meet a budget. Source: LTP, arXiv:2107.00910, hard mode.
    """

    scale: Tensor

    def __init__(self, thresholds: Mapping[Any, float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.thresholds = {int(layer): float(threshold) for layer, threshold in thresholds.items()}

    def arguments(self) -> dict[str, Any]:
        """Return the threshold of each layer."""
        return {"thresholds": self.thresholds}

    def forward(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return 1 where the score is at least the threshold."""
        return (scores.float() >= self.threshold(layer)).float()

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """Return the threshold that a layer's hard decision uses."""
        return self.scale * self.thresholds[layer]

    @torch.no_grad()
    def meet(self, measure: Callable[[], float], target: float, *, most: float, tolerance: float) -> BisectionResult:
        """Set `scale` so that `measure()`, the FLOPs reduction under it, is within `tolerance` of `target`.

        `most` is the reduction when no score reaches its threshold. The current scale is tried first, then a
        bisection over s / (1 + s), which maps all scales into the unit interval.
        """

        def set_scale(knob: float) -> None:
            self.scale.fill_(BEYOND if knob == 1 else knob / (1 - knob))

        known = {1 - 1 / (1 + float(self.scale)): measure(), 0.0: 1.0, 1.0: most}
        return _meet(measure, target, tolerance, known, set_scale)


class ProfileThreshold(Threshold):
    """Thresholds of any profile over the layers, set from scores: `values`, in the order of the layers."""

    values: Tensor

    def __init__(self, thresholds: Mapping[Any, float]) -> None:
        super().__init__(thresholds)
        self.row = {layer: row for row, layer in enumerate(self.thresholds)}
        self.register_buffer("values", torch.tensor(list(self.thresholds.values())))

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """Return the layer's value, scaled."""
        return self.scale * self.values[self.row[layer]]


class LearnedThreshold(Threshold):
    """A trained threshold per layer; the soft keep is sigmoid((score - threshold) / temperature).

    Training starts at `thresholds` and may push one below 0; the hard decision uses at least `floor`. The soft keep is
    at least `least`: where it is exactly 0, as far below a threshold in float32, a token counts as dropped.
    Source: LTP, arXiv:2107.00910; ltp.md 1.4 and 1.6.
    """

    def __init__(
        self, thresholds: Mapping[Any, float], temperature: float, floor: float = 0.0, least: float = 0.0
    ) -> None:
        super().__init__(thresholds)
        self.temperature = temperature
        self.floor = floor
        self.least = least
        self.row = {layer: row for row, layer in enumerate(self.thresholds)}
        self.values = nn.Parameter(torch.tensor(list(self.thresholds.values())))

    def arguments(self) -> dict[str, Any]:
        """Return the initial thresholds and what bounds them; learned values are tensors of the checkpoint."""
        return {
            "thresholds": self.thresholds,
            "temperature": self.temperature,
            "floor": self.floor,
            "least": self.least,
        }

    def threshold(self, layer: int) -> Float[Tensor, ""]:
        """Return the learned threshold, at least the floor, scaled."""
        return self.scale * self.values[self.row[layer]].clamp(min=self.floor)

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return keep between 0 and 1, 1/2 at the threshold; differentiable in scores and threshold."""
        return torch.sigmoid((scores - self.values[self.row[layer]]) / self.temperature).clamp(min=self.least)


def linear_thresholds(layers: int, final: float, first: int = 1) -> dict[int, float]:
    """Return thresholds final * l / layers for layers l = first .. layers-1; layer 0 would get 0 and never prune.

    Source: LTP's reference code (its README says (l + 1) / layers); ltp.md 1.3.
    """
    return {layer: final * layer / layers for layer in range(first, layers)}


class MeanMinusStd(KeepPolicy):
    """Policy that prunes candidates whose score is below mean - k * standard deviation of the sentence's candidates.

    Candidates are the kept tokens that are not protected. `k` maps each pruning layer to its initial k; other layers
    keep everything. `space` "log" compares logarithms, so that a token that receives most of the attention does not
    hide the differences among the others. The best `least` candidates are always kept, and so are all candidates of a
    sentence that has fewer than two or equal ones. `shift` is subtracted from every k, to meet a budget.
    `temperature` is that of `soft`, and falls during training.
    Source: TS-DTP (tokens/task_attention.py); docs/methods/tsdtp.md explains the logarithm and the small constants.
    """

    shift: Tensor
    EPSILON = 1e-6  # inside the square root, so that its gradient is finite at equal scores
    LEAST_GATE = 1e-9  # soft keep is never 0, because its logarithm is taken

    def __init__(self, k: Mapping[Any, float], space: str = "log", least: int = 1, temperature: float = 0.5) -> None:
        super().__init__()
        self.start = {int(layer): float(value) for layer, value in k.items()}
        self.space, self.least, self.temperature = space, least, temperature
        self.row = {layer: row for row, layer in enumerate(self.start)}
        self.k = nn.Parameter(torch.tensor(list(self.start.values())))
        self.register_buffer("shift", torch.zeros(()))

    def arguments(self) -> dict[str, Any]:
        """Return the initial k and the rule; learned values are tensors of the checkpoint."""
        return {"k": self.start, "space": self.space, "least": self.least, "temperature": self.temperature}

    def margin(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"], Float[Tensor, "batch"]]:
        """Return each score's distance above the threshold, each token's weight as a candidate, and their variance.

        float64, so that a layout's order of summation does not move the threshold. A softly kept token is weighted by
        its keep: in the limit of hard gates, mean and deviation are those of the remaining candidates.
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
        """Return 1 where the score is not below the threshold."""
        if layer not in self.row:
            return state.alive
        margin, candidate, variance = self.margin(layer, scores, state)
        keeps_all = (candidate.sum(-1) < 2) | (variance <= self.EPSILON**2)
        best = ranks(scores, candidate) < self.least
        return ((margin >= -self.EPSILON) | best | keeps_all[:, None]).float()

    def soft(
        self, layer: int, scores: Float[Tensor, "batch tokens"], state: TokenState
    ) -> Float[Tensor, "batch tokens"]:
        """Return the keep so far times sigmoid(distance above the threshold / temperature)."""
        if layer not in self.row:
            return state.keep
        margin, candidate, _ = self.margin(layer, scores, state)
        keeps_all = candidate.sum(-1, keepdim=True) < 2
        gate = torch.where(keeps_all, 1.0, torch.sigmoid(margin / self.temperature).float())
        return (state.keep * gate).clamp(min=self.LEAST_GATE)

    @torch.no_grad()
    def meet(
        self, measure: Callable[[], float], target: float, *, least: float, most: float, tolerance: float
    ) -> BisectionResult:
        """Set `shift` so that `measure()`, which rises with it, is within `tolerance` of `target`.

        `least` and `most` are the measurements when no candidate is pruned and when all that may be are. The current
        shift is tried first, then a bisection over sigmoid(shift), which maps all shifts into (0, 1).
        """

        def set_shift(knob: float) -> None:
            self.shift.fill_(_logit(knob))

        known = {0.0: least, 1.0: most}
        if target > least:
            known = {float(self.shift.double().sigmoid()): measure(), **known}
        return _meet(measure, target, tolerance, known, set_shift)


def _meet(
    measure: Callable[[], float],
    target: float,
    tolerance: float,
    known: Mapping[float, float],
    set_knob: Callable[[float], None],
) -> BisectionResult:
    """Set a knob between 0 and 1 so that `measure()` is within `tolerance` of `target`; `known` as in `bisect`."""
    return bisect(
        lambda _: measure(),
        target,
        low=0.0,
        high=1.0,
        tolerance=tolerance,
        iterations=20,
        known=known,
        set_knob=set_knob,
    )


def _logit(share: float) -> float:
    """Return the logit, finite at 0 and 1 too: a soft stage may follow, and an infinite shift has no gradient."""
    return -MOST_SHIFT if share == 0 else MOST_SHIFT if share == 1 else math.log(share / (1 - share))
