"""The runtime's goals: which ratios they read, what the table says of them, and one measurement of a tiny run."""

from __future__ import annotations

import shutil

import pytest
from support.bench_result import bench_result, comparison, measurement, size_result, spread
from support.exported import PRUNERS, stored_run
from support.models import benchmark_script
from support.paths import ROOT

from prunekit.bench.result import Hardware, PruningRatio
from prunekit.config.errors import ConfigError

goals = benchmark_script("goals")


def result(task, budget, *sizes, attention="auto", warm=True):
    return bench_result(
        *sizes,
        task=task,
        budget=budget,
        settings={"attention": attention, "warm": warm},
        date="2026-01-02",
        hardware=Hardware(cpu="a CPU", cpus=2, platform="Linux", instructions="AVX2"),
    )


def size(batch, *rows, trusted=True, first=1.0):
    candidate = measurement("prunekit packed fp32, pruned", "pruned", first_over_steady=first)
    return size_result(batch, trusted=trusted, ratios=rows, candidates=(candidate,))


def pruned(efficiency, engine="packed", dtype="fp32", **peers):
    realised = PruningRatio(**vars(spread(4 * efficiency)), against="itself", flops_ratio=4.0, efficiency=efficiency)
    each = {name.replace("_", " "): spread(value) for name, value in peers.items()}
    return comparison(f"prunekit {engine} {dtype}, pruned", dtype=dtype, vs_unpruned=realised, vs_each=each)


def line(table, beginning):
    (found,) = [row for row in table.splitlines() if row.startswith(f"| {beginning}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_goal_is_reached_missed_or_reached_by_some():
    found = [result("mrpc", "4x", size(32, pruned(0.96))), result("mrpc", "8x", size(32, pruned(0.94)))]
    first = "batch 32, fp32"
    assert line(goals.table(found), first)[1:] == ["0.95", "mrpc 4x 0.96, mrpc 8x 0.94", "1 of 2"]
    assert line(goals.table(found[:1]), first)[-1] == "reached"
    assert line(goals.table(found[1:]), first)[-1] == "**missed**"
    assert line(goals.table([]), first)[1:] == ["0.95", "-", "not measured"]
    assert goals.table(found).endswith("\n2 cores of a CPU (AVX2), 2026-01-02.\n")


def test_a_goal_that_is_barely_missed_does_not_look_reached():
    found = [result("mrpc", "12x", size(32, pruned(0.8991)))]
    assert line(goals.table(found), "the same at 12x")[1:] == ["0.9", "mrpc 12x 0.899", "**missed**"]


def test_what_was_not_quiet_is_marked():
    found = [result("sst2", "2x", size(32, pruned(0.99), trusted=False))]
    assert line(goals.table(found), "batch 32, fp32")[2] == "sst2 2x 0.99 (not quiet)"


def test_at_batch_1_the_best_of_our_engines_counts():
    """Both are ours; a peer is compared with the same row."""
    rows = pruned(0.5, onnxruntime_fp32=2.5), pruned(0.6, engine="onnx", onnxruntime_fp32=3.0)
    table = goals.table([result("mrpc", "4x", size(1, *rows)), result("mrpc", "2x", size(1, pruned(0.9)))])
    assert line(table, "4x, batch 1: ONNX Runtime")[2:] == ["mrpc 4x 3.00", "reached"]
    assert line(table, "4x, batch 1: itself unpruned, MRPC")[2:] == ["mrpc 4x 2.40", "**missed**"]


def test_without_the_native_operator_is_a_measurement_of_its_own():
    found = [
        result("mrpc", "4x", size(32, pruned(0.97))),
        result("mrpc", "4x", size(32, pruned(0.86)), attention="torch"),
    ]
    table = goals.table(found)
    assert line(table, "batch 32, fp32")[2] == "mrpc 4x 0.97"
    assert line(table, "the same in fp32 without")[2:] == ["mrpc 4x 0.86", "reached"]


def test_new_shapes_are_read_from_the_first_pass_at_4x():
    found = [
        result("sst2", "4x", size(32, first=1.0), size(1, first=2.0)),
        result("sst2", "4x", size(32, first=1.25), warm=False),
        result("sst2", "8x", size(32, first=2.0)),
    ]
    assert line(goals.table(found), "4x, batch 32, fp32: a later")[1:] == ["0.97", "sst2 4x 1.00", "reached"]
    assert line(goals.table(found), "the same without `warm()`")[1:] == ["0.97", "sst2 4x 0.80", "**missed**"]


def test_training_is_read_from_its_own_benchmark(tmp_path):
    (tmp_path / "training_step_sst2.json").write_text(
        '{"task": "sst2", "budget": "2x", "faster_than_reference": {"soft": 8.0, "hard": 12.5}}'
    )
    assert line(goals.table([], goals.load_training_goal(tmp_path)), "a training step")[2:] == [
        "sst2 2x 12.50",
        "reached",
    ]


def test_the_table_of_the_docs_is_that_of_the_stored_results(tmp_path):
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    (tmp_path / "bench.md").write_text(page)
    assert goals.main([f"into={tmp_path / 'bench.md'}"]) == 0
    assert (tmp_path / "bench.md").read_text() == page


def test_runs_that_are_not_the_checkpoints_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no finished run of top-k on sst2, mrpc, bbc_news"):
        goals.find_checkpoints(tmp_path)
    for name in ("s1-aaaaaaaa", "s2-bbbbbbbb"):
        folder = tmp_path / "mrpc" / "topk" / "minilm" / "4x" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="has two runs of top-k on mrpc at 4x"):
        goals.find_checkpoints(tmp_path)


@pytest.mark.slow
def test_what_is_stored_is_not_measured_again(tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "mrpc" / "topk" / "tiny" / "4x" / "s1-1a2b3c4d"
    run.parent.mkdir(parents=True)
    shutil.move(stored_run(tmp_path, "topk", PRUNERS["topk"]()), run)
    monkeypatch.setattr(goals, "RESULTS", tmp_path)
    given = {"runs": str(tmp_path / "runs"), "peers": "none", "rounds": 3, "seconds": 1}
    goals.measure(given)
    written = sorted(path.name for path in tmp_path.glob("goals_*.json"))
    assert written == ["goals_mrpc_4x.json", "goals_mrpc_4x_cold.json", "goals_mrpc_4x_torch.json"]
    assert [row.settings["attention"] for row in goals.load_stored(tmp_path)] == ["auto", "auto", "torch"]
    assert [row.settings["warm"] for row in goals.load_stored(tmp_path)] == [True, False, True]
    monkeypatch.setattr(goals.bench, "main", lambda arguments: pytest.fail("measured again"))
    goals.measure(given)
