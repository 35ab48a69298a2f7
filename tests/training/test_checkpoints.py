import enum
import json
import random
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support.damage import flip
from support.paths import TESTS, visible
from support.scripted_fit import Scripted, fit

from prunekit.files import read_jsonl
from prunekit.runs.folder import discard_resume_points
from prunekit.training import checkpoints
from prunekit.training.checkpoints import (
    DamagedCheckpointError,
    FeasibleCheckpoint,
    LastCheckpoint,
    PlainCheckpointIO,
    find_resumable,
    load_weights,
    to_plain_types,
)
from prunekit.training.rng import RngState, restore_rng_states, rng_states

# lightning still uses what torch's pytree renamed

# -- killed and resumed ------------------------------------------------------------------------------
# three epochs of ten steps, evaluated after every fifth step, a checkpoint after every step (support/killed_fit.py)

KILLS = {
    "before the first step": ["step 0"],
    "within the first epoch": ["step 7"],
    "after a step, before its checkpoint": ["after step 8"],
    "between an epoch's last step and its evaluation": ["after step 10"],
    "within the evaluation at an epoch's end": ["evaluation 10.1"],
    "right after an evaluation in the middle of an epoch": ["step 15"],
    "within an evaluation in the middle of an epoch": ["evaluation 15.2"],
    "after an epoch's evaluation, before its checkpoint": ["epoch end 0"],
    "at the first step of the second epoch": ["step 10"],
    "with half a checkpoint written": ["writing 13"],
    "with half of the best checkpoint written": ["writing 20"],
    "again and again": ["step 3", "step 4", "evaluation 10.2", "step 12", "writing 14", "step 29", "epoch end 2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    plan = [["whole", [None]], ["done twice", [None, None]]]
    plan += [[name, [*spots, None]] for name, spots in KILLS.items()]
    plan += [["short", [None]], ["short, killed", ["step 11", None, None]]]
    script = TESTS / "support" / "killed_fit.py"
    done = subprocess.run([sys.executable, script, root, json.dumps(plan)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def answer(folder):
    return json.loads((folder / "answer.json").read_text())


def rows_without_time(folder):
    return [{key: value for key, value in row.items() if key != "time"} for row in read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KILLS, "done twice"])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(runs, name):
    assert answer(runs / "whole")["step"] == 30
    assert answer(runs / name) == answer(runs / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KILLS, "done twice"])
def test_a_killed_and_resumed_run_has_the_metrics_of_an_uninterrupted_one(runs, name):
    whole = rows_without_time(runs / "whole")
    assert [row["step"] for row in whole if "train/loss" in row] == list(range(1, 30, 2))
    assert [row["step"] for row in whole if "score" in row] == [4, 9, 14, 19, 24, 29]
    assert [row["epoch"] for row in whole if "score" in row] == [0, 0, 1, 1, 2, 2]
    assert rows_without_time(runs / name) == whole


@pytest.mark.slow
def test_a_run_that_stops_after_17_steps_evaluates_there_and_resumes_exactly(runs):
    short, killed = answer(runs / "short"), answer(runs / "short, killed")
    assert short == killed
    assert short["step"] == 17
    assert short["weights"] != answer(runs / "whole")["weights"]
    assert rows_without_time(runs / "short")[-1]["step"] == 16
    assert "score" in rows_without_time(runs / "short")[-1]
    assert rows_without_time(runs / "short, killed") == rows_without_time(runs / "short")


@pytest.mark.slow
def test_killed_runs_leave_checkpoints_that_load_without_unpickling(runs):
    for name in ("whole", "again and again"):
        state = torch.load(runs / name / "last.ckpt", weights_only=True)
        assert state["global_step"] == 30
        assert "RngState" in state["callbacks"]


# -- what can be resumed -----------------------------------------------------------------------------


def write_checkpoint(path, step):
    torch.save({"global_step": step, "loops": {"fit_loop": {}}}, path)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(checkpoints, "say", lines.append)
    return lines


def test_without_a_checkpoint_training_starts_silently_from_the_beginning(tmp_path, said):
    assert find_resumable(tmp_path / "missing") is None
    assert said == []


def test_the_last_checkpoint_is_resumed(tmp_path, said):
    write_checkpoint(tmp_path / "previous.ckpt", 1)
    write_checkpoint(tmp_path / "last.ckpt", 2)
    assert find_resumable(tmp_path) == str(tmp_path / "last.ckpt")
    assert said == []


def test_a_truncated_checkpoint_is_reported_and_the_previous_one_is_resumed(tmp_path, said):
    write_checkpoint(tmp_path / "previous.ckpt", 1)
    write_checkpoint(tmp_path / "last.ckpt", 2)
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    assert find_resumable(tmp_path) == str(tmp_path / "previous.ckpt")
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'last.ckpt'} cannot be read (")
    assert said[0].endswith("training continues from the one before (previous.ckpt).")


def save(path, step, owner="", **state):
    PlainCheckpointIO(owner).save_checkpoint({"global_step": step, "loops": {"fit_loop": {}}, **state}, path)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_anywhere_is_reported_and_the_previous_checkpoint_is_resumed(tmp_path, said, place):
    save(tmp_path / "previous.ckpt", 1, weights=torch.zeros(999))
    save(tmp_path / "last.ckpt", 2, weights=torch.zeros(999))
    flip(tmp_path / "last.ckpt", place)
    assert find_resumable(tmp_path) == str(tmp_path / "previous.ckpt")
    assert said == [
        f"{tmp_path / 'last.ckpt'} is not what was written: it was damaged, or changed by hand; "
        "training continues from the one before (previous.ckpt)."
    ]


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path, said):
    save(tmp_path / "last.ckpt", 2, owner="0000aaaa")
    assert find_resumable(tmp_path, "0000aaaa") == str(tmp_path / "last.ckpt")
    assert find_resumable(tmp_path, "1111bbbb") is None
    assert said == [
        f"{tmp_path / 'last.ckpt'} is a file of another run (0000aaaa); "
        "training continues from the one before (previous.ckpt)."
    ]


@pytest.mark.parametrize("harm", [flip, Path.unlink], ids=["damaged", "gone"])
@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ({"best_score": 0.5, "closest": None}, "best.ckpt"),
        ({"best_score": None, "closest": [0.1, -0.5]}, "closest.ckpt"),
    ],
)
def test_without_the_checkpoint_to_be_kept_training_starts_again(tmp_path, said, harm, state, kept):
    callbacks = {"FeasibleCheckpoint{'monitor': 'score'}": state}
    save(tmp_path / "last.ckpt", 2, callbacks=callbacks)
    save(tmp_path / kept, 1)
    assert find_resumable(tmp_path) == str(tmp_path / "last.ckpt")
    harm(tmp_path / kept)
    assert find_resumable(tmp_path) is None
    assert said[0].startswith(f"{tmp_path / kept} is ")


def test_weights_that_were_damaged_are_refused_by_name(tmp_path):
    save(tmp_path / "best.ckpt", 1, state_dict={"weight": torch.ones(2)})
    assert load_weights(tmp_path / "best.ckpt")["weight"].tolist() == [1, 1]
    flip(tmp_path / "best.ckpt")
    with pytest.raises(
        DamagedCheckpointError, match=r"best\.ckpt is not what was written.*trains again from the start"
    ):
        load_weights(tmp_path / "best.ckpt")


def test_a_kill_between_the_two_renames_costs_only_one_checkpoint(tmp_path, said):
    write_checkpoint(tmp_path / "previous.ckpt", 2)  # last.ckpt was moved here, the new one was not yet moved
    assert find_resumable(tmp_path) == str(tmp_path / "previous.ckpt")


def test_if_every_checkpoint_is_broken_training_restarts_with_a_message(tmp_path, said):
    (tmp_path / "last.ckpt").write_bytes(b"")
    torch.save({"weights": 1}, tmp_path / "previous.ckpt")
    assert find_resumable(tmp_path) is None
    assert said[1] == f"{tmp_path / 'previous.ckpt'} cannot be read ('loops'); training continues from the start."


def test_a_checkpoint_that_would_have_to_be_unpickled_is_not_resumed(tmp_path, said):
    torch.save({"loops": {"fit_loop": {}}, "path": Path("x")}, tmp_path / "last.ckpt")
    assert find_resumable(tmp_path) is None
    assert "cannot be read (Weights only load failed" in said[0]


def test_resume_points_are_deleted_without_the_best_checkpoint(tmp_path):
    for name in ("last.ckpt", "previous.ckpt", "last.ckpt.staged", "best.ckpt", "closest.ckpt"):
        (tmp_path / name).touch()
    discard_resume_points(tmp_path)
    assert visible(tmp_path) == ["best.ckpt", "closest.ckpt"]
    discard_resume_points(tmp_path, keep_best=False)
    assert not tmp_path.exists()


# -- what may be in a checkpoint ---------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


def test_configs_paths_enums_and_numpy_become_plain_types(tmp_path):
    value = {
        "config": OmegaConf.create({"lr": 0.1, "layers": [1, 2]}),
        "path": Path("a/b"),
        "colour": Colour.RED,
        "score": np.float64(0.5),
        "array": np.array([1, 2]),
        "kept": [1, (2.0, None), {"x"}, torch.float32, torch.ones(1)],
    }
    found = to_plain_types(value)
    assert found["config"] == {"lr": 0.1, "layers": [1, 2]}
    assert (found["path"], found["colour"], found["score"]) == ("a/b", "red", 0.5)
    assert found["array"].tolist() == [1, 2]
    assert found["kept"][1] == (2.0, None)
    PlainCheckpointIO().save_checkpoint(value, tmp_path / "new" / "x.ckpt")
    assert torch.load(tmp_path / "new" / "x.ckpt", weights_only=True)["config"]["layers"] == [1, 2]
    assert isinstance(value["path"], Path)  # the value passed in is unchanged


def test_an_object_that_cannot_be_converted_is_named_and_nothing_is_written(tmp_path):
    message = (
        r"checkpoint\['callbacks'\]\['mine'\]\[1\] is a builtins\.object, which cannot be loaded without unpickling; "
        r"allowed are tensors, numbers, strings"
    )
    with pytest.raises(TypeError, match=message):
        PlainCheckpointIO().save_checkpoint({"callbacks": {"mine": [1, object()]}}, tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


# -- random numbers ----------------------------------------------------------------------------------


def draws():
    return torch.rand(2).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()


def test_all_generators_continue_exactly_where_they_were(tmp_path):
    L.seed_everything(3, verbose=False)
    np.random.randn(1)  # numpy and Python now hold the second half of a pair of normal numbers
    random.gauss(0, 1)
    callback = RngState()
    torch.save(callback.state_dict(), tmp_path / "rng")
    expected = draws()
    fresh = RngState()
    fresh.load_state_dict(torch.load(tmp_path / "rng", weights_only=True))
    assert draws() != expected  # loading alone restores nothing, because setting up draws numbers
    trainer, module = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), Scripted([])
    fresh.on_train_batch_start(trainer, module, None, 0)
    assert draws() == expected
    fresh.on_train_batch_start(trainer, module, None, 1)  # once only
    assert draws() != expected


def test_restoring_states_twice_gives_the_same_numbers_twice():
    states = rng_states()
    first = draws()
    restore_rng_states(states)
    assert draws() == first


def test_states_of_two_processes_are_refused_by_one():
    with pytest.raises(
        ValueError, match=r"written by 2 processes and this run has 1; resume with the same trainer\.devices"
    ):
        RngState().load_state_dict({"processes": [rng_states(), rng_states()]})


# -- the best and the closest ------------------------------------------------------------------------


def weight(path):
    return torch.load(path, weights_only=True)["state_dict"]["weight"].item()


def test_the_best_feasible_evaluation_is_kept_over_better_ones_that_missed_the_budget(tmp_path):
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted([(0.99, 0, 0.5), (0.7, 1, 0.01), (0.8, 1, 0.02), (0.8, 1, 0.0), (0.95, 0, 0.3)]), [best], epochs=5)
    assert Path(best.best_model_path) == tmp_path / "best.ckpt"
    assert weight(tmp_path / "best.ckpt") == 2  # the earlier one of two equal scores
    assert best.best_model_score.item() == pytest.approx(0.8)
    assert best.closest_model_path == ""
    assert visible(tmp_path) == ["best.ckpt"]


def test_if_no_evaluation_meets_the_budget_there_is_a_closest_but_no_best(tmp_path):
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted([(0.9, 0, 0.5), (0.7, 0, 0.1), (0.8, 0, 0.1), (0.99, 0, 0.3)]), [best], epochs=4)
    assert best.best_model_path == ""
    assert Path(best.closest_model_path) == tmp_path / "closest.ckpt"
    assert weight(tmp_path / "closest.ckpt") == 2  # the higher score among two that are equally close
    assert visible(tmp_path) == ["closest.ckpt"]


def test_a_nan_score_is_never_the_best(tmp_path):
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted([(float("nan"), 1, 0.0), (0.1, 1, 0.0)]), [best], epochs=2)
    assert weight(best.best_model_path) == 1


def test_a_nan_budget_gap_is_the_farthest(tmp_path):
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted([(0.5, 0, float("nan")), (0.5, 0, 9.0)]), [best], epochs=2)
    assert weight(best.closest_model_path) == 1


def test_the_best_checkpoint_is_restored_after_the_run_was_moved_and_resumed(tmp_path):
    script = [(0.7, 1, 0.0), (0.6, 1, 0.0), (0.65, 1, 0.0)]
    old, new = tmp_path / "old", tmp_path / "new"
    fit(Scripted(script), [FeasibleCheckpoint(old), LastCheckpoint(old)], epochs=2)
    old.rename(new)
    best = FeasibleCheckpoint(new)
    fit(Scripted(script), [best, LastCheckpoint(new)], epochs=3, resume=find_resumable(new))
    assert Path(best.best_model_path) == new / "best.ckpt"
    assert weight(new / "best.ckpt") == 0
    assert best.best_model_score.item() == pytest.approx(0.7)


def test_the_closest_checkpoint_is_restored_after_a_resume(tmp_path):
    script = [(0.7, 0, 0.1), (0.7, 0, 0.2), (0.7, 0, 0.3)]
    fit(Scripted(script), [FeasibleCheckpoint(tmp_path), LastCheckpoint(tmp_path)], epochs=1)
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted(script), [best, LastCheckpoint(tmp_path)], epochs=3, resume=find_resumable(tmp_path))
    assert weight(best.closest_model_path) == 0


def test_a_best_checkpoint_of_an_earlier_attempt_is_overwritten(tmp_path):
    (tmp_path / "best.ckpt").write_bytes(b"stale")
    best = FeasibleCheckpoint(tmp_path)
    fit(Scripted([(0.5, 1, 0.0)]), [best], epochs=1)
    assert weight(tmp_path / "best.ckpt") == 0
    assert visible(tmp_path) == ["best.ckpt"]


def test_a_module_that_does_not_log_feasibility_is_refused(tmp_path):
    message = "logged score, but FeasibleCheckpoint needs score, feasible, budget_gap: log feasible, budget_gap"
    with pytest.raises(ValueError, match=message):
        fit(Scripted([(0.5, 1, 0.0)], names=("score",)), [FeasibleCheckpoint(tmp_path)], epochs=1)


# -- the last ----------------------------------------------------------------------------------------


def test_a_checkpoint_is_taken_at_each_epochs_end_and_the_previous_one_is_kept(tmp_path):
    fit(Scripted([(0.5, 1, 0.0)] * 3), [FeasibleCheckpoint(tmp_path), LastCheckpoint(tmp_path)], epochs=3)
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in ("previous.ckpt", "last.ckpt")]
    assert steps == [2, 3]
    assert visible(tmp_path) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_hyperparameters_in_a_config_are_stored_as_plain_types(tmp_path):
    module = Scripted([(0.5, 1, 0.0)])
    module.save_hyperparameters(OmegaConf.create({"lr": 0.1}))
    fit(module, [FeasibleCheckpoint(tmp_path), LastCheckpoint(tmp_path)], epochs=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"] == {"lr": 0.1}


def test_a_module_that_changes_after_the_checkpoint_is_refused(tmp_path):
    class Clamping(Scripted):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.weight.data.clamp_(0, 1)

    message = r"Clamping\.on_train_batch_end runs after the step's checkpoint is taken.*do it in optimizer_step"
    with pytest.raises(TypeError, match=message):
        fit(Clamping([(0.5, 1, 0.0)]), [LastCheckpoint(tmp_path)], epochs=1)


def test_a_trainer_with_max_steps_is_refused(tmp_path):
    message = r"Trainer\(max_steps=7\) makes Lightning count an epoch twice .* add the callback StopAfter\(7\)"
    with pytest.raises(ValueError, match=message):
        fit(Scripted([(0.5, 1, 0.0)]), [LastCheckpoint(tmp_path)], epochs=1, max_steps=7)
