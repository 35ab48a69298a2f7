"""LAT: one model for many lengths, trained with random lengths, and a search for the best ones.

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
from torch import Tensor
from transformers import PreTrainedModel

from prunekit.config.errors import ConfigError, shown
from prunekit.console import say, track
from prunekit.cost import Shape
from prunekit.data.encoding import Batch
from prunekit.evaluation.evaluate import evaluate
from prunekit.files import append_jsonl, damage, read_jsonl, remove_sealed, seal
from prunekit.losses import imitation_loss
from prunekit.methods.base import TokenPruningMethod
from prunekit.methods.context import MethodContext
from prunekit.methods.options import OptionalTraining
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.schedules import Point, Schedule, bend_to, constant_ratio, drop_lengths, evolve, pareto
from prunekit.tokens.scorers import AttentionReceived

PUBLISHED_DROP, PUBLISHED_LAYERS = 0.2, 12
MARGIN = 1.25  # the smallest model of training reduces FLOPs by at least this times the budget


@dataclass(frozen=True, kw_only=True)
class LATOptions(OptionalTraining):
    """The keys of conf/method/lat.yaml, explained there."""

    seed: int
    shares: tuple[float, ...] | None
    length_drop: float | None
    random_models: int
    iterations: int
    mutations: int
    crossovers: int
    population: int
    search_rows: int | None

    def asks(self, context: MethodContext) -> float | None:
        """Return the budget; a schedule given as `shares` asks for nothing.

        Raises:
            ConfigError: that schedule does not fit the backbone, or rises.
        """
        shares, layers = self.shares, context.shape.layers
        if shares is not None and (len(shares) != layers or sorted(shares, reverse=True) != list(shares)):
            raise ConfigError(
                f"method.shares={shown(list(shares))} is no schedule for {layers} layers.\n"
                f"Allowed: {layers} shares in (0..1], none larger than the one before: dropped tokens never return.\n"
                "Give one share per layer, or budget=2x for a search."
            )
        return context.budget

    def feasible(self, context: MethodContext) -> tuple[float, float]:
        """Return the range from nothing pruned to the smallest model of training; without `length_drop`, to [CLS]."""
        drop, layers = self.length_drop, context.shape.layers
        smallest = (0.0,) * layers if drop is None else constant_ratio(layers, 1 - drop)
        return 1.0, _reduction(context, smallest)

    def build_pruner(self, shape: Shape) -> TokenPruner:
        """Build the canonical score and a share for every layer, the first included."""
        shares = self.shares or (1.0,) * shape.layers
        return TokenPruner(AttentionReceived(), KeepRatio(dict(enumerate(shares))), range(shape.layers))


class LAT(TokenPruningMethod):
    """Trains the whole model on the task and smaller ones to follow it; then `finalise` searches for the lengths.

    Until then the schedule is the one of constant ratio that meets the budget: checkpoints are chosen by it.
    """

    Options = LATOptions
    options: LATOptions

    def __init__(self, model: PreTrainedModel, context: MethodContext, options: LATOptions) -> None:
        super().__init__(model, context, options)
        assert self.pruner is not None
        assert isinstance(self.pruner.policy, KeepRatio)
        self.policy = self.pruner.policy
        layers = context.shape.layers
        if self.asked is not None:
            even = bend_to(constant_ratio(layers, 0.5), self.reduction, self.asked)
            self.policy.ratios = dict(enumerate(even))
        self.smallest = constant_ratio(layers, 1 - self._drop())

    def reduction(self, schedule: Sequence[float]) -> float:
        """Return the FLOPs reduction of a schedule on the validation sentences; exact, without running the model."""
        return _reduction(self.context, schedule)

    # -- training --------------------------------------------------------------------------------------

    def _drop(self) -> float:
        """Return the drop probability of LengthDrop: as given, or as published, or what the budget needs."""
        if self.options.length_drop is not None:
            return self.options.length_drop
        layers = self.context.shape.layers
        published = 1 - (1 - PUBLISHED_DROP) ** (PUBLISHED_LAYERS / layers)
        wanted = self.asked or self.reduction(tuple(self.policy.ratios.values()))
        needed = bend_to(constant_ratio(layers, 0.5), self.reduction, MARGIN * wanted)
        return max(published, 1 - needed[0])

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the task loss of the whole model and the distances of smaller ones from it, as a mean over models."""
        kind = self.context.spec.kind
        whole = self(batch, "dense")
        distances = []
        for schedule in self.smaller_schedules(self.global_step):
            with self._schedule_set_to(schedule):
                logits = self(batch, "drop")
            distances.append(imitation_loss(logits, whole.detach(), kind))
        models = len(distances) + 1
        terms = self.task_terms(whole, batch) | {"inplace": torch.stack(distances).sum()}
        return {name: term / models for name, term in terms.items()}

    def smaller_schedules(self, step: int) -> list[Schedule]:
        """Return the schedules of a step: the smallest, and random ones that depend on the seed and the step alone."""
        options, layers = self.options, self.context.shape.layers
        random = Random(f"lengths {options.seed} {step}")
        drawn = [drop_lengths(layers, 1 - self.smallest[0], random) for _ in range(options.random_models)]
        return [self.smallest, *drawn]

    @contextmanager
    def _schedule_set_to(self, schedule: Sequence[float]) -> Iterator[None]:
        """Keep the shares of this schedule inside the `with` block."""
        before = self.policy.ratios
        self.policy.ratios = dict(enumerate(schedule))
        try:
            yield
        finally:
            self.policy.ratios = before

    # -- search ----------------------------------------------------------------------------------------

    def finalise(self, workplace: Path) -> dict[str, Any]:
        """Search for the Pareto set of lengths, and set its best schedule within the budget.

        The search is a function of seed and weights; scores are stored in `workplace`, so that a killed one resumes.
        """
        options = self.options
        if options.iterations == 0 or self.asked is None or self.asked == 1:
            return {}
        even = tuple(self.policy.ratios.values())
        start = [*self._population(), even]
        search = evolve(
            start,
            _ScoredSchedules(self, workplace / f"search-{self._digest()}.jsonl"),
            iterations=options.iterations,
            mutations=options.mutations,
            crossovers=options.crossovers,
            random=Random(f"search {options.seed}"),
            adjust=lambda schedule: bend_to(schedule, self.reduction, self.asked or 1.0),
        )
        total = len(start) + options.iterations * (options.mutations + options.crossovers)
        points = list(dict.fromkeys(track(search, "search", total)))
        front = pareto(points)
        within = [point for point in points if self.meets_budget(point.reduction)]
        # the even schedule meets the budget, unless sentences are so short that no schedule does
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
        """Return the whole model, the smallest one, and constant ratios between, evenly spaced in the sum of shares."""
        layers, smallest = self.context.shape.layers, self.smallest
        steps = self.options.population + 1
        between = []
        for number in range(1, steps):
            kept = layers + (sum(smallest) - layers) * number / steps
            between.append(_constant_ratio_with_sum(layers, kept))
        return [(1.0,) * layers, *between, smallest]

    def score(self, schedule: Schedule) -> float:
        """Return the score of the task under a schedule, on the first `search_rows` validation sentences."""
        context = self.context
        with self._schedule_set_to(schedule):
            batches = _first_rows(context.validation(), self.options.search_rows)
            result = evaluate(self.model, batches, context.spec, context.shape, context.targets[0], "pack")
        return result.metrics[context.spec.chosen_by]

    def _digest(self) -> str:
        """Return a digest of everything that the scores of a search depend on."""
        digest = hashlib.sha256(repr(self.options.search_rows).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class _ScoredSchedules:
    """Scores of schedules, those that an interrupted search stored among them."""

    def __init__(self, method: LAT, path: Path) -> None:
        self.method = method
        self.path = path
        if (wrong := damage(path, grows=True)) is not None:
            say(f"{path} {wrong}; the schedules are scored again.")
            remove_sealed(path)
        self.known = {tuple(row["schedule"]): row["score"] for row in read_jsonl(path)}

    def __call__(self, schedule: Schedule) -> Point:
        if schedule not in self.known:
            self.known[schedule] = self.method.score(schedule)
            append_jsonl(self.path, {"schedule": list(schedule), "score": self.known[schedule]})
            seal(self.path)
        return Point(schedule, self.method.reduction(schedule), self.known[schedule])


def _reduction(context: MethodContext, schedule: Sequence[float]) -> float:
    policy = KeepRatio(dict(enumerate(schedule)), context.spec.protects_first)
    return context.reduction(
        *policy.counts(context.lengths["validation"], context.shape.layers, context.protected_count)
    )


def _constant_ratio_with_sum(layers: int, kept: float) -> Schedule:
    """Return the schedule of constant ratio whose shares sum to `kept`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(constant_ratio(layers, middle)) < kept else (low, middle)
    return constant_ratio(layers, high)


def _first_rows(batches: Any, rows: int | None) -> Iterator[Batch]:
    """Iterate over whole batches until they hold `rows` rows; their order is random, so they sample all lengths."""
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch["labels"])
        if rows is not None and seen >= rows:
            return


def _row(point: Point) -> dict[str, Any]:
    return {"shares": list(point.schedule), "flops_vs_unpadded": point.reduction, "score": point.score}
