"""A whole run on texts with any number of labels, from a file to what plain transformers reads."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prunekit.cli.predict import main as predict
from prunekit.config.composition import compose
from prunekit.data.reading import read_task
from prunekit.data.sources import TaskSource
from prunekit.data.spec import TaskSpec
from prunekit.pipelines.run import run
from prunekit.report.page_data import study
from prunekit.report.rows import collect
from prunekit.results import examples
from prunekit.runs.finished import open_run

NAMES = ["money", "politics", "sport"]


@pytest.mark.slow
def test_texts_with_several_labels_are_learned_pruned_saved_and_predicted(tmp_path):
    rows = read_task(
        TaskSpec.from_config({"name": "t", "kind": "multilabel", "labels": NAMES, "synthetic_rows": 96}),
        TaskSource("synthetic", ""),
    ).splits["train"]
    texts = zip(rows.texts, ([NAMES[number] for number in labels] for labels in rows.labels), strict=True)
    lines = [json.dumps({"text": text, "tags": tags}) for text, tags in texts]
    (tmp_path / "news.jsonl").write_text("\n".join(lines))
    cfg, _ = compose(
        [
            *(f"task.file={tmp_path / 'news.jsonl'}", "task=csv", "task.kind=multilabel", "task.label=tags"),
            *("task.max_length=32", "task.tune_thresholds=true", "method=topk", "budget=1.5x", "backbone=tiny"),
            *("trainer=debug", "trainer.epochs=1", "teacher.epochs=1", "bench.enabled=false", "logger=[]"),
            *(f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}"),
        ]
    )
    result = run(cfg)
    assert result.budget.met
    assert result.score.metric == "micro_f1"
    assert set(result.score.pruned_all) == set(result.score.dense_all) == {"micro_f1", "macro_f1"}
    assert list(result.score.thresholds) == NAMES

    (left,) = (tmp_path / "runs").glob("csv/topk/tiny/1.5x/s1-*")
    model = AutoModelForSequenceClassification.from_pretrained(left / "model")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label_thresholds == list(result.score.thresholds.values())
    loss = model(
        **AutoTokenizer.from_pretrained(left / "model")("a text", return_tensors="pt"),
        labels=torch.tensor([[1.0, 0.0, 1.0]]),
    ).loss
    assert torch.isfinite(loss)
    assert open_run(left).spec.thresholds == tuple(model.config.label_thresholds)

    predict([f"run={left}", f"data={tmp_path / 'news.jsonl'}", f"out={tmp_path / 'out.jsonl'}"])
    for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        shares = line["probabilities"]
        assert line["predicted"] == [name for name in NAMES if shares[name] >= result.score.thresholds[name] - 1e-6]

    stored = examples.load(left)
    assert stored.classes[int(stored.labels[0])] in ("one label", "several labels", "no label")
    page = study(collect([tmp_path / "runs"]), "news")
    assert [config["metric"] for config in page["configs"]] == ["micro_f1", "micro_f1"]
