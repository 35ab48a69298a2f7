"""The script that compares translations: it runs for each method, meets its budgets, and writes a row for each."""

import json
import runpy
import sys

import pytest
import torch
from support.paths import ROOT
from support.translators import SOURCE, TARGETS, translator
from transformers import AutoTokenizer

from prunekit.cost import Shape
from prunekit.data.kinds.translation import TRANSLATION
from prunekit.losses import task_loss
from prunekit.methods.context import Training
from prunekit.models.tiny import build_tiny_backbone

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "benchmarks" / "translation.py"


@pytest.mark.filterwarnings("ignore")
def test_one_row_per_method_and_budget(tmp_path, monkeypatch, capsys):
    build_tiny_backbone(tmp_path / "words")
    model = translator("t5")
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path / "words")))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tmp_path / "words").save_pretrained(tmp_path / "model")
    sentence = "ba de fi go lu ma ne pi ro su bade debafi"
    pairs = "".join(f"{sentence[: 15 + row]},{sentence[row:]}\n" for row in range(12))
    (tmp_path / "pairs.csv").write_text("en,de\n" + pairs)
    out = tmp_path / "out.json"
    methods = ["dtp", "topk", "threshold", "first", "random"]
    given = [f"model={tmp_path / 'model'}", f"pairs={tmp_path / 'pairs.csv'}", "source=en", "target=de", "prefix=ba"]
    given += ["rows=8", "beams=2", "budgets=1.3", f"methods={','.join(methods)}", f"out={out}"]
    monkeypatch.setattr(sys, "argv", ["translation.py", *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    found = json.loads(out.read_text())["results"]
    assert [row["method"] for row in found] == ["dense", *methods]
    assert (found[0]["flops_vs_unpadded"], found[0]["source_kept"]) == (pytest.approx(1), pytest.approx(1))
    for row in found[1:]:
        assert row["flops_vs_unpadded"] == pytest.approx(1.3, rel=0.15)  # set on four other sentences
        assert row["source_kept"] < 1
    assert capsys.readouterr().out.count("BLEU") == len(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["topk", "threshold", "ltp", "dtp", "tsdtp"])
def test_a_method_trains_by_its_own_terms_with_a_decoder(method):
    """In 30 steps on one batch the loss of its words falls; at the end the budget is met with tokens removed."""
    script = runpy.run_path(str(SCRIPT))
    model = translator("marian")
    batch = SOURCE | {"labels": TARGETS}
    context = {
        "shape": Shape.from_config(model.config),
        "training": Training(1, 30, 1e-3, freeze_embeddings=False),
        "lengths": {"validation": SOURCE["attention_mask"].sum(-1)},
        "validation": lambda: [SOURCE],
    }
    found = script["method_on"](model, method, 1.3, context, 0)
    found.eval()
    with torch.no_grad():
        before = float(task_loss(found(batch, "mask"), TARGETS, TRANSLATION))
    script["fit"](found, 30, [batch])
    with torch.no_grad():
        after = float(task_loss(found(batch, "drop"), TARGETS, TRANSLATION))
    assert after < 0.9 * before
    reached = script["cost"](model, context["shape"], [SOURCE])[0]["flops_vs_unpadded"]
    assert reached == pytest.approx(1.3, rel=0.12)  # 46 tokens: steps of several percent
