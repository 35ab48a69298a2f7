"""The table of stored timings says what was measured, what was not, and where a peer wins."""

import json
from dataclasses import replace

import pytest
from support.bench_result import RESULT, measurement

from prunekit.bench.table import markdown, replace_block
from prunekit.cli.bench import main
from prunekit.config.errors import ConfigError


def with_size(block=None, **changes):
    """The result with other numbers at its one batch size, and in the block around it."""
    (found,) = RESULT.blocks
    (size,) = found.sizes
    return replace(RESULT, blocks=(replace(found, sizes=(replace(size, **changes),), **(block or {})),))


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
    (row,) = RESULT.blocks[0].sizes[0].ratios
    slow = replace(row, vs_unpruned=replace(row.vs_unpruned, median=0.9))
    assert "0.90x, **slower**: 80 % realised" in markdown(with_size(ratios=(slow,)))


def test_a_machine_that_was_not_quiet_is_said_and_its_wall_times_are_not():
    loud = with_size(control=1.05, trusted=False)
    assert "*The control is 1.050, not within 2 % of 1: the machine was not quiet.*" in markdown(loud)
    assert "| packed | 12.3" in markdown(loud)
    loud = with_size({"threads": 2, "clock": "wall"}, control=1.05, trusted=False)
    assert "Wall times are not reported." in markdown(loud)
    assert "| packed | 12.3" not in markdown(loud)


def test_latency_has_its_column_at_batch_1():
    latency = {"p50": 1.0, "p95": 2.0, "p99": 3.456}
    single = with_size(batch_size=1, candidates=(measurement("packed", "unpruned", latency_ms=latency),))
    assert "| p50 / p95 / p99 ms |" in markdown(single)
    assert "| 1 / 2 / 3.46 |" in markdown(single)


def test_one_command_writes_the_table_between_its_markers(tmp_path, capsys):
    raw, page = tmp_path / "bench.json", tmp_path / "README.md"
    raw.write_text(json.dumps(RESULT.to_json()))
    page.write_text("# mine\n<!-- bench -->\nold\n<!-- end of bench -->\nrest\n")
    assert main([f"from={raw}", f"into={page}"]) == 0
    assert page.read_text() == f"# mine\n<!-- bench -->\n{markdown(RESULT)}<!-- end of bench -->\nrest\n"
    capsys.readouterr()
    assert main([f"from={raw}"]) == 0
    shown = capsys.readouterr().out
    assert " top on cola\n" in shown
    assert "|" not in shown  # Markdown is for files


def test_a_page_may_have_several_blocks_with_words_for_the_reader():
    page = "<!-- bench sst2: from a.json -->\nold\n<!-- end of bench sst2 -->\n<!-- bench -->\n<!-- end of bench -->\n"
    assert replace_block(page, "new\n", "bench sst2") == page.replace("old", "new")


def test_without_markers_nothing_is_written(tmp_path):
    raw, page = tmp_path / "bench.json", tmp_path / "README.md"
    raw.write_text(json.dumps(RESULT.to_json()))
    page.write_text("# mine\n")
    with pytest.raises(ConfigError, match=r"into=.*README.md cannot take the table \(it has 0 blocks named mine\)"):
        main([f"from={raw}", f"into={page}", "block=mine"])
    assert page.read_text() == "# mine\n"


@pytest.mark.parametrize("content", ["not json", "{}", "[1]", '{"schema": 2, "title": "x"}'])
def test_a_file_that_holds_no_timings(content, tmp_path):
    raw = tmp_path / "other.json"
    raw.write_text(content)
    with pytest.raises(ConfigError, match=r"from=.*other.json is no file of timings"):
        main([f"from={raw}"])
