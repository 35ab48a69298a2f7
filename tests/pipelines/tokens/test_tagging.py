"""Whole runs on texts whose words have labels: every method, unchanged."""

import json

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

import prunekit
from prunekit.cli.predict import main as predict
from prunekit.config.composition import compose
from prunekit.data.reading import read_task
from prunekit.data.sources import find_task
from prunekit.data.spec import TaskSpec
from prunekit.pipelines.run import run
from prunekit.report.page_data import study
from prunekit.report.rows import collect
from prunekit.results import examples

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
SMALL = [
    "task=csv",
    "task.kind=tokens",
    "task.text=tokens",
    "task.label=ner_tags",
    "task.max_length=16",
    "backbone=tiny",
    "trainer=debug",
    "trainer.lr=3e-3",
    "teacher.epochs=10",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "budget=1.3x",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ner.jsonl: 160 generated texts, some of them longer than 16 tokens."""
    place = tmp_path_factory.mktemp("tagging")
    spec = TaskSpec.from_config({"name": "n", "kind": "tokens", "synthetic_rows": 160})
    rows = read_task(spec, find_task(spec, {})).splits["train"]
    lines = [
        json.dumps({"tokens": text.split("\n"), "ner_tags": [NAMES[number] for number in labels]})
        for text, labels in zip(rows.texts, rows.labels, strict=True)
    ]
    (place / "ner.jsonl").write_text("\n".join(lines))
    return place


def config(folder, *overrides):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}", f"task.file={folder / 'ner.jsonl'}"]
    return compose([*SMALL, *places, *overrides])[0]


@pytest.fixture(scope="module")
def topk(folder):
    timed = ["bench.enabled=true", "bench.batch_sizes=[2]", "bench.examples=2", "bench.rounds=1"]
    result = run(config(folder, "method=topk", *timed))
    (left,) = (folder / "runs").glob("csv/topk/tiny/*/s1-*")
    (dense,) = (folder / "runs").glob("csv/dense/tiny/*/s1-*")
    return left, dense, result


def test_the_score_is_of_entities_and_words_that_are_cut_are_counted(topk):
    left, _, result = topk
    assert result.budget.met
    assert (result.score.metric, result.score.rows, result.score.of) == ("entity_f1", 32, "text")
    assert set(result.score.pruned_all) == {"entity_f1", "entity_precision", "entity_recall", "word_accuracy"}
    assert result.score.dense > 0.1  # it has learnt something
    cut = result.truncated["test"]
    assert 0 < cut.words < cut.of_words
    stored = examples.load(left)
    assert (len(stored.labels), stored.classes) == (32, ("wrong", "right"))
    shown = study(collect([left]), "words")["explorer"][0]
    assert shown["truths"][0] == stored.outputs(shown["rows"][0])[0]
    assert "pipeline_tag: token-classification" in (left / "model" / "README.md").read_text()


def test_the_dense_model_is_one_of_transformers_with_the_same_logits(topk):
    left, dense, _ = topk
    tokenizer = AutoTokenizer.from_pretrained(dense / "model")
    batch = tokenizer([["bade", "xy", "bafi"], ["go"]], is_split_into_words=True, padding=True, return_tensors="pt")
    plain = AutoModelForTokenClassification.from_pretrained(dense / "model").eval()
    assert list(plain.config.id2label.values()) == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert plain.config.label2id["O"] == 4
    real = batch["attention_mask"] > 0
    with torch.no_grad():
        ours = prunekit.load(dense)(**batch).logits
        torch.testing.assert_close(plain(**batch).logits[real], ours[real], atol=1e-5, rtol=0)
        pruned = prunekit.load(left)(**batch).logits
        packed = prunekit.load(left, engine="packed")(dict(batch)).logits
    torch.testing.assert_close(packed[real], pruned[real], atol=1e-4, rtol=0)


def test_labels_are_predicted_for_the_words_of_a_file(topk, folder, capsys):
    left, _, _ = topk
    predict([f"run={left}", f"data={folder / 'ner.jsonl'}", f"out={folder / 'out.jsonl'}"])
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(found) == 160
    labels = [(label, own) for row in found for label, own in zip(row["ner_tags"], row["predicted"], strict=True)]
    assert {own for _, own in labels} <= {*NAMES, None}
    assert sum(label == own for label, own in labels) / len(labels) > 0.5


@pytest.mark.parametrize("method", ["top", "tsdtp", "lat"])  # what a teacher said, soft decisions, several lengths
def test_methods_that_learn_otherwise_run_on_it_and_meet_the_budget(folder, method):
    own = {"top": ["method.bins=8"], "lat": ["method.iterations=0"]}
    result = run(config(folder, f"method={method}", *own.get(method, [])))
    assert result.budget.met
