"""The script that measures a GPU: it says so where there is none, and its numbers are those of its parts."""

import runpy
import subprocess
import sys
import time

import pytest
import torch
from support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_attention.py"


@pytest.fixture
def script(monkeypatch):
    """Its functions, on a model of next to nothing, on the CPU."""
    found = runpy.run_path(str(SCRIPT))
    sizes = {"HEADS": 2, "HIDDEN": 32, "LAYERS": 3, "FFN": 64, "DEVICE": "cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for function in ("attention", "engine", "score", "model", "ratios_for"):
        for name, value in sizes.items():
            monkeypatch.setitem(found[function].__globals__, name, value)
    return found


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    command = [sys.executable, str(SCRIPT), f"out={tmp_path / 'out.json'}"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(SCRIPT.parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=300)
    assert run.returncode == 4
    assert run.stderr.startswith("no CUDA device: torch")
    assert len(run.stderr.splitlines()) == 3
    assert not (tmp_path / "out.json").exists()


def test_ratios_are_of_the_same_round_and_the_first_rounds_warm_up(script):
    clock = iter([99.0, 99, 99, 99, 1, 8, 6, 3]).__next__
    spent = script["interleaved"]({"one": None, "other": None}, 2, lambda work: clock())
    assert spent == {"one": [1, 3], "other": [8, 6]}
    assert script["ratio"](spent, "other", "one") == (8 + 2) / 2


def test_shares_give_the_reduction_that_is_asked(script):
    from prunekit.cost import Shape, dense_macs, encoder_macs
    from prunekit.tokens.policies import KeepRatio

    shape, lengths = Shape(3, 32, 64, 2), torch.tensor([128])
    counts = KeepRatio(script["ratios_for"](2.0, 128)).counts(lengths, 3)
    assert 1.95 <= float(dense_macs(shape, lengths) / encoder_macs(shape, *counts)) <= 2


def test_every_part_is_measured(script):
    def clock(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    with torch.inference_mode():
        alone = script["attention"](64, 16, "fp32", 2, clock)
        whole = script["engine"](64, 16, "fp32", 2.0, 2, clock)
        layer = script["score"](64, 16, "fp32", 2, clock)
    assert set(alone["milliseconds"]) == {"ours scored", "ours unscored", "torch scored"}
    assert alone["scored_against_flash"] is None  # FlashAttention has no float32
    assert whole["efficiency"] == whole["faster"] / whole["flops_reduction"]
    assert whole["flops_reduction"] > 1.5
    assert set(layer["milliseconds"]) == {"scored", "unscored"}
