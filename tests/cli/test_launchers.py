"""A sweep under each launcher: whole runs of a tiny model, in processes that the launcher starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

TINY = [
    "task=synthetic",
    "task.synthetic_rows=48",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "bench.enabled=false",
    "budget_tolerance=0.5",
    "budget=1.5x",
    "logger.wandb.enabled=false",
]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_jobs_under_a_launcher_share_one_teacher_and_are_not_repeated(launcher: str, tmp_path: Path):
    if launcher == "ray":
        pytest.importorskip(
            "hydra_plugins.hydra_ray_launcher",
            reason="its pins are not this project's: ./tests/extras.sh ray runs this",
        )
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    command = [sys.executable, "train.py", "-m", f"launcher={launcher}", "method=topk,random", *TINY, *places]
    for said in ("2 to run, 1 teacher to train", "2 done before, 0 to run"):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert said in answer.stdout
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("synthetic/*/*/*/*/result.json")]
    assert sorted(result["method"] for result in results) == ["dense", "random", "topk"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Deprecated API features")
def test_a_search_of_four_trials_is_told_what_the_results_say(tmp_path: Path):
    import optuna

    storage = f"sqlite:///{tmp_path / 'search.db'}"
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    tiny = [value for value in TINY if not value.startswith("budget=")]
    # nothing of the tiny model can be cut 99 times
    space = ["budget=choice(1.5x,99x)", "trainer.lr=choice(1e-3,2e-3)"]
    search = [
        "search=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.sampler.seed=4",
        f"hydra.sweeper.storage={storage}",
        *space,
    ]
    command = [sys.executable, "train.py", "-m", "method=topk", *search, *tiny, *places]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    trials = optuna.load_study("prunekit", storage).trials
    assert len(trials) == 4, answer.stdout + answer.stderr
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("synthetic/topk/*/*/*/result.json")]
    scores = {result["score"]["validation"] for result in results}
    feasible = [trial for trial in trials if trial.params["budget"] == "1.5x"]
    assert {trial.value for trial in feasible} == scores
    assert {trial.value for trial in trials if trial not in feasible} == {-1.0}
