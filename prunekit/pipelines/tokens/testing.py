"""After training: evaluate the dense and the pruned model, check that executions agree, time them, verify a goal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunekit.bench.timing import compare_speed
from prunekit.config.budget import parse_budget
from prunekit.console import say, track
from prunekit.data.loading import generator_of
from prunekit.data.module import TokenPruningDataModule
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.equivalence import check_executions_agree
from prunekit.evaluation.evaluate import EvaluationResult, evaluate
from prunekit.methods.base import TokenPruningMethod
from prunekit.models import loading
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens import latency_goal
from prunekit.pipelines.tokens.preparation import Prepared
from prunekit.pipelines.tokens.teacher import load_dense
from prunekit.runs.result import Band, LatencyGoal, RunResult, ServedBudget, SpeedRow
from prunekit.tokens.encoder import encoder_of
from prunekit.tokens.state import Execution


@dataclass(frozen=True)
class Tested:
    """What evaluation measured: the pruned model on validation, both models on the test split.

    `spec` is the task with what validation decided (such as a threshold for "no answer"). Where there is no teacher,
    `dense` is `test`.
    """

    spec: TaskSpec
    validation: EvaluationResult
    test: EvaluationResult
    dense: EvaluationResult
    bands: list[Band]
    details: dict[str, Any]


class ExtraTests:
    """What the test measures besides a forward pass per batch; by default nothing. Translation adds decoding."""

    def __init__(self, run: RunInputs) -> None:
        self.run = run

    def complete(
        self,
        measured: EvaluationResult,
        execution: Execution,
        model: PreTrainedModel,
        data: TokenPruningDataModule,
        stored: RunResult | None = None,
    ) -> EvaluationResult:
        """Add test metrics that need more than one forward pass, such as generation. No-op by default.

        `stored` is the result of a run that measured the same model on the same rows.
        """
        return measured

    def details(self, method: TokenPruningMethod, test: EvaluationResult, dense: EvaluationResult) -> dict[str, Any]:
        """Return further keys of the result, by default none."""
        return {}

    def bands(
        self,
        method: TokenPruningMethod,
        dense_model: PreTrainedModel,
        data: TokenPruningDataModule,
        test: EvaluationResult,
        dense: EvaluationResult,
    ) -> list[Band]:
        """Evaluate both models on each requested band of lengths."""
        context, spec, rows = method.context, self.run.spec, []
        for number, (band, split) in enumerate(data.bands):
            batches = data.band_loader(number)
            whole = evaluate(dense_model, batches, spec, context.shape, split.targets, "dense")
            pruned = evaluate(method.model, batches, spec, context.shape, split.targets, method.test_execution)
            rows.append(
                Band(
                    low=band.low,
                    below=band.high,
                    rows=pruned.rows,
                    dense=whole.metrics[spec.score],
                    pruned=pruned.metrics[spec.score],
                    dense_all=whole.metrics,
                    pruned_all=pruned.metrics,
                    flops_vs_unpadded=pruned.reduction,
                    mean_length=float(pruned.per_row.lengths.float().mean()),
                    tokens_per_layer=tuple(pruned.tokens_per_layer),
                )
            )
        return rows


def evaluate_models(run: RunInputs, prepared: Prepared, extra: ExtraTests) -> Tested:
    """Evaluate under the execution that the model will run in, after a check that it equals "mask".

    Raises:
        ExecutionsDifferError: the two executions compute different functions.
    """
    method, data, teacher = prepared.method, prepared.data, prepared.teacher
    model = method.model.eval().cpu()
    check_test_execution(method, data)
    validation = evaluate_split("validation", "mask", model, run.spec, method, data)
    spec = replace(run.spec, **validation.settled)
    test = evaluate_split("test", method.test_execution, model, spec, method, data)
    test = dense = extra.complete(test, method.test_execution, model, data)
    dense_model = model
    if teacher is not None:
        dense_model = load_dense(teacher, run.spec, data)
        decides = bool(validation.settled) and data.has_test
        own = evaluate_split("validation", "dense", dense_model, run.spec, method, data).settled if decides else {}
        dense = evaluate_split("test", "dense", dense_model, replace(run.spec, **own), method, data)
        dense = extra.complete(dense, "dense", dense_model, data, teacher.result)
    bands = extra.bands(method, dense_model, data, test, dense)
    details = dict(extra.details(method, test, dense))
    if served := evaluate_budgets(method, data, spec):
        details["budgets"] = [one.to_json() for one in served]
    return Tested(spec, validation, test, dense, bands, details)


def evaluate_budgets(method: TokenPruningMethod, data: TokenPruningDataModule, spec: TaskSpec) -> list[ServedBudget]:
    """Evaluate a model at each of the budgets that it serves; one that serves a single budget at none."""
    found = []
    for budget in () if method.pruner is None else method.pruner.policy.budgets:
        validation = evaluate_split("validation", "mask", method.model, spec, method, data, budget)
        test = evaluate_split("test", method.test_execution, method.model, spec, method, data, budget)
        error = abs((parse_budget(budget) or 1.0) / validation.reduction - 1)
        found.append(
            ServedBudget(
                budget=budget,
                reached=validation.reduction,
                met=error <= method.context.tolerance,
                score=test.metrics[spec.score],
                flops_vs_unpadded=test.reduction,
            )
        )
    return found


def check_test_execution(method: TokenPruningMethod, data: TokenPruningDataModule) -> None:
    """Check on the first test batch that the tested execution equals "mask"; report texts whose scores tie.

    Raises:
        ExecutionsDifferError: it does not.
    """
    if method.test_execution == "mask":
        return
    agreed = check_executions_agree(method.model, next(iter(data.loader("test"))), "mask", method.test_execution)
    if agreed.near_ties:
        say(
            f"check      {agreed.near_ties} texts of the first test batch keep other tokens under "
            f"{method.test_execution!r} than under 'mask': scores that tie up to rounding"
        )


def evaluate_split(
    split: str,
    execution: Execution,
    model: PreTrainedModel,
    spec: TaskSpec,
    method: TokenPruningMethod,
    data: TokenPruningDataModule,
    budget: str | None = None,
) -> EvaluationResult:
    """Evaluate a model on one split, with a progress line."""
    batches, targets = data.loader(split), data.split(split).targets
    context = method.context
    tracked = track(batches, f"{split} ({execution}{f', {budget}' if budget else ''})", len(batches))
    return evaluate(model, tracked, spec, context.shape, targets, execution, budget)


def evaluate_other_splits(run: RunInputs, prepared: Prepared, tested: Tested) -> dict[str, dict[str, float]]:
    """Return the metrics of the task's further validation splits, such as MNLI's mismatched one."""
    method, data = prepared.method, prepared.data
    return {
        split: evaluate_split(split, method.test_execution, method.model, tested.spec, method, data).metrics
        for split in data.validation_splits
        if split != "validation"
    }


def measure_speed(run: RunInputs, prepared: Prepared, folder: Path) -> tuple[SpeedRow, ...]:
    """Time the pruned model against its teacher, or the dense model in `folder`: interleaved medians by batch size."""
    bench, data, teacher, model = run.cfg["bench"], prepared.data, prepared.teacher, prepared.method.model
    stock = loading.load_stock(folder if teacher is None else teacher.folder)
    dense = model if teacher is None else load_dense(teacher, run.spec, data)
    # shuffled, as requests come: sorted by length, padding would cost the padded model nothing
    test = data.split("test")
    order = torch.randperm(len(test), generator=generator_of("bench"))
    rows = []
    for size in bench["batch_sizes"]:
        batches = [test.batch(some) for some in order[: bench["examples"]].split(size)]
        rounds = track(range(bench["rounds"] + 1), f"speed at batch {size}", bench["rounds"] + 1)
        rows.append(SpeedRow.from_json(compare_speed(model, dense, stock, batches, rounds)))
    return tuple(rows)


def verify_goal(goal: latency_goal.Goal, run: RunInputs, prepared: Prepared, tested: Tested) -> LatencyGoal:
    """Measure the trained model against a latency goal."""
    model = prepared.method.model
    pruner = encoder_of(model).pruner
    assert pruner is not None
    kept = tested.validation.per_row.tokens.T.float()
    entering = torch.cat([tested.validation.per_row.lengths[None].float(), kept[:-1]])
    split = prepared.data.split("validation")
    found = latency_goal.verify(goal, run.folder.path, model, split, (entering, kept), pruner.layers)
    say(
        f"goal 4/4   {found['measured_ms']:.3g} ms measured, p95 {found['p95_ms']:.3g}; {goal.latency_ms:g} asked: "
        + ("met" if found["met"] else "MISSED")
    )
    return LatencyGoal.from_json(found)
