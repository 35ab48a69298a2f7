"""The table of stored timings says what was measured, what was not, and where a peer wins."""

import copy
import json

import pytest
from support.bench_result import RESULT, row

from prunekit.bench.table import markdown, replaced
from prunekit.cli.bench import main
from prunekit.config.errors import ConfigError


def test_the_four_ratios_stand_beside_the_flops():
    assert (
        "| packed, pruned | 2.50x | 2.00x faster: 80 % realised | 0.80x: **ort, sorted is faster** | none here "
        "| 9.00x (hf eager) |"
    ) in markdown(RESULT)
    assert "packed, pruned against each: ort 1.70x, ort, sorted 0.80x." in markdown(RESULT)


def test_every_engine_has_its_quality_beside_its_speed():
    table = markdown(RESULT)
    assert "| packed | 12.3 | 250 | 6400 | 91 % | 1.04x | 95.00 | 99.5 % | 123 |" in table
    assert "| control |" not in table
    assert "Batch 32 (2.20 tokens computed per real one by padding random batches, 1.05 sorted by length)" in table


def test_who_was_not_measured_is_named_with_the_reason():
    assert "Not measured: openvino fp32 (not installed: pip install openvino)." in markdown(RESULT)
    assert "2 cores of a processor, 2026-11-21; torch 2.13.0." in markdown(RESULT)


def test_pruning_that_does_not_pay_is_called_slower():
    slow = copy.deepcopy(RESULT)
    slow["blocks"][0]["sizes"][0]["ratios"][0]["vs_unpruned"]["median"] = 0.9
    assert "0.90x, **slower**: 80 % realised" in markdown(slow)


def test_a_machine_that_was_not_quiet_is_said_and_its_wall_times_are_not():
    loud = copy.deepcopy(RESULT)
    loud["blocks"][0]["sizes"][0] |= {"control": 1.05, "trusted": False}
    assert "*The control is 1.050, not within 2 % of 1: the machine was not quiet.*" in markdown(loud)
    assert "| packed | 12.3" in markdown(loud)
    loud["blocks"][0] |= {"threads": 2, "clock": "wall"}
    assert "Wall times are not reported." in markdown(loud)
    assert "| packed | 12.3" not in markdown(loud)


def test_latency_has_its_column_at_batch_1():
    single = copy.deepcopy(RESULT)
    latency = {"latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.456}}
    single["blocks"][0]["sizes"][0] |= {"batch_size": 1, "candidates": [row("packed", "unpruned", **latency)]}
    assert "| p50 / p95 / p99 ms |" in markdown(single)
    assert "| 1 / 2 / 3.46 |" in markdown(single)


def test_one_command_writes_the_table_between_its_markers(tmp_path, capsys):
    raw, page = tmp_path / "bench.json", tmp_path / "README.md"
    raw.write_text(json.dumps(RESULT))
    page.write_text("# mine\n<!-- bench -->\nold\n<!-- end of bench -->\nrest\n")
    assert main([f"from={raw}", f"into={page}"]) == 0
    assert page.read_text() == f"# mine\n<!-- bench -->\n{markdown(RESULT)}<!-- end of bench -->\nrest\n"
    assert main([f"from={raw}"]) == 0
    assert markdown(RESULT) in capsys.readouterr().out


def test_a_page_may_have_several_blocks_with_words_for_the_reader():
    page = "<!-- bench sst2: from a.json -->\nold\n<!-- end of bench sst2 -->\n<!-- bench -->\n<!-- end of bench -->\n"
    assert replaced(page, "new\n", "bench sst2") == page.replace("old", "new")


def test_without_markers_nothing_is_written(tmp_path):
    raw, page = tmp_path / "bench.json", tmp_path / "README.md"
    raw.write_text(json.dumps(RESULT))
    page.write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"into=.*README.md cannot take the table \(it has 0 blocks named mine\)"):
        main([f"from={raw}", f"into={page}", "block=mine"])
    assert page.read_text() == "# mine\n"


@pytest.mark.parametrize("content", ["not json", "{}", "[1]"])
def test_a_file_that_holds_no_timings(content, tmp_path):
    raw = tmp_path / "other.json"
    raw.write_text(content)
    with pytest.raises(ConfigError, match=r"from=.*other.json is no file of timings"):
        main([f"from={raw}"])
