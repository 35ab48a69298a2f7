"""Sweeps: what is missing is run, once, whoever runs it; what failed is listed with its log."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import fake_sweep
from support.paths import TESTS
from support.run_result import changed
from support.stored_runs import result as stored
from support.stored_runs import store

from prunekit.cli import main
from prunekit.config.composition import compose
from prunekit.config.identity import config_hash
from prunekit.config.search_path import sweeps_dir
from prunekit.files import atomic_write_text
from prunekit.pipelines.job import WORST, objective_of
from prunekit.runs.board import Board, title
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runs.sweep import Planned, Sweep, closing_lines, settings_of, swept_keys

FAKE = TESTS / "support" / "fake_sweep.py"


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = [sys.executable, str(FAKE), "runs_dir=runs", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment}, **pipes)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Types a command in an empty folder, in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr("prunekit.pipelines.job.run", fake_sweep.run)
    monkeypatch.setattr("prunekit.runs.sweep.POLL_SECONDS", 0.05)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["prunekit"])
    monkeypatch.chdir(tmp_path)

    def type_in(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main(["runs_dir=runs", *arguments] if "--dry" in arguments else ["-m", "runs_dir=runs", *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return type_in


def trained(folder: Path) -> list[str]:
    return (folder / "trained").read_text().splitlines() if (folder / "trained").exists() else []


def test_teachers_are_trained_first_and_once_and_the_command_again_trains_nothing(sweep, tmp_path: Path):
    code, out, _ = sweep("method=top,topk", "seed=1,2")
    assert code == 0
    assert trained(tmp_path) == ["dense 1", "dense 2", "top 1", "top 2", "topk 1", "topk 2"]
    assert "4 runs, 0 done before, 4 to run, 2 teachers to train" in out
    code, out, _ = sweep("method=top,topk", "seed=1,2")
    assert code == 0
    assert len(trained(tmp_path)) == 6
    assert "4 runs, 4 done before, 0 to run" in out


def test_a_job_that_leaves_nothing_where_it_was_planned_is_given_up(sweep, tmp_path: Path):
    """Its folder is another one at each look, so that no launch brings the planned one to an end."""
    code, out, _ = sweep("runs_dir='runs/${now:%f}'", "method=dense", "seed=1")
    assert code == 1
    assert trained(tmp_path) == ["dense 1"] * 3
    assert "was launched 3 times and left neither a result nor an error" in out


@pytest.mark.slow
def test_only_what_a_wider_grid_adds_is_trained(sweep, tmp_path: Path):
    sweep("method=dense", "seed=1,2")
    sweep("method=dense", "seed=1,2,5")
    assert trained(tmp_path) == ["dense 1", "dense 2", "dense 5"]


@pytest.mark.slow
def test_jobs_that_differ_in_nothing_that_counts_are_one_run_and_a_dense_run_is_its_own_teacher(sweep, tmp_path: Path):
    same = ["bench.enabled=false", "teacher.epochs=${trainer.epochs}"]
    _, out, _ = sweep("method=dense,topk", "budget=2x,3x", *same)
    assert trained(tmp_path) == ["dense 1", "topk 1", "topk 1"]
    assert "3 runs (1 of 4 jobs are doubles), 0 done before, 3 to run\n" in out


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "code"), [("1,2", 0), ("3,1", 3), ("4,3,1", 4), ("13,4,3,1", 1)])
def test_every_job_runs_and_the_exit_code_is_the_worst(seeds: str, code: int, sweep, tmp_path: Path):
    assert sweep(f"seed={seeds}", "method=topk")[0] == code
    assert "topk 1" in trained(tmp_path)  # the last job, whatever became of the others


@pytest.mark.slow
def test_what_failed_is_listed_with_its_log_and_tried_again_by_the_same_command(sweep, tmp_path: Path):
    code, out, _ = sweep("method=topk", "seed=1,13,2")
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("failed ")]
    assert "topk bbc_news minilm 3x s13" in line
    assert "RuntimeError: the roof is on fire" in line
    log = tmp_path / line.rpartition("log: ")[2]
    assert "Traceback" in log.read_text()
    assert "Traceback" not in out
    (tmp_path / "mended").touch()
    assert sweep("method=topk", "seed=1,13,2")[0] == 0
    assert trained(tmp_path)[-1] == "topk 13"
    assert Counter(trained(tmp_path))["topk 1"] == 1
    assert not list(tmp_path.rglob("failed.json"))


def test_a_job_that_cannot_be_configured_stops_no_other_and_starts_nothing(sweep, tmp_path: Path):
    code, out, _ = sweep("method=topk", "trainer.epochs=-1,1")
    assert code == 4
    assert trained(tmp_path) == ["dense 1", "topk 1"]
    assert "trainer.epochs=-1 is out of range." in out


def test_when_no_job_can_be_configured_the_reason_is_given_once(sweep, tmp_path: Path):
    code, out, err = sweep("method=topk", "trainer.epochs=-1,-2")
    assert (code, out) == (4, "")
    assert err.splitlines()[0] == "trainer.epochs=-1 is out of range."
    assert len(err.splitlines()) == 3


@pytest.mark.slow
def test_a_missed_budget_is_listed_as_such_and_is_worth_the_least(sweep, tmp_path: Path):
    code, out, _ = sweep("method=dense", "seed=3,1")
    assert code == 3
    assert "1 done, 1 missed their budget" in out
    assert any(line.startswith("missed     dense bbc_news minilm s3") for line in out.splitlines())
    assert objective_of(changed(exit_code=3, score__validation=0.9)) == WORST
    assert objective_of(changed(exit_code=0, score__validation=0.9, score__pruned=0.1)) == 0.9  # never the test split


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Deprecated API features")
def test_a_search_is_told_the_validation_score_or_the_worst_and_goes_on_where_it_was(sweep, tmp_path: Path):
    import optuna

    storage = f"sqlite:///{tmp_path / 'search.db'}"
    search = ["search=optuna", "method=topk", "hydra/sweeper/sampler=random", f"hydra.sweeper.storage={storage}"]
    search += ["hydra.sweeper.sampler.seed=6"]  # which draws seeds 1, 2, 4, 4, 3
    space = ["seed=choice(1,2,3,4)", "trainer.lr=choice(3e-5)"]
    for asked, trials in ((5, 5), (2, 7)):  # the second time so many more, the same ones as before
        sweep(*search, *space, f"hydra.sweeper.n_trials={asked}")
        told = [(int(trial.params["seed"]), trial.value) for trial in optuna.load_study("prunekit", storage).trials]
        assert len(told) == trials
    # 3 misses its budget, 4 cannot run
    assert set(told) == {(1, 0.51), (2, 0.52), (3, WORST), (4, WORST)}
    assert Counter(trained(tmp_path)) == {f"{kind} {seed}": 1 for kind in ("dense", "topk") for seed in (1, 2, 3)}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(sweep, tmp_path: Path):
    killed = start(tmp_path, "-m", "method=dense", "seed=1,99,2")
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert trained(tmp_path) == ["dense 1"]
    assert sweep("method=dense", "seed=1,99,2")[0] == 0
    assert trained(tmp_path) == ["dense 1", "dense 99", "dense 2"]


def test_an_interruption_ends_the_sweep_with_130(sweep, tmp_path: Path):
    code, _, err = sweep("method=dense", "seed=1,9,2")
    assert code == 130
    assert "interrupted" in err
    assert trained(tmp_path) == ["dense 1"]


@pytest.mark.slow
def test_two_processes_of_the_same_sweep_share_its_runs_and_neither_waits_while_there_is_work(tmp_path: Path):
    grid = ["-m", "method=topk,random", "seed=1,2", "budget=2x,3x"]
    both = [start(tmp_path, *grid, FAKE_SECONDS="0.3", FAKE_PROCESSES="2") for _ in range(2)]
    out = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    each = Counter(trained(tmp_path))
    assert each == {"dense 1": 1, "dense 2": 1, "topk 1": 2, "topk 2": 2, "random 1": 2, "random 2": 2}
    shares = [text.count(" done    ") for text in out]
    assert sum(shares) == 10
    assert min(shares) >= 3
    assert all("sweep      8 done\n" in text for text in out)


@pytest.mark.slow
def grid(folder: Path, *seeds: int) -> Sweep:
    """A sweep of dense runs, without Hydra."""
    jobs = [["method=dense", f"seed={seed}", f"runs_dir={folder / 'runs'}"] for seed in seeds]
    composed = {tuple(job): compose(job) for job in jobs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunekit.runs.sweep.configuration", lambda config, context: config[0])
        return Sweep(jobs, lambda job: Composed(composed[tuple(job)]), folder)


class Composed(tuple):  # a configuration that has its context with it
    hydra = None


def fail(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_failure(1, "RuntimeError: the roof is on fire")


def finish(folder: RunFolder) -> None:
    for name in ("config.json", "model.safetensors"):
        atomic_write_text(folder.path / "model" / name, "{}")
    folder.write_result(changed())


@pytest.mark.parametrize("clock", [lambda: 0.0, map(float, range(10**9, 0, -1000)).__next__], ids=["1970", "backwards"])
def test_a_failed_job_is_listed_once_whatever_the_clock_says(tmp_path: Path, capsys, monkeypatch, clock):
    fail(grid(tmp_path, 1).jobs[0].folder)  # in an earlier sweep: tried again
    sweep, launched = grid(tmp_path, 1, 2), []
    assert [sweep._failure(job) for job in sweep.jobs] == [None, None]
    monkeypatch.setattr("time.time", clock)

    def launch(batch: list[list[str]], first: int) -> None:
        launched.extend(batch)
        for job, end in zip(sweep.jobs, (fail, finish), strict=True):
            end(job.folder)

    sweep.run(launch)
    assert len(launched) == 2
    assert "1 done, 1 crashed" in capsys.readouterr().out


def test_what_fails_in_another_process_meanwhile_is_not_tried_again_but_listed(tmp_path: Path, capsys):
    sweep, launched = grid(tmp_path, 1, 2), []
    fail(sweep.jobs[1].folder)  # since the sweep began

    def launch(batch: list[list[str]], first: int) -> None:
        launched.extend(batch)
        finish(sweep.jobs[0].folder)

    sweep.run(launch)
    assert [job[1] for job in launched] == ["seed=1"]
    assert "failed     dense bbc_news minilm s2" in capsys.readouterr().out


def test_a_job_that_can_write_nothing_is_given_up_and_listed(tmp_path: Path, capsys, monkeypatch):
    """As on a full disk, where the failure cannot be written either."""

    def refuse(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    sweep, launched = grid(tmp_path, 1), []
    monkeypatch.setattr(RunFolder, "write_failure", refuse)
    sweep.run(lambda batch, first: launched.extend(batch))
    assert len(launched) == 3
    assert "was launched 3 times" in capsys.readouterr().out


def test_force_repeats_a_run_once_whatever_the_clock_says(tmp_path: Path, monkeypatch):
    finish(grid(tmp_path, 1).jobs[0].folder)
    os.utime(grid(tmp_path, 1).jobs[0].folder.path / "result.json", (2**31, 2**31))  # written in the future
    sweep, launched = grid(tmp_path, 1), []
    sweep.jobs[0].cfg["force"] = True

    def launch(batch: list[list[str]], first: int) -> None:
        launched.extend(batch)
        finish(sweep.jobs[0].folder)

    sweep.run(launch)
    assert len(launched) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"started": 1}', '{"started": 1, "runs": [1], "failed_before": []}']
)
def test_a_board_that_cannot_be_read_is_an_empty_one(tmp_path: Path, content: str):
    (tmp_path / "board.json").write_text(content)
    assert Board.read(tmp_path).runs == ()


def test_a_board_that_was_damaged_is_an_empty_one(tmp_path: Path):
    Board(1.0, ((Path("a"), 2.0),), frozenset({"x"})).write(tmp_path)
    assert Board.read(tmp_path) == Board(1.0, ((Path("a"), 2.0),), frozenset({"x"}))
    text = (tmp_path / "board.json").read_text()
    (tmp_path / "board.json").write_text(text.replace("2.0", "9.0"))
    assert Board.read(tmp_path).runs == ()


@pytest.mark.slow
def test_when_a_teacher_fails_its_runs_are_not_tried(sweep, tmp_path: Path):
    code, out, _ = sweep("method=topk,random", "seed=4,1")
    assert code == 4
    assert trained(tmp_path) == ["dense 1", "topk 1", "random 1"]
    assert out.count(" FAILED ") == 1
    assert out.count("its teacher failed: budget=99x cannot be met.") == 2


def test_a_preview_says_what_would_run_and_leaves_nothing(sweep, tmp_path: Path):
    sweep("method=dense", "seed=1")
    before = sorted(tmp_path.rglob("*"))
    for order in (["-m", "--dry", "seed=1,2"], ["seed=1,2", "--dry"]):
        code, out, err = sweep("method=dense", *order)
        assert (code, err) == (0, "")
        assert out.startswith("sweep      2 runs, 1 done before, 1 to run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_force_runs_everything_again_once(sweep, tmp_path: Path):
    for _ in range(2):
        sweep("method=dense", "seed=1,2", "force=true")
    assert trained(tmp_path) == ["dense 1", "dense 2"] * 2


def test_the_flag_m_may_stand_anywhere(sweep, tmp_path: Path):
    assert sweep("method=dense", "-m", "seed=1,2")[0] == 0
    assert trained(tmp_path) == ["dense 1", "dense 2"]


def test_a_key_that_only_the_swept_methods_have_can_be_set(sweep, tmp_path: Path):
    """Hydra composes a sweep with the default method first, which has no key method.train."""
    assert sweep("method=random,first", "method.train=false")[0] == 0
    assert trained(tmp_path) == ["dense 1", "random 1", "first 1"]


def test_a_key_that_no_swept_method_has_is_refused(sweep, tmp_path: Path):
    code, _, err = sweep("method=random,first", "method.trian=false")
    assert (code, trained(tmp_path)) == (4, [])
    assert "there is no key method.trian" in err.splitlines()[0]


@pytest.mark.slow
def test_a_file_of_sweeps_is_a_grid_and_what_is_typed_goes_on_top(sweep, tmp_path: Path, monkeypatch):
    (tmp_path / "tiny_grid.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /method: dense\n"
        "trainer:\n  epochs: 7\n"
        "hydra:\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    for module in ("search_path", "keys"):
        monkeypatch.setattr(f"prunekit.config.{module}.sweeps_dir", lambda: tmp_path)
    assert sweep("sweeps=tiny_grid")[0] == 0
    assert trained(tmp_path) == ["dense 1", "dense 2"]
    assert sweep("sweeps=tiny_grid", "seed=2,6")[0] == 0
    assert trained(tmp_path) == ["dense 1", "dense 2", "dense 6"]
    assert sweep("sweeps=tiny_grid", "trainer.epochs=8")[0] == 0
    assert len(trained(tmp_path)) == 5
    code, _, err = sweep("sweeps=tiny_gird")
    assert code == 4
    assert err.splitlines()[0] == "sweeps=tiny_gird does not exist."
    assert err.splitlines()[2] == "Did you mean sweeps=tiny_grid?"


@pytest.mark.slow
def test_lines_are_grids_of_their_own_and_what_is_typed_chooses_among_them_or_goes_on_top(
    sweep, tmp_path: Path, monkeypatch
):
    (tmp_path / "unlike.yaml").write_text(
        "# @package _global_\n"
        "hydra:\n  sweeper:\n    params:\n      seed: 1,2\n"
        "    lines:\n    - method=dense\n    - method=topk,ltp teacher.path=null budget=2x\n"
        "    - method=random method.rate=0.5 budget=null\n"
    )
    for module in ("search_path", "keys"):
        monkeypatch.setattr(f"prunekit.config.{module}.sweeps_dir", lambda: tmp_path)
    said = {
        (): "8 runs",
        ("method=ltp,random", "seed=1"): "2 runs",
        ("method=topk", "budget=3x,4x", "seed=1"): "2 runs",
    }
    for typed, runs in said.items():
        assert sweep("sweeps=unlike", "--dry", *typed)[1].startswith(f"sweep      {runs}, 0 done before")
    code, _, err = sweep("sweeps=unlike", "method=top", "--dry")
    assert code == 4
    assert "method=top --dry: no line" not in err
    assert "method=top" in err.splitlines()[0]
    assert "no line of the sweep has this" in err.splitlines()[0]


def test_a_grid_over_an_option_that_does_not_exist_starts_nothing(sweep, tmp_path: Path):
    code, out, err = sweep("method=top,topp")
    assert (code, out, trained(tmp_path)) == (4, "", [])
    assert err.splitlines()[0] == "method=topp does not exist."
    assert len(err.splitlines()) == 3


def test_progress_counts_what_any_process_finished_and_tells_when_all_will_be(tmp_path: Path, capsys):
    runs = [tmp_path / "a" / "b" / "c" / "d" / f"s1-{n}" for n in range(4)]
    board = Board(time.time() - 30, tuple((run, 1.0) for run in runs))
    for run in runs[:3]:
        run.mkdir(parents=True)
        (run / "result.json").write_text("{}")
    board.announce_end("topk", changed(score__pruned=0.9, budget__reached=2.0), 10.0)
    assert capsys.readouterr().out == "3/4 done    topk   accuracy 90.00, 2.00x, 00:10 | ETA 00:10\n"


def test_the_settings_that_a_sweep_varies_stand_in_place_of_the_hash():
    jobs = [
        ["method=topk", "task=cola", "seed=1", "+trainer.lr=1e-4", "hydra.verbose=true"],
        ["method=topk", "task=cola", "seed=2", "+trainer.lr=1e-5", "hydra.verbose=false"],
        ["method=lat", "task=cola", "seed=2", "+trainer.lr=1e-5", "method.population=4"],
    ]
    assert swept_keys([settings_of(job) for job in jobs]) == ["trainer.lr", "method.population"]
    cfg, _ = compose(["method=topk", "task=cola", "budget=2x", "seed=7"])
    assert title(cfg, {"trainer.lr": "1e-4"}) == "topk cola minilm 2x s7 trainer.lr=1e-4"
    assert title(cfg, {}) == "topk cola minilm 2x s7"


def test_a_board_keeps_the_names_and_calls_a_teacher_by_its_title(tmp_path: Path):
    cfg, _ = compose(["method=topk", "task=cola", "budget=2x", "seed=7"])
    path = RunFolder.of(cfg).path
    Board(1.0, ((path, 1.0),), names={str(path): "topk with trainer.lr=1"}).write(tmp_path)
    board = Board.read(tmp_path)
    assert board.name(cfg) == "topk with trainer.lr=1"
    assert board.name(cfg | {"seed": 8}) == title(cfg | {"seed": 8})


def test_the_end_of_a_sweep_names_the_best_run_of_each_budget_and_what_to_type(tmp_path: Path):
    runs = tmp_path / "my runs"
    folders = [
        store(runs, stored("topk", "2x", 1, 0.5)),
        store(runs, stored("topk", "2x", 2, 0.55)),
        store(runs, stored("ltp", "3x", 1, 0.4)),
        store(runs, stored("dense", "dense", 1, 0.6)),
        store(runs, stored("top", "2x", 1, 0.9, exit_code=3, status="budget_missed")),
        store(runs, stored("lat", "2x", 1, 0.9)),
    ]
    for folder in folders[:-1]:  # the last one lost its model, so it is not done
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "model.safetensors").write_bytes(b"")
    jobs = [Planned([], {}) for _ in folders]
    for job, folder in zip(jobs, folders, strict=True):
        job.__dict__["folder"] = RunFolder(folder, "")
    names = {str(folder): f"run {number}" for number, folder in enumerate(folders)}
    lines = closing_lines(jobs, names, ["trainer.lr", "trainer"])
    assert lines == [
        f"best       cola 2x: run 1   matthews 55.00, 2.00x (best of 2 by validation)   {folders[1]}",
        f"best       cola 3x: run 2   matthews 40.00, 3.00x (the only run)   {folders[2]}",
        f"next       prunekit table '{runs}' rows=method,budget,trainer.lr",
        f"           prunekit report '{runs}'",
    ]
    assert closing_lines(jobs[-1:], names, []) == []


def test_a_run_is_called_by_what_tells_it_from_others():
    cfg, _ = compose(["method=topk", "task=cola", "budget=2x", "seed=7"])
    assert title(cfg)[:-8] == "topk cola minilm 2x s7 "


# -- the published grids -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_controls_are_117_runs_whose_dense_ones_are_the_teachers(sweep, tmp_path: Path):
    _, out, _ = sweep("-m", "sweeps=controls", "seed=1", "task=cola", "--dry")
    assert out.startswith("sweep      13 runs (1 of 14 jobs are doubles), 0 done before, 13 to run\n")


@pytest.mark.slow
def test_the_ablation_runs_gamma_0_once_and_the_rows_share_their_teachers(sweep, tmp_path: Path):
    _, out, _ = sweep("-m", "sweeps=tsdtp_ablation", "seed=1", "budget=2x", "--dry")
    assert out.startswith("sweep      6 runs, 0 done before, 6 to run\n")
    _, out, _ = sweep("-m", "sweeps=tsdtp_rows", "seed=1", "task=qnli", "--dry")
    assert out.startswith("sweep      3 runs, 0 done before, 3 to run\n")


@pytest.mark.parametrize("file", sorted(sweeps_dir().glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_composes_and_says_how_many_runs_it_is(file: Path):
    text = file.read_text()
    assert text.startswith("# @package _global_\n")
    assert f"python train.py -m sweeps={file.stem}" in text
    (said,) = re.findall(r"^# (\d+) runs", text, re.MULTILINE)
    sweeper = yaml.safe_load(text)["hydra"]["sweeper"]
    grid, doubled = sweeper["params"], 9 if file.stem == "controls" else 0
    lines = [dict(word.split("=") for word in line.split()) for line in sweeper.get("lines", [""])]
    jobs = sum(math.prod(len(str(values).split(",")) for values in (grid | line).values()) for line in lines)
    assert jobs - doubled == int(said)
    for line in lines:
        first = [f"{key}={str(values).split(',')[0]}" for key, values in (grid | line).items()]
        compose([f"sweeps={file.stem}", *first])


@pytest.mark.parametrize("chosen", [["method=dense"], ["method=dtp", "budget=2x"], ["method=tsdtp", "budget=2x"]])
def test_rows_of_sst2_are_runs_of_the_ablation(chosen):
    one, other = (canonical(compose([f"sweeps=tsdtp_{name}", *chosen])[0]) for name in ("rows", "ablation"))
    assert config_hash(one) == config_hash(other)


def test_published_grids_stand_on_the_published_recipes():
    cfg, _ = compose(["sweeps=top_cola", "trainer.lr=6e-5"])
    assert (cfg["task"]["name"], cfg["backbone"]["name"], cfg["method"]["target_sparsity"]) == (
        "cola",
        "bert_base",
        0.43,
    )
    assert (cfg["trainer"]["lr"], cfg["trainer"]["epochs"]) == (6e-5, 100)


@pytest.mark.slow
def test_the_list_of_a_sweep_is_kept(sweep, tmp_path: Path):
    sweep("method=dense", "seed=1,13,3")
    (summary,) = (tmp_path / "runs" / "_sweeps").glob("*/summary.json")
    rows = json.loads(summary.read_text())
    assert [row["exit_code"] for row in rows] == [0, 0, 3]
