"""What a sweep will take, told by finished runs of the same kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from prunekit.config import compose
from prunekit.estimate import Estimator
from prunekit.files import write_jsonl
from prunekit.run import canonical
from prunekit.runs import RunFolder


def finished_run(folder: Path, *overrides: str, steps: int, fit: float, total: float, **manifest) -> None:
    cfg, _ = compose(["method=topk", "task=cola", f"runs_dir={folder}", *overrides])
    run = RunFolder.of(cfg)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    write_jsonl(run.path / "metrics.jsonl", [{"step": steps - 1, "epoch": 0, "time": 0.0}])
    (run.path / "weights").write_bytes(b"0" * 1000)
    run.write_result({"schema": 1, "status": "done", "seconds": {"fit": fit, "teacher": 50.0, "total": total}})


def planned(*overrides: str) -> dict:
    return compose(["method=topk", "task=cola", *overrides])[0]


def test_time_grows_with_the_steps_and_the_rest_stays(tmp_path: Path):
    rows = "data.train_rows=320"
    finished_run(tmp_path, rows, "trainer.epochs=2", steps=20, fit=40.0, total=100.0)  # 2 s a step, 10 s beside
    estimate = Estimator(tmp_path)
    assert estimate.seconds(planned(rows, "trainer.epochs=2", "seed=2")) == 50.0
    assert estimate.seconds(planned(rows, "trainer.epochs=6")) == 130.0
    assert estimate.seconds(planned("data.train_rows=640", "trainer.epochs=2")) == 90.0
    assert estimate.seconds(planned(rows, "trainer.epochs=6", "trainer.max_steps=5")) == 20.0


def test_runs_that_prune_weights_are_told_by_their_own_texts(tmp_path: Path):
    weights = ["method=wanda", "task=domain_legal", "backbone=tiny_decoder", f"runs_dir={tmp_path}"]
    cfg = canonical(compose(weights)[0])
    run = RunFolder.of(cfg)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run.path / "manifest.json").write_text("{}")
    run.write_result({"schema": 1, "status": "done", "seconds": {"evaluate": 3.0, "total": 9.0}})
    estimate = Estimator(tmp_path)
    assert estimate.seconds(canonical(compose([*weights, "seed=2", "method.calibration=mixed"])[0])) == 9.0
    assert estimate.seconds(canonical(compose([*weights, "task.open.samples=16"])[0])) is None


def test_of_several_runs_the_middle_one_counts(tmp_path: Path):
    for seed, fit in enumerate((10.0, 20.0, 600.0)):
        finished_run(tmp_path, f"seed={seed}", steps=10, fit=fit, total=fit + 50)
    assert Estimator(tmp_path).seconds(planned("seed=9")) == 20.0


@pytest.mark.parametrize("other", ["method=random", "task=mrpc", "backbone=tiny", "trainer.batch_size=8"])
def test_another_kind_tells_nothing_about_time(tmp_path: Path, other: str):
    finished_run(tmp_path, steps=10, fit=10.0, total=60.0)
    assert Estimator(tmp_path).seconds(planned(other)) is None


def test_a_run_that_was_interrupted_or_is_half_written_is_not_measured_by(tmp_path: Path):
    finished_run(tmp_path, "seed=1", steps=10, fit=10.0, total=60.0, resumed=["2026-01-01"])
    finished_run(tmp_path, "seed=2", steps=10, fit=10.0, total=60.0)
    (broken,) = tmp_path.glob("*/*/*/*/s2-*/result.json")
    broken.write_text('{"sec')
    assert Estimator(tmp_path).seconds(planned("seed=3")) is None


def test_any_run_of_the_backbone_tells_the_disk(tmp_path: Path):
    finished_run(tmp_path, steps=10, fit=10.0, total=60.0)
    assert 1000 < (Estimator(tmp_path).size(planned("method=random", "task=mrpc")) or 0) < 10_000
    assert Estimator(tmp_path).size(planned("backbone=tiny")) is None
