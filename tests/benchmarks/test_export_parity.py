"""How far exports are from their models: the table by hand, that of the docs, and one measurement of a tiny run."""

from __future__ import annotations

import pytest
from support.exported import PRUNERS, stored_run
from support.models import benchmark_script
from support.paths import ROOT

from prunekit.config.errors import ConfigError

script = benchmark_script("export_parity")

FOUND = {
    "run": "1a2b3c4d",
    "method": "ltp",
    "task": "sst2",
    "split": "validation",
    "metric": "accuracy",
    "budget": 2.01,
    "variants": {
        "onnx int8": {
            "rows": 872,
            "labels_agree": 0.98,
            "tokens_equal": 0.9513,
            "max_difference": 0.021,
            "score": {"export": {"accuracy": 0.805}, "model": {"accuracy": 0.8125}},
        }
    },
    "versions": {"torch": "2.13.0", "openvino": None},
    "date": "2026-01-02",
}


def test_a_row_per_file():
    lines = script.table([FOUND, FOUND | {"budget": None, "task": "mrpc"}]).splitlines()
    assert lines[2] == (
        "| `ltp` 2.01x on sst2, accuracy | onnx int8 | 872 | 98.00 % | 95.13 % | 2.1e-02 | 80.50 | 81.25 |"
    )
    assert lines[3].startswith("| `ltp` on mrpc, accuracy | onnx int8 |")
    assert lines[4:] == ["", "torch 2.13.0; 2026-01-02."]


def test_the_table_of_the_docs_is_that_of_the_stored_results(tmp_path):
    page = (ROOT / "docs" / "runtime_export.md").read_text(encoding="utf-8")
    (tmp_path / "export.md").write_text(page)
    assert script.main([f"into={tmp_path / 'export.md'}"]) == 0
    assert (tmp_path / "export.md").read_text() == page


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        script.main([f"runs=[{tmp_path / 'nowhere'}]"])


@pytest.mark.slow
def test_a_run_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    run = stored_run(tmp_path, "topk", PRUNERS["topk"]())
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- parity -->\n<!-- end of parity -->\n")
    assert script.main([f"runs=[{run}]", "formats=[onnx]", "rows=5", f"into={page}"]) == 0
    (found,) = script.stored(tmp_path)
    assert {name: row["rows"] for name, row in found["variants"].items()} == {"onnx fp32": 5, "onnx int8": 5}
    assert found["variants"]["onnx fp32"]["labels_agree"] == 1.0
    assert "| onnx fp32 | 5 | 100.00 % | 100.00 % |" in script.table([found])
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
