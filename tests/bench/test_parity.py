"""What a parity report counts, on two runtimes made of literal numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prunekit.bench.parity import TextOutput, compare, is_faithful
from prunekit.bench.result import Parity
from prunekit.models.answers import AnyLabels, OneClass, OneValue


def runtime(*texts):
    return lambda batch: [TextOutput(np.array(logits, np.float32), np.array(depth)) for logits, depth in texts]


CLASSES = OneClass(("no", "yes"))
BATCHES = [{"labels": torch.tensor([0, 1])}]


def test_labels_logits_and_tokens_are_counted_apart():
    one = runtime(([2.0, 1.0], [4, 4, 1]), ([0.0, 3.0], [4, 2]))
    other = runtime(([2.5, 1.0], [4, 4, 1]), ([3.5, 3.0], [4, 1]))
    found = compare(one, other, BATCHES, CLASSES)
    assert found == Parity(
        rows=2,
        labels_agree=0.5,
        labels_differ=1,
        max_difference=3.5,
        mean_difference=2.0,
        max_difference_same_tokens=0.5,
        kept_equal=0.5,
        kept_differ=1,
        tokens_equal=0.8,
    )


def test_answers_agree_when_first_and_last_token_do():
    one = runtime(([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], [4, 4, 4]))
    same = runtime(([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [4, 4, 4]))
    ends_elsewhere = runtime(([[0.0, 9.0], [9.0, 0.0], [0.0, 1.0]], [4, 4, 4]))
    batches = [{"labels": torch.zeros(1, 2)}]
    assert compare(one, same, batches, CLASSES).labels_agree == 1.0
    assert compare(one, ends_elsewhere, batches, CLASSES).labels_agree == 0.0


def test_a_value_agrees_within_rounding():
    one, other = runtime(([0.5], [4])), runtime(([0.52], [4]))
    assert compare(one, one, [{"labels": torch.zeros(1)}], OneValue()).labels_agree == 1.0
    assert compare(one, other, [{"labels": torch.zeros(1)}], OneValue()).labels_agree == 0.0


def test_several_labels_agree_where_none_is_on_the_other_side_of_its_threshold():
    answers = AnyLabels(("a", "b"), (0.5, 0.88))  # 0.88 is the probability of a logit of 1.99
    one, other = runtime(([3.0, 1.9], [4]), ([3.0, 2.1], [4])), runtime(([0.1, -5.0], [4]), ([3.0, 1.9], [4]))
    assert compare(one, other, BATCHES, answers).labels_agree == 0.5


GOOD = Parity(
    rows=1000,
    labels_agree=1.0,
    labels_differ=0,
    max_difference=1e-6,
    mean_difference=1e-7,
    max_difference_same_tokens=1e-6,
    kept_equal=1.0,
    kept_differ=0,
    tokens_equal=1.0,
)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, True),
        ({"kept_equal": 0.995, "labels_agree": 0.998}, True),  # scores that tie up to rounding
        ({"max_difference_same_tokens": 0.01}, False),
        ({"kept_equal": 0.9}, False),
        ({"labels_agree": 0.99}, False),
    ],
)
def test_the_same_function_or_not(changed, verdict):
    assert is_faithful(replace(GOOD, **changed)) is verdict
