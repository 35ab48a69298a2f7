"""What a sweep will take, told by finished runs of the same kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.run_result import changed

from prunekit.config.composition import compose
from prunekit.files import write_jsonl
from prunekit.runs.estimate import Estimator
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical


def finished_run(
    folder: Path, *overrides: str, steps: int, fit: float, total: float, texts: dict | None = None, **manifest
) -> None:
    if texts is not None:
        manifest["texts"] = {name: {"rows": rows, "tokens": tokens} for name, (rows, tokens) in texts.items()}
    cfg, _ = compose(["method=topk", "task=cola", f"runs_dir={folder}", *overrides])
    run = RunFolder.of(cfg)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(cfg))
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    write_jsonl(run.path / "metrics.jsonl", [{"step": steps - 1, "epoch": 0, "time": 0.0}])
    (run.path / "weights").write_bytes(b"0" * 1000)
    run.write_result(changed(seconds={"fit": fit, "teacher": 50.0, "total": total}))


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
    run.write_result(changed(mean_length=1.0, seconds={"evaluate": 3.0, "total": 9.0}))  # per token
    estimate = Estimator(tmp_path)
    assert estimate.seconds(canonical(compose([*weights, "seed=2", "method.calibration=mixed"])[0])) == 9.0
    assert estimate.seconds(canonical(compose([*weights, "task.open.samples=16"])[0])) is None


def test_of_several_runs_the_middle_one_counts(tmp_path: Path):
    for seed, fit in enumerate((10.0, 20.0, 600.0)):
        finished_run(tmp_path, f"seed={seed}", steps=10, fit=fit, total=fit + 50)
    assert Estimator(tmp_path).seconds(planned("seed=9")) == 20.0


# three times a forward pass for 3200 training tokens, and four evaluations of 100 tokens: 10 000 units of work an epoch
TEXTS = {"train": (320, 10.0), "validation": (10, 10.0), "test": (20, 10.0)}


def test_another_method_of_the_task_costs_what_its_tokens_cost(tmp_path: Path):
    dense_run = ["method=dense", "trainer.epochs=2", "trainer.evals_per_epoch=4"]
    finished_run(tmp_path, *dense_run, steps=20, fit=20.0, total=77.0, texts=TEXTS)
    told = Estimator(tmp_path)
    dense = told.estimate(planned(*dense_run, "seed=2"))
    assert dense is not None
    assert (dense.seconds, dense.low, dense.high) == (27.0, pytest.approx(27 / 1.4), pytest.approx(27 * 1.4))
    # half the tokens at the end, all at the beginning; and its test runs the dense model too
    pruned = told.estimate(planned("budget=2x", "trainer.epochs=4", "trainer.evals_per_epoch=4"))
    assert pruned is not None
    assert pruned.seconds == pytest.approx(40 * 0.75 + 7 * 3.5)
    assert pruned.high == pytest.approx(pruned.seconds * 2)
    assert pruned.by == "finished runs of the same task and model"
    # a hundred evaluations of 100 tokens each weigh more than an epoch's 9600
    often = told.estimate(planned("method=dense", "trainer.epochs=2", "trainer.evals_per_epoch=100"))
    assert often is not None
    assert often.seconds == pytest.approx(2 * (9.6 + 10.0) + 7)


def test_another_task_is_scaled_by_the_tokens_of_its_texts(tmp_path: Path):
    schedule = ["method=dense", "trainer.epochs=2", "trainer.evals_per_epoch=4"]
    finished_run(tmp_path, *schedule, steps=20, fit=20.0, total=77.0, texts=TEXTS)
    longer = {"train": (640, 30.0), "validation": (20, 30.0), "test": (20, 30.0)}
    elsewhere = ["method=dense", "task=mrpc", "backbone=bert_base"]  # whose texts are known, but not for this backbone
    finished_run(tmp_path, *elsewhere, steps=20, fit=900.0, total=999.0, texts=longer)
    found = Estimator(tmp_path).estimate(planned(*schedule, "task=mrpc"))
    assert found is not None
    assert found.seconds == pytest.approx(20 * 6 + 7 * 3)
    assert (found.low, found.high) == (pytest.approx(141 / 2), pytest.approx(141 * 2))
    assert found.by == "finished runs of the model on other tasks"


def test_what_a_method_costs_beyond_its_tokens_is_told_by_another_task(tmp_path: Path):
    """On CoLA top-k took three times what its tokens say; on MRPC a token costs half of what it costs there."""
    schedule = ["trainer.epochs=2", "trainer.evals_per_epoch=4"]
    finished_run(tmp_path, "method=dense", *schedule, steps=20, fit=20.0, total=77.0, texts=TEXTS)
    finished_run(tmp_path, "budget=2x", *schedule, steps=20, fit=45.0, total=105.0, texts=TEXTS)
    finished_run(tmp_path, "task=mrpc", "method=dense", *schedule, steps=20, fit=10.0, total=67.0, texts=TEXTS)
    found = Estimator(tmp_path).estimate(planned("task=mrpc", "budget=2x", *schedule))
    assert found is not None
    assert found.seconds == pytest.approx(10 * 0.75 * 3 + 7 * 3.5)


def test_a_part_of_the_rows_does_not_tell_how_many_there_are(tmp_path: Path):
    finished_run(tmp_path, "method=dense", "data.train_rows=320", steps=10, fit=10.0, total=67.0, texts=TEXTS)
    told = Estimator(tmp_path)
    assert told.estimate(planned("method=random")) is None
    assert told.estimate(planned("method=random", "data.train_rows=640")) is not None


def test_three_runs_of_a_kind_say_how_much_they_differ(tmp_path: Path):
    for seed, fit in enumerate((10.0, 20.0, 60.0)):
        finished_run(tmp_path, f"seed={seed}", steps=10, fit=fit, total=fit + 50)
    found = Estimator(tmp_path).estimate(planned("seed=9"))
    assert found is not None
    assert (found.low, found.seconds, found.high) == (10.0, 20.0, 60.0)


@pytest.mark.parametrize("other", ["task=mrpc", "backbone=tiny"])
def test_texts_or_a_model_that_no_run_had_are_not_guessed(tmp_path: Path, other: str):
    finished_run(tmp_path, steps=10, fit=10.0, total=60.0, texts=TEXTS)
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


def test_a_run_that_trained_nothing_tells_what_the_rest_takes(tmp_path: Path):
    untrained = ["method=topk", "method.train=false", "trainer.epochs=0", "budget=2x", "data.train_rows=320"]
    finished_run(tmp_path, *untrained, steps=0, fit=0.0, total=80.0)
    estimate = Estimator(tmp_path)
    assert estimate.seconds(planned(*untrained, "seed=2")) == 30.0
