"""How far exports are from their models: the table by hand, that of the docs, and one measurement of a tiny run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.exported import PRUNERS, stored_run
from support.models import benchmark_script
from support.paths import ROOT

from prunekit.bench.result import ExportedFile, Hardware, ParityResult, ParityScore
from prunekit.config.errors import ConfigError

script = benchmark_script("export_parity")

FOUND = ParityResult(
    run="1a2b3c4d",
    method="ltp",
    task="sst2",
    split="validation",
    metric="accuracy",
    budget=2.01,
    variants={
        "onnx int8": ExportedFile(
            rows=872,
            labels_agree=0.98,
            labels_differ=17,
            max_difference=0.021,
            mean_difference=0.002,
            max_difference_same_tokens=0.01,
            kept_equal=0.2,
            kept_differ=700,
            tokens_equal=0.9513,
            score=ParityScore(model={"accuracy": 0.8125}, export={"accuracy": 0.805}),
            exact=False,
            file="model_int8.onnx",
            bytes=59262668,
        )
    },
    date="2026-01-02",
    hardware=Hardware(cpu="a CPU", cpus=2, platform="Linux"),
    versions={"torch": "2.13.0", "openvino": None},
)


def test_a_row_per_file():
    lines = script.table([FOUND, replace(FOUND, budget=None, task="mrpc")]).splitlines()
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
    (found,) = script.load_stored(tmp_path)
    assert {name: file.rows for name, file in found.variants.items()} == {"onnx fp32": 5, "onnx int8": 5}
    assert found.variants["onnx fp32"].labels_agree == 1.0
    assert "| onnx fp32 | 5 | 100.00 % | 100.00 % |" in script.table([found])
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
