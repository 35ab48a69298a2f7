"""What a run knows before it builds its method: the task, the backbone, text lengths, the budget and the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from prunekit.cost import Shape, dense_macs, encoder_macs
from prunekit.data.encoding import Batch, Targets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.distillation_targets import TeacherOutputs
from prunekit.models.heads import HEADS
from prunekit.tokens.pruner import TokenPruner

Loss = Literal["ce", "kd", "kd+ce"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class Training:
    """The settings of the optimiser; epochs and steps are those of the whole run.

    `label_smoothing` and `class_weights` are those of `losses.class_loss`.
    """

    epochs: int
    steps_per_epoch: int
    lr: float
    head_lr: float | None = None  # of the pooler and the head where these are new; None = lr
    weight_decay: float = 0.0
    warmup_fraction: float = 0.0
    clip: float = 1.0
    freeze_embeddings: bool = True
    max_steps: int | None = None
    schedule: Schedule = "linear"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def rate(self, step: int, steps: int | None = None) -> float:
        """Return the factor of the learning rate: it rises linearly during warm-up, then follows the schedule.

        That falls to 0 linearly or as half a cosine, or is constant. `steps` is its length; None = the whole run.
        """
        length = self.steps if steps is None else steps
        warmup = round(self.warmup_fraction * length)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = max(0.0, (length - step) / max(1, length - warmup))
        return {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[self.schedule]


@dataclass(frozen=True)
class MethodContext:
    """The input of a method's decisions; lengths are token counts of the unpadded sentences.

    `validation` returns the validation batches, for a knob that can be set only by running the model. `targets` are
    those of each validation split, in the order of its loader. `protected` counts the tokens of each sentence that no
    method may drop; without it that is [CLS] alone.
    """

    spec: TaskSpec
    shape: Shape
    training: Training
    lengths: Mapping[str, Int[Tensor, "rows"]]
    budget: float | None = None  # FLOPs reduction against unpadded; None = the method's own knob
    tolerance: float = 0.02
    teacher: TeacherOutputs | None = field(default=None, repr=False)
    validation: Callable[[], Iterable[Batch]] = field(default=tuple, repr=False)
    targets: Sequence[Targets] = field(default=(), repr=False)
    protected: Mapping[str, Int[Tensor, "rows"]] = field(default_factory=dict, repr=False)
    loss: Loss = "ce"  # labels, the teacher's logits ("kd"), or both

    @property
    def protected_count(self) -> Int[Tensor, "rows"] | int:
        """Number of tokens of each validation sentence that no method may drop."""
        return self.protected.get("validation", 1)

    def protected_count_with(self, pruner: TokenPruner) -> Int[Tensor, "rows"] | int:
        """Add the last token where the pruner protects it; the end of a translation source is counted already."""
        return self.protected_count + int(pruner.protect_last and not HEADS[self.spec.kind].decodes)

    def reduction(
        self,
        tokens_in: Float[Tensor, "layers rows"],
        tokens_out: Float[Tensor, "layers rows"],
        extra_macs: Float[Tensor, "rows"] | float = 0.0,
    ) -> float:
        """Return the FLOPs reduction on the validation sentences for these tokens in the two halves of each layer.

        `extra_macs` are the scorer's MACs for each sentence.
        """
        dense = dense_macs(self.shape, self.lengths["validation"]).sum()
        return float(dense / (encoder_macs(self.shape, tokens_in, tokens_out) + extra_macs).sum())
