"""The script that measures training steps: both sides run, and the ratio is that of their seconds."""

import json
import runpy
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "benchmarks" / "training_step.py"


def test_both_sides_are_measured(tmp_path, monkeypatch, capsys):
    small = [
        "task=synthetic",
        "task.synthetic_rows=48",
        "backbone=tiny",
        "trainer=debug",
        "plots=false",
        "teacher.epochs=1",
    ]
    places = [f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}", "logger.wandb.enabled=false"]
    given = ["rows=16", "rounds=2", "pad=32", f"out={tmp_path / 'out.json'}"]
    arguments = [*given, *small, *places, "method.bins=8", "budget=1.5x"]
    monkeypatch.setattr(sys, "argv", ["training_step.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["rows"], found["padded_to"]) == (16, 32)
    assert set(found["seconds"]) == {"reference", "soft", "hard"}
    for name, ratio in found["faster_than_reference"].items():
        assert ratio == pytest.approx(
            sum(a / b for a, b in zip(found["seconds"]["reference"], found["seconds"][name], strict=True)) / 2
        )
    assert "reference-style" in capsys.readouterr().out
