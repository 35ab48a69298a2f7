"""Manual thresholds: LTP without learning, a line of thresholds on the attention received.

Source: the ablation of LTP, arXiv:2107.00910; ltp.md 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from prunekit.config.errors import ConfigError
from prunekit.cost import Shape
from prunekit.methods.context import MethodContext
from prunekit.methods.static import StaticOptions, ThresholdMethod, ThresholdOptions, report_progress
from prunekit.models.forward import evaluating, on_device, run_encoder
from prunekit.tokens.budget import bisect
from prunekit.tokens.policies import KeepRatio, ProfileThreshold, Threshold, geometric_ratios, linear_thresholds
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace


@dataclass(frozen=True, kw_only=True)
class ManualThresholdOptions(ThresholdOptions, StaticOptions):
    """The keys of conf/method/threshold.yaml, explained there. `final_threshold` is in the paper's unit."""

    final_threshold: float | None
    profile: Literal["line", "geometric"]
    reference_length: int

    def asks(self, context: MethodContext) -> float | None:
        """Return the budget.

        Raises:
            ConfigError: a profile that only a budget can set is combined with the knob of the line.
        """
        if self.profile != "line" and context.budget is None:
            raise ConfigError(
                f"method.profile={self.profile} goes by the budget, not by method.final_threshold.\n"
                "Allowed: budget=2x with it, or method.profile=line with method.final_threshold.\n"
                "Give one of the two."
            )
        return context.budget

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build the canonical score, in whose unit the line ends at 1 before a budget scales it."""
        final = 1.0 if self.final_threshold is None else self.final_threshold * self.reference_length
        thresholds = linear_thresholds(shape.layers, final)
        policy = (Threshold if self.profile == "line" else ProfileThreshold)(thresholds)
        return TokenPruner(AttentionReceived(), policy, thresholds)


class ManualThreshold(ThresholdMethod):
    """Layer l of L keeps what receives at least final * l / L; the budget or `final_threshold` sets `final`."""

    Options = ManualThresholdOptions

    def calibrate(self) -> None:
        """Scale the line; or set the thresholds layer by layer to a geometric profile, and scale what is left over."""
        if self.asked is not None and isinstance(self.policy, ProfileThreshold):
            self._follow_profile(self.policy, self.asked)
        super().calibrate()

    @torch.no_grad()
    def _follow_profile(self, policy: ProfileThreshold, asked: float) -> None:
        """Set each threshold to the score that as many validation tokens reach as the profile keeps there.

        One pass per layer, in order: which tokens reach a layer depends on the thresholds before it.
        """
        context, layers = self.context, self.context.shape.layers
        lengths = context.lengths["validation"]

        def reduction(rate: float) -> float:
            policy = KeepRatio(geometric_ratios(layers, 1, rate))
            return context.reduction(*policy.counts(lengths, layers, context.protected_count))

        shares = geometric_ratios(layers, 1, bisect(reduction, asked, low=0.0, high=1.0, tolerance=0.0).knob)
        policy.scale.fill_(1.0)
        policy.values.zero_()
        for layer, row in policy.row.items():
            received = []
            for batch in report_progress(context.validation(), f"calibrate  layer {layer}"):
                trace = Trace.scoring([layer])
                with evaluating(self.model):
                    run_encoder(self.model, on_device(batch, self.model.device), "pack", trace=trace)
                entry = trace.layers[layer]
                assert entry.received is not None
                received.append(entry.received[(entry.keep > 0) & (entry.protected <= 0)])
            scores = torch.cat(received).sort(descending=True).values
            # protected tokens are kept whatever they receive
            protected = int(torch.as_tensor(context.protected_count).expand(len(lengths)).sum())
            kept = min(round(shares[layer] * int(lengths.sum())) - protected, len(scores))
            if kept > 0:
                policy.values[row] = scores[kept - 1]
            elif len(scores):
                policy.values[row] = scores[0] * 1.01
