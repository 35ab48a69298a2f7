"""Build result.json of a token-pruning run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.config.identity import config_hash
from prunekit.data.spec import TaskSpec
from prunekit.environment import command
from prunekit.models.heads import HEADS
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens.preparation import Prepared
from prunekit.pipelines.tokens.testing import Tested
from prunekit.runs.result import RunResult
from prunekit.training.hardware import precision_of


def build_result(run: RunInputs, prepared: Prepared, tested: Tested) -> RunResult:
    """Return the result once the models are evaluated; search, speed, goal and seconds follow later."""
    cfg, spec, data, method = run.cfg, run.spec, prepared.data, prepared.method
    validation, test = tested.validation, tested.test
    budget = method.budget_report(validation.reduction)
    met = budget["met"] and all(one["met"] for one in tested.details.get("budgets", ()))
    split = "test" if data.has_test else "validation"
    content = {
        "schema": 1,
        "status": "done" if met else "budget_missed",
        "exit_code": 0 if met else 3,
        "method": cfg["method"]["name"],
        "task": spec.name,
        "backbone": cfg["backbone"]["name"],
        "seed": cfg["seed"],
        "hash": config_hash(cfg),
        "command": command(),
        "budget": {
            **budget,
            "tolerance": method.context.tolerance,
            "feasible": list(method.options.feasible(method.context)),
            "split": "validation",
        },
        "score": {
            "metric": spec.score,
            "split": split,
            "rows": test.judged,
            "of": spec.judged_name,
            **({"null_threshold": tested.spec.null_threshold} if spec.unanswerable else {}),
            **_thresholds(tested.spec, data.label_names or ()),
            **_classes(tested, data.label_names or ()),
            "dense": tested.dense.metrics[spec.score],
            "pruned": test.metrics[spec.score],
            "dense_all": tested.dense.metrics,
            "pruned_all": test.metrics,
            "validation": validation.metrics[spec.chosen_by],
            **({"chosen_by": spec.chosen_by} if spec.chosen_by != spec.score else {}),
        },
        "flops": {
            **test.cost,
            "padded_to": spec.padded_length,
            "split": split,
            "per": spec.row_name,
            **({"of": "encoder"} if HEADS[spec.kind].decodes else {}),
        },
        "tokens_per_layer": test.tokens_per_layer,
        "mean_length": float(data.split("test").lengths.float().mean()),
        "speed": [],
        "truncated": data.truncated,
        "dropped": data.dropped,
        **({"noticed": data.noticed} if data.noticed else {}),
        "unknown_share": round(data.unknown_share, 6),
        "precision": precision_of(cfg["trainer"]["precision"]),
        "execution": {"validation": "mask", "test": method.test_execution},
        "bands": [band.to_json() for band in tested.bands],
        **tested.details,
    }
    return RunResult.from_json(content)


def _thresholds(spec: TaskSpec, names: Sequence[str]) -> dict[str, Any]:
    """Return the thresholds of the labels that were tuned."""
    return {"thresholds": dict(zip(names, spec.thresholds, strict=True))} if spec.thresholds else {}


def _classes(tested: Tested, names: Sequence[str]) -> dict[str, Any]:
    """Return which class F1 is of, and which is the only one that a model answers."""
    found: dict[str, Any] = {}
    if {"f1", "mean_of_accuracy_f1"} & {*tested.spec.metrics} and len(names) == 2:
        found |= {"negative": names[0], "positive": names[1]}
    only = {}
    for model, result in (("dense", tested.dense), ("pruned", tested.test)):
        predictions = result.per_row.predictions
        if (same := predictions.only_answer()) is not None:
            only[model] = same
    return found | ({"one_class": only} if only else {})
