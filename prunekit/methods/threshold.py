"""Manual thresholds: LTP without learning, a line of thresholds on the attention received.

Source: the ablation of LTP, arXiv:2107.00910; ltp.md 3.2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from prunekit.config.errors import ConfigError
from prunekit.cost import Shape
from prunekit.methods.context import MethodContext
from prunekit.methods.static import ThresholdMethod, aloud
from prunekit.models.forward import run_encoder
from prunekit.tokens.budget import bisect
from prunekit.tokens.policies import KeepRatio, ProfileThreshold, Threshold, geometric_ratios, linear_thresholds
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace


class ManualThreshold(ThresholdMethod):
    """Layer l of L keeps what receives at least final * l / L; the budget, or a key, says how much `final` is."""

    keys: ClassVar[frozenset[str] | None] = frozenset({"train", "final_threshold", "reference_length", "profile"})

    @classmethod
    def asks(cls, context: MethodContext, **options: Any) -> float | None:
        """The budget.

        Raises:
            ConfigError: a profile, which a budget sets, is asked for by the line's knob.
        """
        if options["profile"] != "line" and context.budget is None:
            raise ConfigError(
                f"method.profile={options['profile']} goes by the budget, not by method.final_threshold.\n"
                "Allowed: budget=2x with it, or method.profile=line with method.final_threshold.\n"
                "Give one of the two."
            )
        return context.budget

    def calibrate(self) -> None:
        """Scales the line; or sets thresholds layer by layer to a geometric profile, and scales what is left over."""
        if self.asked is not None and isinstance(self.policy, ProfileThreshold):
            self._follow_profile(self.policy, self.asked)
        super().calibrate()

    @torch.no_grad()
    def _follow_profile(self, policy: ProfileThreshold, asked: float) -> None:
        """Sets each threshold to the score that as many validation tokens reach as the profile keeps there.

        One pass per layer, the first first: who comes to a layer hangs on the thresholds before it.
        """
        context, layers = self.context, self.context.shape.layers
        lengths = context.lengths["validation"]

        def reduction(rate: float) -> float:
            policy = KeepRatio(geometric_ratios(layers, 1, rate))
            return context.reduction(*policy.counts(lengths, layers, context.protected_count))

        shares = geometric_ratios(layers, 1, bisect(reduction, asked, low=0.0, high=1.0, tolerance=0.0).knob)
        policy.scale.fill_(1.0)
        policy.values.zero_()
        was_training = self.model.training
        self.model.eval()
        for layer, row in policy.row.items():
            found = []
            for batch in aloud(context.validation(), f"calibrate  layer {layer}"):
                trace = Trace.scoring([layer])
                here = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
                with torch.autocast(self.model.device.type, enabled=False):
                    run_encoder(self.model, here, "pack", trace=trace)
                entry = trace.layers[layer]
                assert entry.received is not None
                found.append(entry.received[(entry.keep > 0) & (entry.protected <= 0)])
            scores = torch.cat(found).sort(descending=True).values
            # these stay whatever they receive
            protected = int(torch.as_tensor(context.protected_count).expand(len(lengths)).sum())
            kept = min(round(shares[layer] * int(lengths.sum())) - protected, len(scores))
            if kept > 0:
                policy.values[row] = scores[kept - 1]
            elif len(scores):
                policy.values[row] = scores[0] * 1.01
        self.model.train(was_training)

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """The canonical score, in whose unit the line ends at 1 before a budget scales it."""
        given = options["final_threshold"]
        final = 1.0 if given is None else given * options["reference_length"]
        thresholds = linear_thresholds(shape.layers, final)
        policy = (Threshold if options["profile"] == "line" else ProfileThreshold)(thresholds)
        return TokenPruner(AttentionReceived(), policy, thresholds)
