"""The first lines of a run: its stages, and how long all of them take."""

from dataclasses import replace

import pytest
from support.run_result import RESULT

from prunekit.config.composition import compose
from prunekit.pipelines.run import after_fit
from prunekit.runs import plan as plans
from prunekit.runs.estimate import Estimate
from prunekit.runs.identity import canonical
from prunekit.runs.plan import plan_run


class Known:
    """An estimator that knows how long a dense and a pruned run take."""

    def __init__(self, runs_dir):
        pass

    def estimate(self, cfg):
        seconds = 60.0 if cfg["method"]["name"] == "dense" else 120.0
        return Estimate.within(seconds, 2.0, "others")

    def besides(self, cfg):
        return 10.0 if cfg["method"]["name"] == "dense" else 30.0


@pytest.fixture
def plan_of(tmp_path, monkeypatch):
    def planned(*typed, estimator=Known):
        monkeypatch.setattr(plans, "Estimator", estimator)
        cfg, _ = compose(["task=synthetic", "backbone=tiny", f"runs_dir={tmp_path}", *typed])
        return plan_run(canonical(cfg))

    return planned


def test_a_run_with_its_teacher_is_announced_with_the_time_of_both(plan_of):
    assert plan_of("method=topk", "budget=2x", "seed=3").text == (
        "plan       topk on synthetic, tiny, 2x, seed 3\n"
        "           train the teacher, train pruned, test, measure speed\n"
        "           about 03:00 (01:30 to 06:00)"
    )


def test_a_dense_run_and_one_that_trains_nothing(plan_of):
    dense = plan_of("method=dense", "bench.enabled=false")
    assert dense.text == (
        "plan       dense on synthetic, tiny, seed 1\n           train, test\n           about 01:00 (00:30 to 02:00)"
    )
    assert "set the budget, test, measure speed" in plan_of("method=topk", "budget=2x", "method.train=false").text


def test_a_teacher_that_is_there_is_not_counted(plan_of, monkeypatch):
    monkeypatch.setattr(plans, "finished_result", lambda folder: RESULT)
    line = plan_of("method=topk", "budget=2x").text
    assert line.endswith("\n           train pruned, test, measure speed\n           about 02:00 (01:00 to 04:00)")


def test_without_a_comparable_run_it_says_so(plan_of):
    class Unknown(Known):
        def estimate(self, cfg):
            return None

        def besides(self, cfg):
            return None

    plan = plan_of("method=topk", "budget=2x", estimator=Unknown)
    assert plan.text.endswith("\n           no estimate yet: no comparable run has finished")
    assert (plan.after_teacher, plan.after_fit) == (None, None)


def test_what_follows_a_training_is_its_tests_and_after_a_teacher_the_whole_pupil_too(plan_of):
    pupil, teacher = plan_of("method=topk", "budget=2x"), plan_of("method=dense")
    assert after_fit(pupil, None) == 30.0
    assert after_fit(teacher, pupil) == 10.0 + 120.0
    assert after_fit(teacher, replace(pupil, after_teacher=None)) is None
