"""The stages of a token-pruning run: prepare, fit, test, publish. Each can be resumed, and reports its progress."""

from __future__ import annotations

import time
from dataclasses import replace

from prunekit.config.errors import DONE, MISSED
from prunekit.data.encoding import load_tokenizer
from prunekit.loggers.session import log_result, log_tokens, tracking
from prunekit.pipelines.inputs import RunInputs
from prunekit.pipelines.tokens.artifacts import (
    describe_model,
    save_model,
    write_artifacts,
    write_predictions,
)
from prunekit.pipelines.tokens.preparation import prepare
from prunekit.pipelines.tokens.result import build_result
from prunekit.pipelines.tokens.testing import (
    ExtraTests,
    evaluate_models,
    evaluate_other_splits,
    measure_speed,
    verify_goal,
)
from prunekit.runs.folder import SETTLING
from prunekit.runs.result import RunResult, Search, Status
from prunekit.training.fit import fit


class Pipeline:
    """One run of one configuration. `execute` returns the result; the run's folder holds everything else."""

    extra_tests: type[ExtraTests] = ExtraTests

    def __init__(self, run: RunInputs) -> None:
        self.run = run

    def execute(self) -> RunResult:
        """Run all stages and return the result."""
        run, started = self.run, time.monotonic()
        prepared = prepare(run)
        method, data, seconds = prepared.method, prepared.data, dict(prepared.seconds)
        with tracking(run.cfg, run.folder) as loggers:
            start = time.monotonic()
            if method.trains:
                fit(
                    method,
                    data,
                    run.cfg["trainer"],
                    run.folder.checkpoints,
                    asked=method.asked,
                    loggers=loggers,
                    owner=run.folder.hash,
                    after=run.after_fit,
                )
                seconds["fit"] = time.monotonic() - start
            else:
                method.calibrate()
                seconds["calibrate"] = time.monotonic() - start
            start = time.monotonic()
            finalised = method.finalise(run.folder.checkpoints / SETTLING)
            if finalised:
                seconds["search"] = time.monotonic() - start

            tested = evaluate_models(run, prepared, self.extra_tests(run))
            result = build_result(run, prepared, tested)
            if finalised:
                search = {key: finalised[key] for key in ("score", "chosen", "pareto")}
                result = replace(result, search=Search.from_json(search))
            tokenizer = load_tokenizer(run.backbone)
            write_artifacts(run, prepared, tested, tokenizer, finalised)
            other_splits = evaluate_other_splits(run, prepared, tested)
            result = replace(result, score=replace(result.score, other_splits=other_splits))
            write_predictions(run, prepared, tested)
            folder = save_model(run, prepared, tested, tokenizer)
            if run.cfg["bench"]["enabled"] and method.test_execution == "pack":
                result = replace(result, speed=measure_speed(run, prepared, folder))
            if prepared.goal is not None:
                goal = verify_goal(prepared.goal, run, prepared, tested)
                # the goal decides how the run ends: the budget was only the way to it
                status: Status = "done" if goal.met else "budget_missed"
                result = replace(result, goal=goal, status=status, exit_code=DONE if goal.met else MISSED)
            result = replace(result, seconds={**seconds, "total": time.monotonic() - started})
            describe_model(run, prepared, folder, result)
            log_result(loggers, result)
            log_tokens(loggers, run.folder, run.cfg["logger"]["texts"])
        return result
