"""A small sound method, and one method per way to break a promise; test_suite.py runs the suite on them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from prunekit.losses import task_loss
from prunekit.methods.base import MethodOptions, TokenPruningMethod
from prunekit.tokens.policies import KeepPolicy, ranks
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace


class LearnedThreshold(KeepPolicy):
    """A threshold per layer; a step in evaluation, a sigmoid in training."""

    def __init__(self, layers, start=0.8):
        super().__init__()
        self.layers, self.start = layers, start
        self.threshold = torch.nn.Parameter(torch.full((layers,), start))

    def arguments(self):
        return {"layers": self.layers, "start": self.start}

    def forward(self, layer, scores, state):
        return (scores >= self.threshold[layer]).float()

    def soft(self, layer, scores, state):
        return torch.sigmoid((scores - self.threshold[layer]) / 0.1)


@dataclass(frozen=True)
class SoundOptions(MethodOptions):
    start: float
    pruner_class: ClassVar = TokenPruner
    scorer_class: ClassVar = AttentionReceived
    policy_class: ClassVar = LearnedThreshold

    def build_pruner(self, shape):
        policy = self.policy_class(shape.layers, self.start)
        return self.pruner_class(self.scorer_class(), policy, range(shape.layers))

    def feasible(self, context):
        return 1.0, 100.0


def built_of(**parts):
    """The options of Sound, with other parts of the pruner."""
    return type("Options", (SoundOptions,), parts)


class Sound(TokenPruningMethod):
    """Breaks nothing."""

    Options = SoundOptions

    def __init__(self, model, context, options):
        super().__init__(model, context, options)
        self.policy = self.pruner.policy
        if context.budget == 1:
            with torch.no_grad():
                self.policy.threshold.requires_grad_(False).fill_(-1.0)

    def terms(self, batch):
        trace = Trace()
        logits = self(batch, "soft", trace)
        kept = torch.stack([entry.keep.mean() for entry in trace.layers]).mean()
        return {"task": task_loss(logits, batch["labels"], self.context.spec.kind), "keep": 0.1 * kept}

    def parameter_groups(self):
        thresholds = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        return [{"params": thresholds, "lr": 0.01, "name": "thresholds"}] if thresholds else []


# -- decisions -----------------------------------------------------------------------------------------


class DropsTheProtected(TokenPruner):
    def decide(self, layer, signals, state, *, soft):
        scores = self.scorer(signals, state).float()
        return scores, (scores > scores.amin(-1, keepdim=True)).float() * state.alive * (state.position > 0)


class KeepsPadding(TokenPruner):
    def decide(self, layer, signals, state, *, soft):
        return signals.received, ((state.position + layer) % 2 == 0).float()


class Revives(TokenPruner):
    def decide(self, layer, signals, state, *, soft):
        real = state.position < state.length[:, None]
        return signals.received, ((state.position + layer) % 2 == 0).float() * real


class DividesByWidth(AttentionReceived):
    def forward(self, signals, state):
        return signals.received * 20 / signals.received.shape[1]


class DividesByTheBatchsMaximum(AttentionReceived):
    def forward(self, signals, state):
        return signals.received / signals.received.max() * 1.5


class DeadQueriesVote(AttentionReceived):
    needs = frozenset({"probs"})

    def forward(self, signals, state):
        return signals.probs.sum(2).mean(1)


class Draws(LearnedThreshold):
    def forward(self, layer, scores, state):
        return (torch.rand_like(scores) > 0.4).float()


class AlwaysDropsTheWorst(LearnedThreshold):
    def forward(self, layer, scores, state):
        return (ranks(scores, state.alive) < state.count[:, None] - 1).float()


class NeverPrunes(LearnedThreshold):
    def forward(self, layer, scores, state):
        return torch.ones_like(scores)


class Unprotected(Sound):
    Options = built_of(pruner_class=DropsTheProtected)


class PaddingKeeper(Sound):
    Options = built_of(pruner_class=KeepsPadding)


class Reviver(Sound):
    Options = built_of(pruner_class=Revives)


class PaddingCounter(Sound):
    Options = built_of(scorer_class=DividesByWidth)


class BatchNormaliser(Sound):
    Options = built_of(scorer_class=DividesByTheBatchsMaximum)


class GhostVoter(Sound):
    Options = built_of(scorer_class=DeadQueriesVote)


class Gambler(Sound):
    Options = built_of(policy_class=Draws)


class Glutton(Sound):
    Options = built_of(policy_class=AlwaysDropsTheWorst)


class Idle(Sound):
    Options = built_of(policy_class=NeverPrunes)


class Dense(Sound):
    """It has no pruner."""

    Options = built_of(build_pruner=lambda self, shape: None)

    def __init__(self, model, context, options):
        TokenPruningMethod.__init__(self, model, context, options)


class PrunesOnceTrained(LearnedThreshold):
    def __init__(self, layers, start=0.8):
        super().__init__(layers, start)
        self.register_buffer("trained", torch.zeros(()))

    def forward(self, layer, scores, state):
        return torch.where(self.trained > 0, super().forward(layer, scores, state), 1.0)


class Late(Sound):
    """Not broken: it only prunes from its training on, whatever its parameters are."""

    Options = built_of(policy_class=PrunesOnceTrained)

    def on_train_start(self):
        self.policy.trained.fill_(1.0)


# -- training ------------------------------------------------------------------------------------------


class StepInTraining(LearnedThreshold):
    def soft(self, layer, scores, state):
        return self(layer, scores, state)


class Undifferentiable(Sound):
    Options = built_of(policy_class=StepInTraining)


class Forgetful(Sound):
    def parameter_groups(self):
        return []


class DetachedLoss(Sound):
    """The weights learn nothing: only the number of tokens has a gradient."""

    def forward(self, batch, execution="mask", trace=None):
        return super().forward(batch, execution, trace).detach()

    def terms(self, batch):
        terms = super().terms(batch)
        return terms | {"keep": 0.0 * terms["keep"] + self.policy.threshold.sum()}


class CountsItself(Sound):
    """The weight of a term follows a plain attribute."""

    seen = 0

    def terms(self, batch):
        self.seen += 1
        terms = super().terms(batch)
        return terms | {"task": terms["task"] * (1 + 0.1 * self.seen)}


# -- in and out ----------------------------------------------------------------------------------------


class SecretMargin(LearnedThreshold):
    """Its `margin` is set by the method, and told to nobody."""

    margin = 0.0

    def forward(self, layer, scores, state):
        return (scores >= self.threshold[layer] + self.margin).float()


class Secretive(Sound):
    Options = built_of(policy_class=SecretMargin)

    def __init__(self, model, context, options):
        super().__init__(model, context, options)
        self.policy.margin = 0.2


class Argumentless(LearnedThreshold):
    def arguments(self):
        return {}


class Unloadable(Sound):
    Options = built_of(policy_class=Argumentless)


class SwallowerOptions(SoundOptions):
    @classmethod
    def from_config(cls, values):
        return cls(start=values["start"])


class Swallower(Sound):
    Options = SwallowerOptions
