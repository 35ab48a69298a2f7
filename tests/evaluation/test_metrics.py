"""Metrics against numbers worked by hand."""

import math

import pytest
import torch

from prunekit.config.errors import ConfigError
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.metrics import build_metrics

NAMES = ("a", "b", "c")


def spec_of(kind, *metrics):
    return TaskSpec.from_config({"name": "t", "kind": kind, "metrics": list(metrics)})


def classes(predicted, labels, *metrics, count=2):
    found = build_metrics(spec_of("classification", *metrics), NAMES[:count])
    found.update(torch.nn.functional.one_hot(torch.tensor(predicted), count).float(), torch.tensor(labels))
    return {name: float(value) for name, value in found.compute().items()}


def scores(predicted, labels, *metrics):
    found = build_metrics(spec_of("regression", *metrics), None)
    found.update(torch.tensor(predicted)[:, None], torch.tensor(labels))
    return {name: float(value) for name, value in found.compute().items()}


def test_two_classes_by_hand():
    # 3 true positives, 1 false positive, 1 false negative, 2 true negatives
    predicted, labels = [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0]
    found = classes(predicted, labels, "accuracy", "f1", "mean_of_accuracy_f1", "matthews", "macro_f1")
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert found["mean_of_accuracy_f1"] == pytest.approx((5 / 7 + 3 / 4) / 2)
    assert found["matthews"] == pytest.approx((3 * 2 - 1 * 1) / math.sqrt(4 * 4 * 3 * 3))
    assert found["macro_f1"] == pytest.approx((3 / 4 + 2 * 2 / (2 * 2 + 1 + 1)) / 2)


def test_f1_is_of_class_1_whichever_is_rarer():
    assert classes([0, 0, 0, 1], [0, 0, 0, 1], "f1")["f1"] == 1
    assert classes([0, 0, 0, 0], [0, 0, 0, 1], "f1")["f1"] == 0


def test_three_classes_by_hand():
    found = classes([0, 0, 1, 2], [0, 1, 1, 2], "accuracy", "macro_f1", "matthews", count=3)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    # (correct * rows - sum predicted * true) / sqrt((rows^2 - predicted^2) (rows^2 - true^2))
    assert found["matthews"] == pytest.approx((3 * 4 - 5) / math.sqrt((16 - 6) * (16 - 6)))


def test_correlations_by_hand():
    found = scores([1.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0], "pearson", "spearman", "mean_of_pearson_spearman")
    pearson = 5.5 / math.sqrt(8.75 * 5.0)
    assert found["pearson"] == pytest.approx(pearson, abs=1e-6)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15), abs=1e-6)
    assert found["mean_of_pearson_spearman"] == pytest.approx((pearson + 0.8) / 2, abs=1e-6)


@pytest.mark.parametrize(("labels", "value"), [([0, 1, 1], 1.0), ([1, 0, 0], -1.0)])
def test_a_perfect_or_reversed_matthews_is_a_float(labels, value):
    found = build_metrics(spec_of("classification", "matthews"), NAMES[:2])
    found.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor(labels))
    result = found.compute()["matthews"]
    assert result.dtype == torch.float32
    assert float(result) == value


def test_a_constant_prediction_has_no_correlation():
    assert classes([1, 1, 1], [0, 1, 1], "matthews", "f1") == {"matthews": 0.0, "f1": pytest.approx(0.8)}
    assert scores([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "pearson", "spearman") == {"pearson": 0.0, "spearman": 0.0}
    assert scores([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], "pearson", "spearman") == {"pearson": 0.0, "spearman": 0.0}


def test_batches_add_up_to_the_whole_and_reset_forgets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 2, generator=generator)
    labels = torch.randint(0, 2, (50,), generator=generator)
    found = build_metrics(spec_of("classification", "matthews", "mean_of_accuracy_f1"), NAMES[:2])
    found.update(logits, labels)
    whole = found.compute()
    found.reset()
    for part in range(0, 50, 7):
        found.update(logits[part : part + 7], labels[part : part + 7])
    assert found.compute() == whole


def test_predictions_in_half_precision_are_fine():
    found = build_metrics(spec_of("regression", "pearson"), None)
    found.update(torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16), torch.tensor([3.0, 4.0]))
    assert float(found.compute()["pearson"]) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["f1", "mean_of_accuracy_f1"])
def test_f1_of_three_classes_is_refused(metric):
    with pytest.raises(
        ConfigError, match=r"f1 is of two classes, but task t has 3; use task.metrics=\[accuracy, macro"
    ):
        build_metrics(spec_of("classification", metric), NAMES)
