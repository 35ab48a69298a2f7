"""Any number of labels per row: F1 over labels, thresholds, and what is known of each row."""

import pytest
import torch

from prunekit.data.encoding import LabelTargets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation.judges import JUDGES
from prunekit.evaluation.label_sets import best_thresholds

# of three rows: a and c, b, none
LABELS = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])


def judged(logits, labels=LABELS, **keys):
    spec = TaskSpec.from_config({"name": "t", "kind": "multilabel", **keys})
    found = JUDGES[spec.kind](spec, LabelTargets(labels, ("a", "b", "c")), "cpu")
    # the last row first
    for rows in ([len(labels) - 1], list(range(len(labels) - 1))):
        found.update(torch.tensor(logits)[rows], {"index": torch.tensor(rows), "labels": labels[rows]})
    return found.compute()


def test_f1_is_over_all_labels_and_over_each():
    # predicted: a; a, b; none. Of a: 1 right, 1 wrong; of b: 1 right; of c: 1 missed
    found = judged([[2.0, -1.0, -1.0], [0.0, 3.0, -1.0], [-1.0, -1.0, -1.0]])
    assert found.metrics["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert (found.judged, dict(found.settled)) == (3, {})


def test_a_label_that_is_neither_there_nor_predicted_counts_as_0():
    labels = torch.tensor([[True, False, False], [True, False, False]])
    found = judged([[1.0, -1.0, -1.0], [1.0, -1.0, -1.0]], labels)
    assert found.metrics == {"micro_f1": 1.0, "macro_f1": pytest.approx(1 / 3)}


def test_rows_are_known_in_words_and_by_how_many_labels_they_have():
    predictions = judged([[2.0, -1.0, 2.0], [0.0, 3.0, -1.0], [-1.0, -1.0, -1.0]]).predictions
    assert predictions.texts == [("a, c", "a, c"), ("b", "a, b"), ("", "")]
    assert [predictions.classes[kind] for kind in predictions.labels] == ["several labels", "one label", "no label"]
    assert [predictions.classes[kind] for kind in predictions.predicted] == ["several labels", "wrong", "no label"]
    assert predictions.right.tolist() == [True, False, True]
    assert predictions.only_answer() is None
    assert judged([[-1.0] * 3] * 3).predictions.only_answer() == "no label"
    assert judged([[9.0, -1.0, -1.0]] * 3).predictions.only_answer() == "a"


def test_thresholds_that_the_task_leaves_open_are_those_of_the_rows_judged():
    # a: 0.31 | 0.27, 0.18; b: 0.88 | 0.73, 0.5; c: 0.62 | 0.27, 0.12
    logits = [[-0.8, 1.0, 0.5], [-1.5, 2.0, -1.0], [-1.0, 0.0, -2.0]]
    assert judged(logits, tune_thresholds=True).metrics == {"micro_f1": 1.0, "macro_f1": 1.0}
    thresholds = judged(logits, tune_thresholds=True).settled["thresholds"]
    assert thresholds == pytest.approx(((0.310026 + 0.268941) / 2, (0.880797 + 0.731059) / 2, 0.5), abs=1e-6)
    again = judged(logits, tune_thresholds=True, thresholds=list(thresholds))
    assert (again.metrics["micro_f1"], dict(again.settled)) == (1.0, {})
    assert judged(logits).metrics["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))


@pytest.mark.parametrize(
    ("shares", "wanted", "threshold"),
    [
        ([0.9, 0.6, 0.4, 0.1], [1, 1, 0, 0], 0.5),
        ([0.9, 0.6, 0.4, 0.1], [1, 1, 1, 0], 0.25),
        ([0.9, 0.6, 0.4, 0.1], [1, 0, 0, 0], 0.75),
        ([0.4, 0.2, 0.2, 0.1], [0, 1, 1, 0], 0.15),  # equal probabilities are on one side: F1 2*2 / (3 + 2)
        ([0.9, 0.6], [0, 0], 0.5),  # nothing to go by
        ([0.3, 0.3], [1, 1], 0.15),  # all have it
        ([0.8], [1], 0.5),
        ([0.0, 0.0], [1, 1], 0.5),
    ],
)
def test_a_threshold_is_midway_where_f1_is_best_and_close_to_a_half(shares, wanted, threshold):
    found = best_thresholds(torch.tensor(shares)[:, None], torch.tensor(wanted)[:, None] > 0)
    assert found == pytest.approx((threshold,))
