"""What the logits of a text say: one of several classes, any number of labels, or a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from prunekit.config.errors import ConfigError, shown
from prunekit.models.given import EMBEDDING_SIZE, THRESHOLDS

SEVERAL = "multi_label_classification"  # what transformers calls it in config.json
HALF = 0.5
CLOSE = 1e-3  # by which two values of one text may differ


class Answers(ABC):
    """How logits are read. `names` are the classes, empty where there are none; `several` may hold at once."""

    names: tuple[str, ...]
    several: ClassVar[bool] = False

    @abstractmethod
    def decide(self, logits: Float[Tensor, "batch outputs"]) -> Shaped[Tensor, "batch *labels"]:
        """Return class numbers, whether each label is there, or values."""

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"] | None:
        """Return the probability of each class or label, in the precision given; None where there are none."""

    @abstractmethod
    def labels(self, logits: Float[Tensor, "batch outputs"]) -> list[str] | list[list[str]] | None:
        """Return the name of each text's class, or of all its labels; None where there are none."""

    @abstractmethod
    def differ(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"], rounding: float = 0.0
    ) -> Bool[Tensor, "batch"]:
        """Return which texts get another answer, although in `one` it leads by more than what `rounding` can turn.

        Values never differ.
        """

    def agree(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"]
    ) -> Bool[Tensor, "batch"]:
        """Return which texts get the same answer; values are the same within 1e-3."""
        return ~self.differ(one, other)


@dataclass(frozen=True)
class OneClass(Answers):
    """The class with the largest logit."""

    names: tuple[str, ...]

    def decide(self, logits: Float[Tensor, "batch outputs"]) -> Shaped[Tensor, "batch"]:
        """Return class numbers."""
        return logits.argmax(-1)

    def probabilities(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """Return the softmax."""
        return logits.softmax(-1)

    def labels(self, logits: Float[Tensor, "batch outputs"]) -> list[str]:
        """Return the name of each text's class."""
        return [self.names[best] for best in logits.argmax(-1).tolist()]

    def differ(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"], rounding: float = 0.0
    ) -> Bool[Tensor, "batch"]:
        """Return which texts get another class, although it leads by more than twice `rounding`."""
        best = one.topk(2, dim=-1).values
        return (one.argmax(-1) != other.argmax(-1)) & (best[:, 0] - best[:, 1] >= 2 * rounding)


@dataclass(frozen=True)
class AnyLabels(Answers):
    """The labels whose probability, the logistic function of their logit, is at least their threshold."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    several: ClassVar[bool] = True

    @property
    def borders(self) -> Float[Tensor, "outputs"]:
        """The logits from which a label is there."""
        return torch.tensor(self.thresholds, dtype=torch.float64).logit().float()

    def decide(self, logits: Float[Tensor, "batch outputs"]) -> Bool[Tensor, "batch outputs"]:
        """Return whether each label is there."""
        return logits.float() >= self.borders.to(logits.device)

    def probabilities(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """Return the logistic function of the logits."""
        return logits.sigmoid()

    def labels(self, logits: Float[Tensor, "batch outputs"]) -> list[list[str]]:
        """Return the names of each text's labels, in their order."""
        rows = self.decide(logits).tolist()
        return [[name for name, is_there in zip(self.names, row, strict=True) if is_there] for row in rows]

    def differ(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"], rounding: float = 0.0
    ) -> Bool[Tensor, "batch"]:
        """Return which texts have another label, although its logit is further than `rounding` from its border."""
        lead = (one.float() - self.borders.to(one.device)).abs()
        return ((self.decide(one) != self.decide(other)) & (lead >= rounding)).any(-1)


@dataclass(frozen=True)
class _NoClasses(Answers):
    """Outputs that are the answer themselves: nothing has a name, and nothing is near a border."""

    names: tuple[str, ...] = ()

    def probabilities(self, logits: Float[Tensor, "batch outputs"]) -> None:
        """Return None."""

    def labels(self, logits: Float[Tensor, "batch outputs"]) -> None:
        """Return None."""

    def differ(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"], rounding: float = 0.0
    ) -> Bool[Tensor, "batch"]:
        """Return False for every text."""
        return torch.zeros(len(one), dtype=torch.bool, device=one.device)


@dataclass(frozen=True)
class OneValue(_NoClasses):
    """The only output itself."""

    def decide(self, logits: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch"]:
        """Return values."""
        return logits.float().squeeze(-1)

    def agree(self, one: Float[Tensor, "batch 1"], other: Float[Tensor, "batch 1"]) -> Bool[Tensor, "batch"]:
        """Return which values are the same within 1e-3."""
        return (one - other).abs().amax(-1) <= CLOSE


@dataclass(frozen=True)
class OneVector(_NoClasses):
    """All outputs together: the vector of a text."""

    def decide(self, logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """Return vectors."""
        return logits.float()

    def agree(
        self, one: Float[Tensor, "batch outputs"], other: Float[Tensor, "batch outputs"]
    ) -> Bool[Tensor, "batch"]:
        """Return which vectors have a cosine of at least 0.999."""
        return torch.cosine_similarity(one.float(), other.float()) >= 1 - CLOSE


def answers_of(config: Any) -> Answers:
    """Return how the logits of a classifier, or the vectors of an embedder, are read, from its configuration.

    Raises:
        ConfigError: its thresholds are no probabilities, one per output.
    """
    if getattr(config, EMBEDDING_SIZE, None) is not None:
        return OneVector()
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    if getattr(config, "problem_type", None) == SEVERAL:
        return AnyLabels(names, _stored_thresholds(config))
    return OneClass(names) if len(names) > 1 else OneValue()


def _stored_thresholds(config: Any) -> tuple[float, ...]:
    stored = getattr(config, THRESHOLDS, None)
    if stored is None:
        return (HALF,) * config.num_labels
    is_list = isinstance(stored, list) and len(stored) == config.num_labels
    if not is_list or not all(isinstance(share, float) and 0 < share < 1 for share in stored):
        raise ConfigError(
            f"{THRESHOLDS} in config.json of the model is {shown(stored)}.\n"
            f"Allowed: a list of {config.num_labels} numbers between 0 and 1, one per label; without it they are 0.5.\n"
            "Correct it, or leave it out."
        )
    return tuple(stored)


def store_thresholds(config: Any, thresholds: Sequence[float]) -> None:
    """Write the thresholds of labels into a model's configuration; where all are 0.5, () removes others."""
    if thresholds:
        setattr(config, THRESHOLDS, list(thresholds))
    elif hasattr(config, THRESHOLDS):
        delattr(config, THRESHOLDS)


def answers_for(names: Sequence[str], *, several: bool, thresholds: Sequence[float] = ()) -> Answers:
    """Return the same from the classes of a task; `thresholds` are 0.5 where they are not given."""
    if several:
        return AnyLabels(tuple(names), tuple(thresholds) or (HALF,) * len(names))
    return OneClass(tuple(names)) if names else OneValue()
