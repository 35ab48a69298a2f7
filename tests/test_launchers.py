"""A sweep under each launcher: whole runs of a tiny model, in processes that the launcher starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "task=synthetic",
    "task.synthetic_rows=48",
    "backbone=tiny",
    "trainer=debug",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "bench.enabled=false",
    "budget_tolerance=0.5",
    "budget=1.5x",
    "logger.wandb.enabled=false",
]
PACKAGES = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PACKAGES)
def test_jobs_under_a_launcher_share_one_teacher_and_are_not_repeated(launcher: str, tmp_path: Path):
    pytest.importorskip(PACKAGES[launcher], reason=f"the extra [{launcher.split('_')[0]}] is not installed")
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"]
    command = [sys.executable, "train.py", "-m", f"launcher={launcher}", "method=topk,random", *TINY, *places]
    for said in ("2 to run, 1 teacher to train", "2 done before, 0 to run"):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert said in answer.stdout
    results = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("synthetic/*/*/*/*/result.json")]
    assert sorted(result["method"] for result in results) == ["dense", "random", "topk"]
