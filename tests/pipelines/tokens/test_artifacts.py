"""What is stored of the predictions on the test rows."""

import torch

from prunekit.evaluation.judging import Predictions
from prunekit.pipelines.tokens.artifacts import _predicted


def test_of_classes_labels_and_both_predictions_are_stored():
    labels = torch.tensor([0, 1])
    dense, pruned = Predictions(labels, labels, ("a", "b")), Predictions(labels, torch.tensor([1, 1]), ("a", "b"))
    found = {name: column.tolist() for name, column in _predicted(dense, pruned).items()}
    assert found == {"labels": [0, 1], "predicted": [1, 1], "dense": [0, 1]}


def test_of_texts_the_right_one_and_both_predicted_ones_are_stored_and_long_ones_cut():
    row, classes = torch.tensor([1]), ("wrong", "right")
    dense = Predictions(row, row, classes, [("x" * 100, "cats")])
    pruned = Predictions(row, row, classes, [("x" * 100, "")])
    assert _predicted(dense, pruned)["answers"].tolist() == [["x" * 80, "cats", ""]]
