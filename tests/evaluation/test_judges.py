"""What each kind of task is judged by, and what is known of each row afterwards."""

import pytest
import torch

from prunekit.data.encoding import LabelTargets
from prunekit.data.ragged import Ragged
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec
from prunekit.data.translations import TranslationTargets
from prunekit.data.windows import Questions, SpanTargets
from prunekit.evaluation.judges import JUDGES
from prunekit.evaluation.judging import RowColumns
from prunekit.losses import decisions_per_row


def judge(targets, **keys):
    spec = TaskSpec.from_config({"name": "t", **keys})
    return JUDGES[spec.kind](spec, targets, "cpu")


def test_columns_come_back_in_the_order_of_the_rows():
    rows = RowColumns()
    rows.add(torch.tensor([2, 0]), torch.tensor([20, 0]), torch.tensor([[2, 2], [0, 0]]))
    rows.add(torch.tensor([1]), torch.tensor([10]), torch.tensor([[1, 1]]))
    assert [column.tolist() for column in rows.by_row()] == [[0, 10, 20], [[0, 0], [1, 1], [2, 2]]]


def test_classes_are_judged_row_by_row():
    found = judge(LabelTargets(torch.tensor([1, 0]), ("no", "yes")), metrics=["accuracy"])
    # row 1 first: no, which is right; then row 0: no, which is wrong
    found.update(torch.tensor([[2.0, 1.0]]), {"index": torch.tensor([1]), "labels": torch.tensor([0])})
    found.update(torch.tensor([[5.0, 1.0]]), {"index": torch.tensor([0]), "labels": torch.tensor([1])})
    verdict = found.compute()
    assert (verdict.metrics, verdict.judged) == ({"accuracy": 0.5}, 2)
    predictions = verdict.predictions
    assert (predictions.labels.tolist(), predictions.predicted.tolist()) == ([1, 0], [0, 0])
    assert (predictions.right.tolist(), predictions.classes) == ([False, True], ("no", "yes"))
    assert (dict(verdict.texts), dict(verdict.settled)) == ({}, {})


def test_values_have_no_classes():
    found = judge(LabelTargets(torch.tensor([1.0, 2.0])), kind="regression", metrics=["pearson"])
    found.update(torch.tensor([[3.0], [5.0]]), {"index": torch.arange(2), "labels": torch.tensor([1.0, 2.0])})
    verdict = found.compute()
    assert verdict.metrics == {"pearson": pytest.approx(1.0)}
    assert (verdict.predictions.predicted.tolist(), verdict.predictions.classes) == ([3.0, 5.0], ())


def test_answers_are_judged_by_question_and_known_by_window():
    # [CLS] question [SEP] aa bb; question 0 is read in windows 0 and 2, question 1, which has no answer, in window 1
    spans = torch.tensor([[-1, -1], [-1, -1], [-1, -1], [0, 2], [3, 5]])
    questions = Questions(["?", "?"], ["aa bb", "aa bb"], [Answer(("bb",), (3,)), Answer()], ["x", "y"])
    windows = torch.tensor([0, 1, 0])
    starts, ends = (Ragged.of([side.tolist()] * 3) for side in spans.T)
    targets = SpanTargets(torch.tensor([[4, 4], [0, 0], [4, 4]]), starts, ends, windows, questions)
    found = judge(targets, kind="span", text_pair="context", max_length=384, unanswerable=True, metrics=["exact_match"])
    logits = torch.zeros(3, 5, 2)
    logits[0, 4], logits[1, 0] = 5.0, 7.0
    found.update(logits, {"index": torch.arange(3), "example": windows, "spans": spans.repeat(3, 1, 1)})
    verdict = found.compute()
    assert (verdict.metrics, verdict.judged) == ({"exact_match": 1.0}, 2)
    assert dict(verdict.texts) == {"x": "bb", "y": ""}
    assert verdict.predictions.texts == [("bb", "bb"), ("", ""), ("bb", "bb")]
    assert verdict.predictions.right.tolist() == [True, True, True]
    assert -10 < verdict.settled["null_threshold"] < 14  # left open by the task: 0 - 10 and 14 - 0


def test_words_are_judged_and_rows_are_not():
    targets = TranslationTargets(Ragged.of([[1, 2], [3]]))
    found = judge(targets, kind="translation")
    labels = torch.tensor([[1, 2], [3, -100]])
    found.update(torch.eye(4)[[1, 0, 3]], {"index": torch.arange(2), "labels": labels})
    verdict = found.compute()
    assert verdict.metrics == {"word_accuracy": pytest.approx(2 / 3)}
    assert (verdict.judged, len(verdict.predictions)) == (2, 0)


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        ([1, 0], [1, 1]),
        ([0.5, -100.0], [1, 1]),
        ([[3, 4], [0, 0]], [2, 2]),
        ([[5, 6, 7], [5, -100, -100]], [3, 1]),
    ],
)
def test_decisions_are_counted_without_padding(labels, counts):
    assert decisions_per_row(torch.tensor(labels)).tolist() == counts
