"""LAT: one model for many lengths, trained with random ones, and a search for the lengths that serve best.

Paper: "Length-Adaptive Transformer: Train Once with Length Drop, Use Anytime with Search", arXiv:2010.07003.
Reference: clovaai/length-adaptive-transformer. docs/methods/lat.md lists where prunekit differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, shown
from prunekit.console import say, track
from prunekit.cost import Shape
from prunekit.evaluation.evaluate import Batch, evaluate
from prunekit.files import append_jsonl, read_jsonl
from prunekit.losses import distillation_loss, task_loss
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.schedules import Point, Schedule, bent_to, constant_ratio, drop_lengths, evolve, pareto
from prunekit.tokens.scorers import AttentionReceived

PUBLISHED_DROP, PUBLISHED_LAYERS = 0.2, 12
MARGIN = 1.25  # times the asked reduction: what the smallest model of training saves at least


@dataclass(frozen=True)
class Options:
    """The keys of conf/method/lat.yaml, explained there."""

    seed: int
    train: bool
    shares: list[float] | None
    length_drop: float | None
    random_models: int
    iterations: int
    mutations: int
    crossovers: int
    population: int
    search_rows: int | None


class LAT(TokenPruningMethod):
    """Trains the whole model on the task and smaller ones to follow it; then `finalise` searches for the lengths.

    Until then the schedule is the one of constant ratio that meets the budget: by it checkpoints are chosen.
    """

    def __init__(self, model: PreTrainedModel, context: MethodContext, **options: Any) -> None:
        super().__init__(model, context, **options)
        self.options = Options(**options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, KeepRatio)
        self.policy = self.pruner.policy
        layers = context.shape.layers
        if self.asked is not None:
            even = bent_to(constant_ratio(layers, 0.5), self.reduction, self.asked)
            self.policy.ratios = dict(enumerate(even))
        self.smallest = constant_ratio(layers, 1 - self._drop())

    @classmethod
    def build_pruner(cls, shape: Shape, **options: Any) -> TokenPruner:
        """The canonical score and a share for every layer, the first among them."""
        shares = Options(**options).shares or [1.0] * shape.layers
        return TokenPruner(AttentionReceived(), KeepRatio(dict(enumerate(shares))), range(shape.layers))

    @classmethod
    def feasible(cls, context: MethodContext, **options: Any) -> tuple[float, float]:
        """From nothing pruned to the smallest model of training; without `length_drop`, to [CLS] alone."""
        drop, layers = options["length_drop"], context.shape.layers
        least = (0.0,) * layers if drop is None else constant_ratio(layers, 1 - drop)
        return 1.0, _reduction(context, least)

    @classmethod
    def asks(cls, context: MethodContext, **options: Any) -> float | None:
        """The budget; a schedule of one's own asks for nothing.

        Raises:
            ConfigError: that schedule does not fit the backbone, or rises.
        """
        given, layers = options["shares"], context.shape.layers
        if given is not None and (len(given) != layers or sorted(given, reverse=True) != list(given)):
            raise ConfigError(
                f"method.shares={shown(given)} is no schedule for {layers} layers.\n"
                f"Allowed: {layers} shares in (0..1], none larger than the one before it: a gone token stays gone.\n"
                "Give one share per layer, or budget=2x for a search."
            )
        return context.budget

    def reduction(self, schedule: Sequence[float]) -> float:
        """The FLOPs reduction of a schedule on the validation sentences; exact, without running the model."""
        return _reduction(self.context, schedule)

    # -- training --------------------------------------------------------------------------------------

    def _drop(self) -> float:
        """LengthDrop's probability: as given, or as published, or what the budget needs."""
        if self.options.length_drop is not None:
            return self.options.length_drop
        layers = self.context.shape.layers
        published = 1 - (1 - PUBLISHED_DROP) ** (PUBLISHED_LAYERS / layers)
        wanted = self.asked or self.reduction(tuple(self.policy.ratios.values()))
        needed = bent_to(constant_ratio(layers, 0.5), self.reduction, MARGIN * wanted)
        return max(published, 1 - needed[0])

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The task loss of the whole model, and how far smaller ones are from its outputs; the mean of all models."""
        kind = self.context.spec.kind
        whole = self(batch, "dense")
        distances = []
        for schedule in self.smaller(self.global_step):
            with self._under(schedule):
                logits = self(batch, "drop")
            followed = whole.detach()
            distances.append(
                F.mse_loss(logits.float(), followed.float())
                if kind == "regression"
                else distillation_loss(logits, followed, 1.0)
            )
        models = len(distances) + 1
        return {
            "task": task_loss(whole, batch["labels"], kind) / models,
            "inplace": torch.stack(distances).sum() / models,
        }

    def smaller(self, step: int) -> list[Schedule]:
        """The schedules of a step's smaller models: the smallest, and random ones that hang on seed and step alone."""
        options, layers = self.options, self.context.shape.layers
        random = Random(f"lengths {options.seed} {step}")
        drawn = [drop_lengths(layers, 1 - self.smallest[0], random) for _ in range(options.random_models)]
        return [self.smallest, *drawn]

    @contextmanager
    def _under(self, schedule: Sequence[float]) -> Iterator[None]:
        """Within it, the model keeps the shares of this schedule."""
        before = self.policy.ratios
        self.policy.ratios = dict(enumerate(schedule))
        try:
            yield
        finally:
            self.policy.ratios = before

    # -- search ----------------------------------------------------------------------------------------

    def finalise(self, workplace: Path) -> dict[str, Any]:
        """Searches for the Pareto set of lengths, and takes its best schedule within the budget.

        The search is a function of seed and weights; scores are kept in `workplace`, so that a killed one goes on.
        """
        options = self.options
        if options.iterations == 0 or self.asked is None or self.asked == 1:
            return {}
        even = tuple(self.policy.ratios.values())
        start = [*self._population(), even]
        search = evolve(
            start,
            _Remembered(self, workplace / f"search-{self._weights()}.jsonl"),
            iterations=options.iterations,
            mutations=options.mutations,
            crossovers=options.crossovers,
            random=Random(f"search {options.seed}"),
            adjusted=lambda schedule: bent_to(schedule, self.reduction, self.asked or 1.0),
        )
        total = len(start) + options.iterations * (options.mutations + options.crossovers)
        points = list(dict.fromkeys(track(search, "search", total)))
        front = pareto(points)
        within = [point for point in points if self.meets_budget(point.reduction)]
        # the even schedule is among them unless sentences are so short that no schedule meets the budget
        chosen = max(within, key=lambda point: (point.score, point.reduction), default=None)
        if chosen is None:
            chosen = min(points, key=lambda point: self.budget_error(point.reduction))
        self.policy.ratios = dict(enumerate(chosen.schedule))
        say(
            f"search     {len(points)} schedules, {len(front)} of them in the Pareto set; taken: "
            f"{' '.join(f'{share:.2f}' for share in chosen.schedule)}, {chosen.reduction:.2f}x fewer FLOPs"
        )
        return {
            "score": self.context.spec.chosen_by,
            "asked": self.asked,
            "tolerance": self.context.tolerance,
            "chosen": _row(chosen),
            "pareto": [_row(point) for point in front],
            "measured": [_row(point) for point in points],
        }

    def _population(self) -> list[Schedule]:
        """The whole model, the smallest, and constant ratios between them, evenly by what they keep in sum."""
        layers, smallest = self.context.shape.layers, self.smallest
        steps = self.options.population + 1
        between = []
        for number in range(1, steps):
            kept = layers + (sum(smallest) - layers) * number / steps
            between.append(_ratio_that_keeps(layers, kept))
        return [(1.0,) * layers, *between, smallest]

    def score(self, schedule: Schedule) -> float:
        """The task's score of a schedule on the first `search_rows` validation sentences."""
        context = self.context
        with self._under(schedule):
            batches = _first_rows(context.validation(), self.options.search_rows)
            asked = context.questions[0] if context.questions else None
            found = evaluate(self.model, batches, context.spec, context.shape, context.classes, "pack", asked)
        return found.metrics[context.spec.chosen_by]

    def _weights(self) -> str:
        """What the scores of a search hang on."""
        digest = hashlib.sha256(repr(self.options.search_rows).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class _Remembered:
    """Measures schedules, and reads what an interrupted search measured already."""

    def __init__(self, method: LAT, path: Path) -> None:
        self.method = method
        self.path = path
        self.known = {tuple(row["schedule"]): row["score"] for row in read_jsonl(path)}

    def __call__(self, schedule: Schedule) -> Point:
        if schedule not in self.known:
            self.known[schedule] = self.method.score(schedule)
            append_jsonl(self.path, {"schedule": list(schedule), "score": self.known[schedule]})
        return Point(schedule, self.method.reduction(schedule), self.known[schedule])


def _reduction(context: MethodContext, schedule: Sequence[float]) -> float:
    policy = KeepRatio(dict(enumerate(schedule)))
    return context.reduction(
        *policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)
    )


def _ratio_that_keeps(layers: int, kept: float) -> Schedule:
    """The schedule of constant ratio whose shares sum to `kept`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(constant_ratio(layers, middle)) < kept else (low, middle)
    return constant_ratio(layers, high)


def _first_rows(batches: Any, rows: int | None) -> Iterator[Batch]:
    """Whole batches until they hold so many rows; batches are in random order, so these are a sample of all lengths."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["labels"])
        if rows is not None and seen >= rows:
            return


def _row(point: Point) -> dict[str, Any]:
    return {"shares": list(point.schedule), "flops_vs_unpadded": point.reduction, "score": point.score}
