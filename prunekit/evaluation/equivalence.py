"""Check that two executions of a model agree, tolerating decisions that differ only by float rounding.

Executions add the same numbers in different orders. A score that is on a threshold up to rounding, or two scores that
are equal up to rounding, may then be decided either way, and neither is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import predict
from prunekit.losses import choices
from prunekit.models.answers import answers_of
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import Scorer
from prunekit.tokens.state import Execution, Signals, TokenState, Trace

ALLOWED = 1e-3  # between the logits of two executions

# what float32 may leave open: in logits, and in scores as a share of the layer's largest, at least of 1
ROUNDING = 1e-4


class ExecutionsDifferError(RuntimeError):
    """Two executions of one model gave different predictions: the numbers of the run would mean nothing."""


@dataclass(frozen=True)
class Agreement:
    """How far two executions of a batch are apart.

    `worst` is the largest difference of logits, given the same tokens; `near_ties` counts the sentences that kept
    different tokens because a score was on the border up to rounding.
    """

    worst: float
    near_ties: int


def check_executions_agree(
    model: PreTrainedModel, batch: Batch, first: Execution = "mask", second: Execution = "pack"
) -> Agreement:
    """Compare kept tokens and logits of two executions on a batch.

    Where tokens differ, the second execution is run again with the decisions of the first. At every layer its scores
    must be those of the first up to rounding, and its rule, given exactly the scores of the first, must decide as the
    first did. So a difference is forgiven if rounding alone explains it, and logits are always compared.

    Raises:
        ExecutionsDifferError: anything else differs: scores, the rule, logits by more than 1e-3, a label although its
            logit leads by more than rounding; or logits are not numbers.
    """
    pruner = encoder_of(model).pruner
    recorder = None if pruner is None else _Recorder(pruner, batch["input_ids"].shape[1])
    with _instead(model, recorder):
        one, trace = predict(model, batch, first)
    other, other_trace = predict(model, batch, second)
    apart = _sentences_apart(trace, other_trace)
    if apart and recorder is not None:
        follower = _Follower(recorder)
        with _instead(model, follower):
            other, _ = predict(model, batch, second)
        if follower.complaint is not None:
            raise ExecutionsDifferError(
                f"{first!r} and {second!r} keep different tokens in {len(apart)} of {len(one)} sentences; "
                f"{follower.complaint}. {STOPS}"
            )
    one, other = choices(one), choices(other)
    worst = float((one - other).abs().max())
    flipped = int(answers_of(model.config).differ(one, other, ROUNDING).sum())
    if not worst <= ALLOWED or flipped:
        raise ExecutionsDifferError(
            f"{first!r} and {second!r} differ by {worst:.2g} in the logits and in {flipped} of {len(one)} "
            f"labels; at most {ALLOWED:g} and 0 are allowed. {STOPS}"
        )
    return Agreement(worst, len(apart))


STOPS = "The run stops: its test would not measure what was trained."


def _sentences_apart(one: Trace, other: Trace) -> set[int]:
    """Return the sentences that keep different tokens at some layer."""

    def kept(trace: Trace) -> list[list[list[int]]]:
        return [
            [sorted(place[keep > 0].tolist()) for place, keep in zip(entry.position, entry.keep, strict=True)]
            for entry in trace.layers
        ]

    pairs = [zip(rows, others, strict=True) for rows, others in zip(kept(one), kept(other), strict=True)]
    return {row for layer in pairs for row, (tokens, others) in enumerate(layer) if tokens != others}


@contextmanager
def _instead(model: PreTrainedModel, pruner: TokenPruner | None) -> Iterator[None]:
    """Give the model another pruner within a block; None changes nothing."""
    encoder = encoder_of(model)
    own = encoder.pruner
    encoder.pruner = pruner or own
    try:
        yield
    finally:
        encoder.pruner = own


class _Recorder(TokenPruner):
    """A pruner that decides like another one, and records its scores and keep per layer at the places of the input."""

    def __init__(self, pruner: TokenPruner, width: int) -> None:
        super().__init__(
            pruner.scorer,
            pruner.policy,
            pruner.layers,
            soft_form=pruner.soft_form,
            protect_first=pruner.protect_first,
            protect_last=pruner.protect_last,
            hide_gone=pruner.hide_gone,
            finishes_layer=pruner.finishes_layer,
        )
        self.decider = pruner
        self.width = width
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def decide(
        self, layer: int, signals: Signals, state: TokenState, *, soft: bool
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Decide and record."""
        scores, keep = self.decider.decide(layer, signals, state, soft=soft)
        self.seen[layer] = (self._placed(scores, state), self._placed(keep, state))
        return scores, keep

    def _placed(self, values: Tensor, state: TokenState) -> Tensor:
        here = state.keep > 0
        row = torch.arange(len(values), device=values.device)[:, None].expand_as(state.position)
        return values.new_zeros((len(values), self.width)).index_put((row[here], state.position[here]), values[here])


class _Follower(_Recorder):
    """A pruner that decides as recorded; `complaint` is where its own decision would differ, None = nowhere."""

    def __init__(self, leader: _Recorder) -> None:
        super().__init__(leader.decider, leader.width)
        self.leader = leader
        self.complaint: str | None = None

    def decide(
        self, layer: int, signals: Signals, state: TokenState, *, soft: bool
    ) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """Return the recorded keep, after a comparison with its own."""
        scores, _ = self.decider.decide(layer, signals, state, soft=soft)
        led_scores, led = (values.gather(1, state.position) for values in self.leader.seen[layer])
        alive = state.alive > 0
        if self.complaint is None:
            with _scored(self.decider, torch.where(alive, led_scores, scores)):
                _, ruled = self.decider.decide(layer, signals, state, soft=soft)
            self.complaint = _complaint(layer, scores, led_scores, ruled, led, alive)
        return scores, led * alive


def _complaint(layer: int, scores: Tensor, led_scores: Tensor, ruled: Tensor, led: Tensor, alive: Tensor) -> str | None:
    size = led_scores.abs().masked_fill(~alive, 0).amax(-1, keepdim=True).clamp(min=1.0)
    # scores that are infinite are equal or not; their difference is no number
    same = (scores == led_scores) | ((scores - led_scores).abs() <= ROUNDING * size)
    if (wrong := (~same & alive).nonzero()).numel():
        row, token = wrong[0].tolist()
        gap = float((scores - led_scores)[row, token].abs())
        return f"in sentence {row} the scores of layer {layer} differ by {gap:.2g}, which is more than rounding"
    if (wrong := ((ruled != led) & alive).nonzero()).numel():
        row = int(wrong[0, 0])
        kept, others = (int((keep[row] * alive[row]).sum()) for keep in (led, ruled))
        return f"in sentence {row} layer {layer} keeps {kept} and {others} tokens by the same scores"
    return None


@contextmanager
def _scored(pruner: TokenPruner, scores: Float[Tensor, "batch tokens"]) -> Iterator[None]:
    """Give a pruner these scores instead of its scorer's within a block."""
    scorer = pruner.scorer
    pruner.scorer = _Given(scores)
    try:
        yield
    finally:
        pruner.scorer = scorer


class _Given(Scorer):
    """A scorer that returns given scores."""

    def __init__(self, scores: Float[Tensor, "batch tokens"]) -> None:
        nn.Module.__init__(self)
        self.scores = scores

    def forward(self, signals: Signals, state: TokenState) -> Float[Tensor, "batch tokens"]:
        """Return the scores."""
        return self.scores
