"""Latency goals: from a staircase to a budget, to a run that says asked, predicted and measured. Nothing is timed."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from support.models import method_under_test, tiny_model

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.encoding import EncodedSplit, LabelTargets
from prunekit.data.ragged import Ragged
from prunekit.methods.topk import TopK
from prunekit.pipelines.run import run
from prunekit.pipelines.tokens import latency_goal, pipeline, preparation
from prunekit.pipelines.tokens.latency_goal import Aim, Goal, GoalOutOfReachError, draw_batches, translate
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import teacher_config
from prunekit.runtime import latency_model
from prunekit.runtime.engine import PackedEngine
from prunekit.runtime.latency_model import LatencyModel, computed_rows, interpolate
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived

GOAL = Goal(latency_ms=12.0, batch=2, threads=1, dtype="fp32")
STAIRS = LatencyModel(
    batch=2,
    first_only=True,
    enter=((4, 4.0), (8, 8.0)),
    finish=((4, 40.0), (8, 80.0)),
    start=((1, 0.1), (2, 0.2)),
    attend=((1, 0.01), (2, 0.02)),
    decide=((1, 0.5), (2, 0.5)),
    last=((4, 7.0), (8, 9.0)),
)


# -- the table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ms"), [(4, 1.0), (6, 1.5), (8, 2.0), (12, 4.0), (16, 6.0), (2, 1.0), (20, 8.0), (32, 14.0)]
)
def test_between_two_steps_time_is_interpolated_and_beyond_the_last_it_rises_as_before(size, ms):
    assert interpolate(((4, 1.0), (8, 2.0), (16, 6.0)), np.array([size])) == pytest.approx([ms])


def test_a_table_of_one_step_is_flat_and_noise_never_makes_more_rows_cheaper_beyond_the_last():
    assert interpolate(((4, 1.0),), np.array([1, 4, 9])) == pytest.approx([1, 1, 1])
    assert interpolate(((4, 2.0), (8, 1.0)), np.array([16])) == pytest.approx([1.0])


def test_rows_are_those_that_the_engine_computes_dummies_included():
    assert computed_rows(np.array([3, 4, 33, 65, 2.1]), 8).tolist() == [4, 4, 40, 72, 4]
    assert computed_rows(np.array([3, 33]), 1).tolist() == [4, 33]


def test_the_time_of_a_batch_is_the_sum_of_its_parts():
    """Two texts of 3 and 5 tokens, of which the first of two layers leaves 1 and 3."""
    tokens_in, tokens_out = torch.tensor([[3.0, 5.0], [1.0, 3.0]]), torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    batch = torch.tensor([[0, 1]])
    start, enter, attend, decide, finish, last = 0.8, 8.0, 0.08, 1.0, 40.0, 7.0
    first_layer = enter + attend + decide + finish
    assert STAIRS.milliseconds(tokens_in, tokens_out, batch, [0]) == pytest.approx([start + first_layer + last])
    # where the head reads all tokens, the last layer is as the others
    second_layer = 4.0 + 0.04 + 40.0
    whole = replace(STAIRS, first_only=False)
    expected = start + first_layer + second_layer + last
    assert whole.milliseconds(tokens_in, tokens_out, batch, [0]) == pytest.approx([expected])


def test_each_batch_has_the_texts_it_is_made_of():
    lengths = torch.tensor([[1.0, 1.0, 3.0, 5.0]])
    found = replace(STAIRS, first_only=False).milliseconds(lengths, lengths, torch.tensor([[0, 1], [3, 2]]))
    assert found == pytest.approx([0.2 + 4 + 0.02 + 40 + 7, 0.8 + 8 + 0.08 + 80 + 9])


def test_a_staircase_survives_its_file():
    assert LatencyModel.from_json(json.loads(json.dumps(asdict(STAIRS)))) == STAIRS
    with pytest.raises(ValueError, match="without a measured size"):
        LatencyModel.from_json(asdict(STAIRS) | {"enter": []})


# -- measuring, with a clock that ticks once whenever it is read -----------------------------------------


def ticking():
    now = iter(range(10**9))
    return lambda: float(next(now))


def pruner():
    return TokenPruner(AttentionReceived(), KeepRatio({1: 0.5}), [1])


def engine_of(layers=3):
    return PackedEngine(install(tiny_model(layers=layers), pruner()), dtype="fp32", threads=1)


def test_every_part_is_measured_per_layer_or_per_text():
    shapes = latency_model.sizes(2, 6)
    assert shapes == [(2, 6), (2, 4), (2, 3), (2, 2), (2, 1)]
    found = latency_model.measure(engine_of(), pruner(), 2, shapes, ticking())
    # one tick for each part of each of two layers; the third is computed for the first token alone, behind them
    assert found.enter == ((4, 1000.0), (8, 1000.0), (12, 1000.0))
    assert found.finish == found.enter
    assert found.attend == tuple((length, 500.0) for length in (1, 2, 3, 4, 6))
    assert found.start == found.attend
    assert found.decide == tuple((length, 0.0) for length in (1, 2, 3, 4, 6))
    assert found.last == tuple((rows, 1000.0) for rows in (2, 4, 6, 8, 12))
    assert (found.batch, found.first_only) == (2, True)


def test_more_rows_than_are_needed_are_not_measured():
    assert latency_model.sizes(256, 64)[0] == (32, 64)
    assert latency_model.sizes(1, 64)[0] == (1, 64)
    assert all(texts * length <= latency_model.MOST_ROWS for texts, length in latency_model.sizes(256, 512))


def test_what_is_measured_part_by_part_is_the_whole_forward_pass(monkeypatch):
    engine, seen = engine_of(), []
    known = engine._result
    monkeypatch.setattr(engine, "_result", lambda hidden, state: seen.append(known(hidden, state).logits))
    ids = [[5, 6, 7, 8, 9], [7, 5, 3]]
    with torch.inference_mode():
        latency_model._time_pass(engine, ids, ticking())
    monkeypatch.undo()
    assert torch.equal(seen[0], engine(ids, prune=False).logits)


# -- the file --------------------------------------------------------------------------------------------


def identity(**changes):
    given = {"cpu": "one", "linears": "onednn", "dtype": "fp32", "threads": 1, "batch": 2, "longest": 64, "hidden": 32}
    return latency_model.identity(pruner(), **given | changes)


def test_a_stored_staircase_is_read(tmp_path):
    path = latency_model.place(tmp_path, identity())
    assert latency_model.load(path, identity()) is None
    latency_model.save(path, identity(), STAIRS, [0.1])
    found, when = latency_model.load(path, identity())
    assert found == STAIRS
    assert when.startswith("20")


@pytest.mark.parametrize("change", [{"cpu": "other"}, {"dtype": "int8"}, {"threads": 2}, {"batch": 8}, {"hidden": 64}])
def test_another_machine_engine_or_layer_has_a_staircase_of_its_own(change, tmp_path):
    assert latency_model.place(tmp_path, identity(**change)) != latency_model.place(tmp_path, identity())
    path = latency_model.place(tmp_path, identity())
    latency_model.save(path, identity(), STAIRS, None)
    assert latency_model.load(path, identity(**change)) is None


def test_a_broken_file_is_as_none(tmp_path):
    path = latency_model.place(tmp_path, identity())
    path.write_text('{"identity": ')
    assert latency_model.load(path, identity()) is None


# -- translating -----------------------------------------------------------------------------------------


def to_budget(predict, goal=12.0, low=1.0, high=8.0, dense=26.0):
    return translate(predict, replace(GOAL, latency_ms=goal), low, high, dense, "topk on tiny")


def falling(reduction):
    """2 ms whatever is pruned, and 24 ms of work."""
    return 2 + 24 / reduction


def test_the_smallest_reduction_is_found_that_is_three_percent_below_the_goal():
    found = to_budget(falling)
    assert found.budget == pytest.approx(24 / (12 * 0.97 - 2), abs=1e-4)
    assert 11.63 < found.predicted_ms <= 12 * 0.97
    assert (found.fastest_ms, found.dense_ms) == (5.0, 26.0)


def test_on_a_staircase_the_foot_of_the_step_is_taken():
    found = to_budget(lambda reduction: 13.0 if reduction < 3 else 9.0)
    assert found.budget == pytest.approx(3.0, abs=2e-4)
    assert (found.predicted_ms, found.fastest_ms) == (9.0, 9.0)


def test_where_the_margin_is_out_of_reach_and_the_goal_is_not_all_goes_that_may():
    assert to_budget(falling, goal=5.05).budget == 8.0


def test_a_method_that_has_to_prune_prunes_no_more_than_that():
    assert to_budget(falling, goal=25.0, low=1.5).budget == pytest.approx(1.5, abs=2e-4)


def test_a_goal_out_of_reach_is_refused_with_the_feasible_range():
    with pytest.raises(GoalOutOfReachError) as refused:
        to_budget(falling, goal=4.5)
    first, second, third = str(refused.value).splitlines()
    assert first == "goal.latency_ms=4.5 is out of reach on this machine."
    assert second == "Feasible with topk on tiny: 5 ms (most pruned) to 26 ms (dense)."
    assert third.startswith("Ask for more")
    assert refused.value.exit_code == 3


def test_a_goal_that_the_dense_model_meets_is_refused():
    with pytest.raises(ConfigError) as refused:
        to_budget(falling, goal=26.0)
    assert str(refused.value).startswith("goal.latency_ms=26: the dense model is as fast already, 26 ms")
    assert refused.value.exit_code == 4


def test_the_range_that_a_message_offers_is_accepted():
    with pytest.raises(GoalOutOfReachError, match=r"5\.01 ms .* to 25\.99 ms"):
        to_budget(lambda reduction: falling(reduction) + 0.0041, goal=1.0, dense=25.999)


@pytest.mark.parametrize("method", ["topk", "top", "ltp", "tsdtp", "lat", "threshold"])
def test_a_guessed_schedule_costs_the_flops_that_are_asked_for(method):
    found = method_under_test(method, lengths=tuple(range(10, 40)))
    tokens_in, tokens_out = found.options.likely_counts(found.context, 1.6)
    layers = sorted(found.pruner.layers)
    scorers = sum(found.pruner.scorer.macs(tokens_in[layer]) for layer in layers)
    assert found.context.reduction(tokens_in, tokens_out, scorers) == pytest.approx(1.6, rel=0.02)
    assert (tokens_out <= tokens_in).all()


def test_of_topk_the_schedule_is_known():
    found = method_under_test("topk", lengths=(12, 7, 30), budget=1.6)
    own = found.pruner.policy.counts(torch.tensor([12, 7, 30]), 4)
    for one, other in zip(found.options.likely_counts(found.context, 1.6), own, strict=True):
        assert torch.equal(one, other)


def test_the_same_whole_batches_are_predicted_and_measured():
    batches = draw_batches(7, GOAL)
    assert batches.shape == (3, 2)
    assert len(set(batches.flatten().tolist())) == 6
    assert torch.equal(batches, draw_batches(7, GOAL))
    assert draw_batches(5000, GOAL).numel() == latency_goal.MOST_TEXTS
    with pytest.raises(ConfigError, match=r"goal.batch=8, but validation has 7 texts\.\nAllowed: 1\.\.7"):
        draw_batches(7, replace(GOAL, batch=8))


@pytest.mark.parametrize(("measured", "met"), [(11.0, True), (12.6, True), (12.61, False)])
def test_five_percent_above_the_goal_it_is_still_met(measured, met, tmp_path, monkeypatch):
    aim = Aim(2.5, 11.6, 5.0, 26.0)
    (tmp_path / "goal.json").write_text(json.dumps({"aim": asdict(aim), "staircase": asdict(STAIRS)}))
    monkeypatch.setattr(latency_goal, "measure_latency", lambda *_: {"ms": {"median": measured}, "p95_ms": 13.0})
    split = EncodedSplit(Ragged.of([[0], [1], [2], [3]]), LabelTargets(torch.zeros(4)), "")
    found = latency_goal.verify(GOAL, tmp_path, tiny_model(), split, (torch.ones(2, 4), torch.ones(2, 4)), [0])
    assert found["met"] is met
    assert (found["asked_ms"], found["predicted_ms"], found["measured_ms"]) == (12.0, 11.6, measured)
    assert found["feasible_ms"] == [5.0, 26.0]
    # two texts of a token each in each batch: 4 rows, as STAIRS has them
    assert found["predicted_as_trained_ms"] == pytest.approx(0.2 + 4 + 0.02 + 1.0 + 40 + 7)


# -- whole runs ------------------------------------------------------------------------------------------

TINY = [
    "method=topk",
    "task=synthetic",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "trainer.max_steps=3",
    "task.synthetic_rows=48",
    "examples=0",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "budget_tolerance=0.1",
    "goal.batch=4",
]


def linear(batch=4):
    """A machine on which time is 1 ms per row and half layer: dense texts of some 12 tokens take 4 * 12 * 7 ms."""
    row, text = ((4, 4.0), (8, 8.0)), ((1, 0.0), (2, 0.0))
    return LatencyModel(batch, True, row, row, text, text, text, row)


def config(folder, *overrides):
    return compose([*TINY, f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}", *overrides])[0]


@pytest.fixture
def machine(monkeypatch):
    """How often the staircase was measured."""
    measured = []

    def measure(goal, model, pruner, shapes):
        measured.append(list(shapes))
        return linear(goal.batch)

    monkeypatch.setattr(latency_goal, "measure", measure)
    return measured


@pytest.mark.slow
def test_a_run_trains_to_the_goal_and_measures_it_and_a_killed_one_keeps_its_budget(
    tmp_path, machine, monkeypatch, capsys
):
    cfg = config(tmp_path, "goal.latency_ms=230")
    folder = RunFolder.of(cfg).path
    assert folder.parts[-2] == "230ms"
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            # the teacher is a fit as well: nothing but the goal is known
            run(cfg)
    known = json.loads((folder / "goal.json").read_text())
    assert len(machine) == 1
    assert "measuring the staircase" in capsys.readouterr().out

    # another staircase now: the run that has started does not see it
    for file in (tmp_path / "cache" / "staircases").glob("*.json"):
        file.unlink()
    result = run(cfg)
    assert len(machine) == 1
    said = capsys.readouterr().out
    assert "derived when this run began" in said
    assert "230 ms asked per batch of 4" in said
    found = result.goal
    assert result.budget.asked == known["aim"]["budget"] == found.budget > 1
    assert 0.9 * 230 < found.predicted_ms <= 0.97 * 230
    assert found.measured_ms > 0
    assert found.p95_ms >= found.measured_ms
    assert found.texts % 4 == 0
    assert result.exit_code == (0 if found.met else 3)
    assert json.loads((folder / "result.json").read_text())["goal"] == found.to_json()


@pytest.mark.slow
def test_the_second_run_measures_nothing_and_says_which_file_it_read(tmp_path, machine, monkeypatch, capsys):
    """Asked for too little on purpose: refused behind the staircase, and before anything is trained."""
    for _ in range(2):
        with pytest.raises(GoalOutOfReachError, match="Feasible with method=topk on tiny and synthetic"):
            run(config(tmp_path, "goal.latency_ms=0.001"))
    (file,) = (tmp_path / "cache" / "staircases").glob("*.json")
    assert len(machine) == 1
    assert f"nothing is measured: {file}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the dense model is as fast already"):
        run(config(tmp_path, "goal.latency_ms=100000"))
    assert not list((tmp_path / "runs").glob("*/dense/*/*/*"))
    with pytest.raises(GoalOutOfReachError):
        run(config(tmp_path, "goal.latency_ms=0.001", "goal.threads=2"))
    assert len(machine) == 2
    monkeypatch.setattr(TopK, "test_execution", "mask")
    monkeypatch.setattr(preparation, "find_teacher", lambda *_: None)
    with pytest.raises(ConfigError, match="tested under 'mask', which is not what the packed engine computes"):
        run(config(tmp_path, "goal.latency_ms=300"))


def test_every_goal_shares_the_teacher_of_every_budget(tmp_path):
    asked = [["goal.latency_ms=230"], ["goal.latency_ms=12", "goal.batch=2"], ["budget=2x"]]
    assert len({RunFolder.of(teacher_config(config(tmp_path, *one))).path for one in asked}) == 1
