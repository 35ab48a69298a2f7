"""A task is a description; what contradicts itself is refused with the values."""

import re

import pytest
import yaml
from support.paths import ROOT

from prunekit.config.errors import ConfigError
from prunekit.data.spec import TaskSpec
from prunekit.data.text.spec import TextSpec

CONF = ROOT / "conf"


def spec(**keys):
    return TaskSpec.from_config({"name": "t", **keys})


@pytest.mark.parametrize("file", sorted((CONF / "task").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_task_file_is_a_task_of_its_name(file):
    config = yaml.safe_load(file.read_text())
    kind = TextSpec if config["kind"] == "text" else TaskSpec
    assert kind.from_config(config).name == file.stem


def test_datasets_of_the_hub_are_pinned_to_a_commit():
    """`main` moves: the same command would train on other rows, under the same name."""
    blocks = {}
    for file in (CONF / "task").glob("*.yaml"):
        config = yaml.safe_load(file.read_text())
        named = {file.stem: config} | {f"{file.stem}.{key}": value for key, value in config.items()}
        blocks |= {name: block for name, block in named.items() if isinstance(block, dict) and block.get("hub")}
    assert {"cola", "wmt16_en_de", "domain_medical.choice"} <= blocks.keys()
    assert [name for name, block in blocks.items() if not re.fullmatch("[0-9a-f]{40}", block["revision"])] == []


@pytest.mark.parametrize(
    ("task", "padded", "score"),
    [
        ("cola", 64, "matthews"),
        ("sst2", 64, "accuracy"),
        ("mrpc", 128, "f1"),
        ("stsb", 64, "pearson"),
        ("qqp", 128, "accuracy"),
        ("mnli", 128, "accuracy"),
        ("qnli", 128, "accuracy"),
        ("rte", 256, "accuracy"),
    ],
)
def test_glue_is_cut_at_256_tokens_and_compared_at_the_lengths_of_the_paper(task, padded, score):
    found = TaskSpec.from_config(yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text()))
    assert (found.max_length, found.padded_length, found.score) == (256, padded, score)


def test_what_is_null_takes_its_default():
    found = spec(metrics=None, score=None, max_length=99, padded_length=None)
    assert (found.metrics, found.score, found.padded_length) == (("accuracy", "macro_f1"), "accuracy", 99)
    assert spec(kind="regression").score == "pearson"


def test_lists_become_tuples_so_that_a_spec_can_be_hashed():
    assert hash(spec(labels=["a", "b"], validation_splits=["dev"]))


def test_columns_are_text_pair_and_label():
    assert spec(text="q", text_pair="s", label="y").columns == ("q", "s", "y")
    assert spec(text="q", label="y").columns == ("q", "y")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lable": "y"}, r"task.lable is no key of a task; did you mean task.label\?"),
        (
            {"xyzzy": "y"},
            r"task.xyzzy is no key of a task; known: beams, budget, class_weights, .*, validation_splits\.",
        ),
        ({"kind": "ranking"}, "task.kind=ranking; allowed: classification, regression, multilabel, span"),
        ({"metrics": ["bleu"]}, r"task.metrics: bleu is no metric of task.kind=classification.\nAllowed: accuracy, f1"),
        (
            {"kind": "regression", "metrics": ["f1"]},
            r"task.metrics: f1 is no metric of task.kind=regression.\nAllowed: pearson",
        ),
        ({"metrics": ["accuracy"], "score": "matthews"}, r"task.score=matthews is not computed.*=\[accuracy\]"),
        ({"kind": "regression", "labels": ["a", "b"]}, r"task.labels=\[a, b\] with task.kind=regression"),
        ({"kind": "span"}, "task.text_pair=null with task.kind=span: there is no text to find answers in"),
        ({"kind": "span", "text_pair": "c", "labels": ["a", "b"]}, r"task.labels=\[a, b\] with task.kind=span"),
        ({"kind": "span", "text_pair": "c", "empty": "keep"}, "task.empty=keep with task.kind=span"),
        (
            {"kind": "span", "text_pair": "c", "max_length": 100, "stride": 96},
            "task.stride=96 with task.max_length=100: windows would not move on",
        ),
        (
            {"kind": "span", "text_pair": "c", "metrics": ["accuracy"]},
            r"task.metrics: accuracy is .*\nAllowed: f1, exact_match",
        ),
        ({"label": ["a", "b"]}, r"task.label=\[a, b\] with task.kind=classification(?s:.*)set task.kind=multilabel"),
        ({"label_separator": ";"}, r"task.label_separator=; with task.kind=classification"),
        ({"tune_thresholds": True, "kind": "regression"}, r"task.tune_thresholds=true with task.kind=regression"),
        ({"unlabelled": "none"}, r"task.unlabelled=none with task.kind=classification: a text has one label"),
        ({"kind": "multilabel", "label": ["a"]}, r"task.label=\[a\] has 1 label; give 2 or more"),
        ({"kind": "multilabel", "labels": ["a", "b", "a"]}, "task.labels names 'a' twice"),
        ({"kind": "multilabel", "label": ["a", "b"], "labels": ["x", "y"]}, "labels are called like their columns"),
        ({"kind": "multilabel", "label_separator": ""}, "task.label_separator='': it is empty"),
        ({"kind": "multilabel", "label": ["a", "b"], "label_separator": ";"}, "columns of 0 and 1 have none"),
        ({"kind": "multilabel", "metrics": ["accuracy"]}, r"task.metrics: accuracy is .*\nAllowed: micro_f1, macro_f1"),
        ({"labels": ["a", "b", "a"]}, "task.labels names 'a' twice"),
        ({"labels": ["a"]}, r"task.labels=\[a\] has 1 label"),
        ({"labels": ["a", "b", "c"], "metrics": ["f1"]}, "f1 is of two classes, but task.labels has 3; use macro_f1"),
        ({"labels": ["a", "b", "c"], "metrics": ["mean_of_accuracy_f1"]}, "f1 is of two classes.* has 3"),
        (
            {"validation_fraction": 0.6, "test_fraction": 0.5},
            "0.6 and task.test_fraction=0.5 leave nothing to train on",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        spec(**keys)


def test_a_task_without_a_name_is_refused():
    with pytest.raises(ConfigError, match=r"needs task\.name"):
        TaskSpec.from_config({"text": "body"})


def test_three_classes_may_have_a_macro_f1():
    assert spec(labels=["a", "b", "c"], metrics=["macro_f1"]).score == "macro_f1"
