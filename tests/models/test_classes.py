"""Classes of a model and of a task are matched by name; a model in another order gives the task's order."""

import pytest
import torch
from support.families import FAMILIES
from support.folders import edit_json
from support.models import sentences, tiny_model

from prunekit.config.errors import ConfigError
from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.models.classes import class_order
from prunekit.models.loading import load_model


class Config:
    def __init__(self, *names):
        self.id2label, self.num_labels = dict(enumerate(names)), len(names)


@pytest.mark.parametrize(
    ("stored", "labels", "order"),
    [
        (("a", "b", "c"), ("a", "b", "c"), [0, 1, 2]),
        (("b", "c", "a"), ("a", "b", "c"), [2, 0, 1]),
        (("Entailment", "NOT_entailment"), ("not entailment", "entailment"), [1, 0]),
        (("Not-Entailment ", "entailment"), ("not_entailment", "Entailment"), [0, 1]),
        (("1", "-1"), ("-1", "1"), [1, 0]),
        (("A", "a"), ("a", "A"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("0", "1"), [0, 1]),
        (("LABEL_0", "LABEL_1"), ("1", "0"), [1, 0]),
    ],
)
def test_names_are_matched(stored, labels, order):
    assert class_order("m", Config(*stored), labels) == order


@pytest.mark.parametrize(
    ("stored", "labels"),
    [
        (("LABEL_0", "LABEL_1"), ("ham", "spam")),
        (("LABEL_0", "LABEL_1"), ("1", "2")),
        (("good", "bad"), ("ham", "spam")),
        (("ham", "eggs"), ("ham", "spam")),
        (("1", "0"), ("-1", "0")),
        (("A", "a"), ("A", "b")),
        (("ham", "ham"), ("ham", "spam")),
    ],
)
def test_other_names_are_refused_with_both_orders_and_what_to_type(stored, labels):
    with pytest.raises(ConfigError) as raised:
        class_order("./m", Config(*stored), labels)
    first, _, third = str(raised.value).splitlines()
    assert first == f"./m has the classes [{', '.join(stored)}], but the task has [{', '.join(labels)}]."
    assert f'In ./m/config.json write "id2label": {{"0": "{labels[0]}", "1": "{labels[1]}"}}' in third


def test_many_names_are_shortened():
    with pytest.raises(ConfigError) as raised:
        class_order("m", Config(*[f"stored {n}" for n in range(50)]), [f"class {n}" for n in range(50)])
    assert max(map(len, str(raised.value).splitlines()[0].split(", but"))) < 110


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_another_order_computes_the_task_s_order(tmp_path, family):
    model = tiny_model(family)
    model.config.id2label = {0: "Blue", 1: "red", 2: "green"}
    model.config.label2id = {"Blue": 0, "red": 1, "green": 2}
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, CLASSIFICATION, ["red", "green", "blue"]).eval()
    batch = sentences([9, 5], pad=model.config.pad_token_id or 0)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits[:, [1, 2, 0]])
    assert again.config.id2label == {0: "red", 1: "green", 2: "blue"}
    again.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "again", CLASSIFICATION, ["red", "green", "blue"]).config.id2label[2] == "blue"


def test_other_numbers_of_classes_are_refused(tmp_path):
    tiny_model(classes=1).save_pretrained(tmp_path / "one")
    tiny_model(classes=3).save_pretrained(tmp_path / "three")
    edit_json(tmp_path / "three" / "config.json", id2label={"0": "c", "1": "b", "2": "a"})
    message = r"(?s)3 outputs, but the task has 2: \[a, b\]; the model has \[c, b, a\]\..*task\.labels=\[c,b,a\]"
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path / "three", CLASSIFICATION, ["a", "b"])
    message = r"(?s)a head with 1 outputs, but the task has 2: \[a, b\].*task\.kind=regression"
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path / "one", CLASSIFICATION, ["a", "b"])
    model = tiny_model(classes=2)
    model.config.id2label, model.config.problem_type = {0: "a", 1: "b"}, "multi_label_classification"
    model.save_pretrained(tmp_path / "many")
    with pytest.raises(ConfigError, match=r"several classes at once(?s:.*)set task.kind=multilabel"):
        load_model(tmp_path / "many", CLASSIFICATION, ["a", "b"])


def test_several_labels_per_text_need_a_model_that_was_trained_so(tmp_path):
    model = tiny_model(classes=2)
    model.config.id2label = {0: "a", 1: "b"}
    for problem in (None, "single_label_classification"):
        model.config.problem_type = problem
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"does not say that a text may have several classes \(problem_type="):
            load_model(tmp_path, MULTILABEL, ["a", "b"])
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, MULTILABEL, ["b", "a"])
    assert (again.config.id2label, again.config.problem_type) == ({0: "b", 1: "a"}, "multi_label_classification")
    assert torch.equal(again.classifier.weight, model.classifier.weight[[1, 0]])
