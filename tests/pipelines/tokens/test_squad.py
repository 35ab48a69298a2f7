"""Whole runs on questions whose answers are in a text: every method, unchanged."""

import json
import re

import pytest
import torch
from support.paths import ROOT
from transformers import AutoTokenizer

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.evaluation.question_answering import CLASSES
from prunekit.files import read_jsonl
from prunekit.pipelines.run import run
from prunekit.report.page_data import study
from prunekit.report.rows import collect
from prunekit.results import examples

SMALL = [
    "task=squad2",
    "task.synthetic_rows=48",
    "backbone=tiny",
    "trainer=debug",
    "plots=false",
    "trainer.epochs=1",
    "teacher.epochs=1",
    "logger.wandb.enabled=false",
    "bench.enabled=false",
    "budget=1.3x",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("squad")


def config(folder, *overrides):
    places = [f"runs_dir={folder / 'runs'}", f"data.cache_dir={folder / 'cache'}"]
    return compose([*SMALL, *places, *overrides])[0]


@pytest.fixture(scope="module")
def topk(folder):
    timed = ["bench.enabled=true", "bench.batch_sizes=[2]", "bench.examples=2", "bench.rounds=1"]
    windows = ["task.max_length=24", "task.stride=8", "task.null_threshold=null", "task.protect_question=true"]
    result = run(config(folder, "method=topk", *timed, *windows))
    (left,) = (folder / "runs").glob("squad2/topk/tiny/*/s1-*")
    return left, result


def test_scores_are_of_questions_and_cost_is_of_windows(topk):
    left, result = topk
    assert result.budget.met
    assert (result.score.metric, result.score.rows, result.score.of) == ("f1", 24, "question")
    assert set(result.score.pruned_all) >= {"f1", "exact_match", "has_answer_f1", "no_answer_f1"}
    assert result.flops.per == "window"
    assert result.tokens_per_layer[-1] >= 4  # [CLS], a question of two words, [SEP]: they are protected
    assert result.score.null_threshold != 0.0  # left open, it was found on validation
    assert result.mean_length <= 24  # longer contexts are read in several windows
    assert len(json.loads((left / "plots" / "quality_by_length.json").read_text())["buckets"]) > 0
    assert {"val/f1", "val/no_answer_exact_match"} <= {
        name for row in read_jsonl(left / "metrics.jsonl") for name in row
    }
    assert [row.batch_size for row in result.speed] == [2]


def test_predictions_are_left_as_squad_s_own_script_reads_them(topk):
    left, result = topk
    answers = json.loads((left / "predictions.json").read_text())
    assert sorted(answers, key=int) == [str(n) for n in range(1, 25)]
    silent = sum(not text for text in answers.values())
    # synthetic questions 1, 4, 7, .. have no answer: a third of them
    right = sum(not answers[str(n)] for n in range(1, 25, 3))
    assert result.score.pruned_all["no_answer_f1"] == pytest.approx(right / 8)
    assert silent >= right


def test_windows_store_their_tokens_and_both_answers_for_the_report(topk):
    left, result = topk
    found = examples.load(left)
    assert (found.classes, len(found.answers)) == (CLASSES, len(found.labels))
    assert len(found.labels) > 24  # windows, of which a question has several
    answers = json.loads((left / "predictions.json").read_text())
    assert {text[: examples.ANSWER] for text in answers.values()} == set(found.answers[:, 2].tolist())
    assert found.counts[:, -1].mean() == pytest.approx(result.tokens_per_layer[-1])
    page = study(collect([left]), "answers")
    (shown,) = page["explorer"]
    assert shown["runs"][0]["said"][0] == found.outputs(shown["rows"][0])[1:]
    assert shown["truths"][0] == found.outputs(shown["rows"][0])[0]
    assert page["labels"][0]["names"] == ["an answer", "no answer"]


def test_the_folder_loads_as_a_reader_and_its_card_says_so(topk):
    left, _ = topk
    model, tokenizer = prunekit.load(left / "model"), AutoTokenizer.from_pretrained(left / "model")
    with torch.no_grad():
        output = model(**tokenizer(["bade"], ["bafi bago balux"], return_tensors="pt"))
    assert output.start_logits.shape == output.end_logits.shape == (1, 7)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "squad.md").read_text(), re.DOTALL)
    namespace = {}
    exec(re.sub(r'"runs/[^"]*"', repr(str(left / "model")), block), namespace)
    assert isinstance(namespace["answer"], str)
    card = (left / "model" / "README.md").read_text()
    for said in (
        "pipeline_tag: question-answering",
        "AutoModelForQuestionAnswering",
        "start_logits",
        "24 validation questions",
    ):
        assert said in card


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "first", "threshold", "ltp", "top"])
def test_every_method_runs_on_it_and_meets_the_budget(folder, method):
    own = {"ltp": ["trainer.epochs=2"], "top": ["method.bins=8", "trainer.epochs=2"]}.get(method, [])
    result = run(config(folder, f"method={method}", *own))
    assert result.budget.met
    assert abs(1.3 / result.budget.reached - 1) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("method", ["topk", "top", "ltp"])
def test_with_the_question_protected_the_budget_is_met_too(folder, method):
    own = {"ltp": ["trainer.epochs=2"], "top": ["method.bins=8", "trainer.epochs=2"]}.get(method, [])
    result = run(config(folder, f"method={method}", "task.protect_question=true", *own))
    assert result.budget.met
    assert result.tokens_per_layer[-1] >= 4  # [CLS], a question of two words, [SEP]


@pytest.mark.slow
def test_a_budget_beyond_a_protected_question_is_refused_with_the_range(folder):
    with pytest.raises(ConfigError, match=r"budget=10x cannot be met by method=topk .*1\.00x to [12]\.\d\dx"):
        run(config(folder, "method=topk", "budget=10x", "task.protect_question=true"))


@pytest.mark.slow
def test_a_threshold_left_open_is_found_on_validation_and_reported(folder):
    fixed = run(config(folder, "method=first"))
    found = run(config(folder, "method=first", "task.null_threshold=null"))
    assert fixed.score.null_threshold == 0.0
    assert found.score.null_threshold != 0.0
    assert found.score.pruned >= fixed.score.pruned


@pytest.mark.slow
def test_squad1_knows_no_threshold(folder):
    result = run(config(folder, "task=squad1", "method=dense", "budget=null"))
    assert set(result.score.pruned_all) == {"f1", "exact_match"}
    assert "null_threshold" not in result.score.to_json()
    (left,) = (folder / "runs").glob("squad1/dense/tiny/*/s1-*")
    assert all(json.loads((left / "predictions.json").read_text()).values())
