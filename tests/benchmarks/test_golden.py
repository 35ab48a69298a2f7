"""How far imported checkpoints are from golden logits: the measurement, and the tables of the docs."""

import json

import pytest
import torch
from support.models import benchmark_script, sentences
from support.paths import ROOT
from support.published import LOCATIONS, TOKEN_Z, masked_forward, top_decision, write_top

script = benchmark_script("golden")


def test_the_tables_of_the_docs_are_those_of_the_stored_results(tmp_path):
    for name in ("top.md", "ltp.md"):
        (tmp_path / name).write_text((ROOT / "docs" / "methods" / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert script.main([f"into={tmp_path}"]) == 0
    for name in ("top.md", "ltp.md"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / "methods" / name).read_text()


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (0.01, 3)])
def test_logits_that_are_missed_end_with_exit_code_3(tmp_path, monkeypatch, error, code):
    model = write_top(tmp_path / "published")
    batch = sentences([9, 40], width=50)
    with torch.no_grad():
        logits, counts = masked_forward(model, batch, top_decision(TOKEN_Z, [1, 1], LOCATIONS))
    golden = {"logits_padded_to_50": logits + error, "tokens_per_layer_padded_to_50": counts}
    torch.save(batch | golden, tmp_path / "published" / "golden_logits.pt")
    monkeypatch.setattr(script, "STORED", tmp_path / "golden.json")
    (tmp_path / "top.md").write_text("<!-- golden -->\n<!-- end of golden -->\n")
    assert script.main([f"folders=[{tmp_path / 'published'}]", f"into={tmp_path}"]) == code
    reference, house = json.loads((tmp_path / "golden.json").read_text())
    assert reference["most"] == pytest.approx(error, abs=1e-5)
    assert (reference["texts"], reference["same_tokens"], house["same_tokens"]) == (2, 2, 0)
