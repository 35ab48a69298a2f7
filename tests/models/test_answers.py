"""What logits say: one class, any number of labels, or a value."""

from types import SimpleNamespace

import pytest
import torch

from prunekit.config.errors import ConfigError
from prunekit.models.answers import AnyLabels, OneClass, OneValue, answers_of, store_thresholds


def config(*names, **settings):
    return SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names), **settings)


def several(**settings):
    return config("a", "b", "c", problem_type="multi_label_classification", **settings)


def test_a_configuration_says_how_logits_are_read():
    assert answers_of(config("a", "b")) == OneClass(("a", "b"))
    assert answers_of(config("score", problem_type="regression")) == OneValue()
    assert answers_of(several()) == AnyLabels(("a", "b", "c"), (0.5, 0.5, 0.5))
    assert answers_of(several(label_thresholds=[0.2, 0.5, 0.9])).thresholds == (0.2, 0.5, 0.9)


@pytest.mark.parametrize("stored", [[0.5], [0.5, 0.5, 1.0], [0.5, 0.5, "x"], {"a": 0.5}, 0.5])
def test_thresholds_that_are_none_are_refused(stored):
    with pytest.raises(ConfigError, match=r"Allowed: a list of 3 numbers between 0 and 1"):
        answers_of(several(label_thresholds=stored))


def test_thresholds_are_written_and_removed():
    found = several(label_thresholds=[0.1, 0.1, 0.1])
    store_thresholds(found, (0.2, 0.3, 0.4))
    assert found.label_thresholds == [0.2, 0.3, 0.4]
    store_thresholds(found, ())
    store_thresholds(found, ())
    assert not hasattr(found, "label_thresholds")


def test_labels_are_those_from_their_threshold_on():
    # probabilities 0.5, 0.731, 0.119
    logits = torch.tensor([[0.0, 1.0, -2.0], [-0.1, 0.9, -1.9]])
    answers = AnyLabels(("a", "b", "c"), (0.5, 0.72, 0.12))
    assert answers.decide(logits).tolist() == [[True, True, False], [False, False, True]]
    assert answers.labels(logits) == [["a", "b"], ["c"]]
    assert answers.probabilities(logits)[0].tolist() == pytest.approx([0.5, 0.731059, 0.119203], abs=1e-6)


def test_one_class_has_the_largest_logit():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    answers = OneClass(("a", "b"))
    assert (answers.labels(logits), answers.decide(logits).tolist()) == (["b", "a"], [1, 0])
    assert answers.probabilities(logits)[0].tolist() == pytest.approx([0.268941, 0.731059], abs=1e-6)


def test_a_value_has_neither_labels_nor_probabilities():
    logits = torch.tensor([[0.25], [3.0]])
    assert OneValue().decide(logits).tolist() == [0.25, 3.0]
    assert (OneValue().labels(logits), OneValue().probabilities(logits)) == (None, None)


@pytest.mark.parametrize(
    ("answers", "one", "other", "rounding", "differ"),
    [
        (OneClass(("a", "b")), [[1.0, 0.0]], [[0.0, 1.0]], 0.1, [True]),
        (OneClass(("a", "b")), [[0.1, 0.0]], [[0.0, 0.1]], 0.1, [False]),  # rounding may turn it
        (OneClass(("a", "b")), [[1.0, 0.0]], [[0.1, 0.0]], 0.0, [False]),
        (AnyLabels(("a", "b"), (0.5, 0.5)), [[1.0, -1.0]], [[1.0, 1.0]], 0.1, [True]),
        (AnyLabels(("a", "b"), (0.5, 0.5)), [[1.0, -0.05]], [[1.0, 0.05]], 0.1, [False]),
        (AnyLabels(("a", "b"), (0.5, 0.5)), [[1.0, -1.0]], [[5.0, -9.0]], 0.0, [False]),
        (OneValue(), [[1.0]], [[9.0]], 0.0, [False]),
    ],
)
def test_answers_differ_where_more_than_rounding_does(answers, one, other, rounding, differ):
    assert answers.differ(torch.tensor(one), torch.tensor(other), rounding).tolist() == differ


def test_values_agree_within_a_thousandth():
    one, other = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0009], [1.002]])
    assert OneValue().agree(one, other).tolist() == [True, False]
