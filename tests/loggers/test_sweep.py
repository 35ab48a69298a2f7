"""Two jobs of one sweep with every logger that is installed, each read back by its own library."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from support.processes import Training

from prunekit.files import read_jsonl
from prunekit.loggers.offline import read_runs
from prunekit.results import examples, heatmap

TINY = ["task=synthetic", "task.synthetic_rows=48", "backbone=tiny", "trainer=debug", "plots=false", "trainer.epochs=1"]
TINY += ["teacher.epochs=1", "bench.enabled=false", "budget_tolerance=0.5", "budget=1.5x"]
LOGGERS = ["wandb.mode=offline", "tensorboard.enabled=true", "trackio.enabled=true", "logger.texts=3"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        code = Training(["-m", "method=topk", "seed=1,2", *TINY, *LOGGERS, *places], ROOT, folder / "log.txt").wait(900)
    assert code == 0, (folder / "log.txt").read_text()
    return folder


def jobs(swept: Path) -> list[Path]:
    found = sorted((swept / "runs" / "synthetic" / "topk").rglob("result.json"))
    assert len(found) == 2
    return [file.parent for file in found]


def rows_of(job: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its clock."""
    return [{key: value for key, value in row.items() if key != "time"} for row in read_jsonl(job / "metrics.jsonl")]


@pytest.mark.slow
def test_each_job_has_a_wandb_run_of_its_own_that_says_what_its_record_says(swept: Path):
    one, two = jobs(swept)
    left = [read_runs(job)[0] for job in (one, two)]
    for job, offline in zip((one, two), left, strict=True):
        assert offline.run["run_id"] == job.name.rpartition("-")[2]
        config = yaml.safe_load((job / "config.yaml").read_text())
        assert offline.run["config"]["update"]["seed"] == config["seed"]
        numbers = [row for row in offline.history if "tokens/heatmap.path" not in row]
        told = [{key: value for key, value in row.items() if not key.startswith("_")} for row in numbers]
        assert told == [{"trainer/global_step": row.pop("step"), **row} for row in rows_of(job)]
        result = json.loads((job / "result.json").read_text())
        assert offline.summary["final/score"] == result["score"]["pruned"]
        assert offline.summary["final/budget_reached"] == result["budget"]["reached"]
        stored = examples.load(job)
        assert stored is not None
        columns, rows = heatmap.token_table(stored, heatmap.choose_texts(stored, 3))
        assert offline.table("tokens/table") == {"columns": columns, "data": rows}
        assert offline.file("tokens/heatmap").read_bytes().startswith(b"\x89PNG")
    assert left[0].run["run_group"] == left[1].run["run_group"]
    assert left[0].run["display_name"] == "topk-synthetic-tiny-1.5x-s1"
    dense = list((swept / "runs" / "synthetic" / "dense").rglob("offline-run-*"))
    assert len(dense) == 2  # teachers are runs as well


@pytest.mark.slow
def test_its_csv_and_its_events_say_the_same(swept: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for job in jobs(swept):
        record = rows_of(job)
        with (job / "metrics.csv").open() as stream:
            table = [{k: float(v) for k, v in row.items() if v and k != "time"} for row in csv.DictReader(stream)]
        assert table == record
        events = EventAccumulator(str(job / "tensorboard"))
        events.Reload()
        told = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
        numbers = {(key, row["step"]): value for row in record for key, value in row.items() if key != "step"}
        assert told == pytest.approx(numbers)
        assert events.Tags()["images"] == ["tokens/heatmap"]


@pytest.mark.slow
def test_trackio_says_the_same(swept: Path):
    pytest.importorskip("trackio", reason="its pins are not this project's: ./tests/extras.sh trackio runs this")
    command = [str(Path(sys.executable).with_name("trackio")), "query", "project", "--project", "prunekit", "--json"]
    for job in jobs(swept):
        digest = job.name.rpartition("-")[2]
        sql = f"SELECT step, metrics FROM metrics WHERE run_name LIKE '%{digest}' ORDER BY id"
        answer = subprocess.run(
            [*command, "--sql", sql],
            env={**os.environ, "TRACKIO_DIR": str(swept / "trackio")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        rows = json.loads(answer.stdout)["rows"]
        told = [{"step": row["step"], **json.loads(row["metrics"])} for row in rows]
        record = rows_of(job)
        assert told[: len(record)] == record
        final, shown = told[len(record) :]
        assert final["final/score"] == json.loads((job / "result.json").read_text())["score"]["pruned"]
        assert {"tokens/heatmap", "tokens/table"} <= set(shown)
