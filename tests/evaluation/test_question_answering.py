"""Answers from logits, over windows, and their quality, by numbers that can be checked by hand."""

import pytest
import torch
from torchmetrics.functional.text import squad

from prunekit.data.kinds.span import SPAN
from prunekit.data.rows import Rows
from prunekit.data.spans import Answer
from prunekit.data.spec import TaskSpec
from prunekit.data.windows import Questions
from prunekit.evaluation.question_answering import (
    CLASSES,
    AnswerQuality,
    best_answers,
    best_threshold,
    window_predictions,
)

TEXT = "aa bb cc dd"
# [CLS] question [SEP] aa bb cc dd [SEP]
SPANS = [[-1, -1], [-1, -1], [-1, -1], [0, 2], [3, 5], [6, 8], [9, 11], [-1, -1]]


def logits(first, last):
    return torch.stack([torch.tensor(first), torch.tensor(last)], -1).float()[None]


def spec(**keys):
    own = {"name": "qa", "kind": "span", "text_pair": "context", "metrics": list(SPAN.metrics), "max_length": 384}
    return TaskSpec.from_config({**own, "unanswerable": True, "null_threshold": 0.0, **keys})


# -- one window ----------------------------------------------------------------------------------------


def test_the_best_pair_of_tokens_wins_and_not_the_best_of_each():
    # the best first token, dd, has no last token behind it that adds up to bb..cc
    found = best_answers(logits([0, 9, 0, 0, 4, 0, 5, 9], [0, 9, 0, 0, 1, 4, 0, 9]), torch.tensor([SPANS]), 30)
    assert (found.begin.item(), found.end.item(), found.score.item()) == (3, 8, 8.0)
    assert TEXT[3:8] == "bb cc"


def test_the_question_and_what_ends_before_it_begins_are_no_answers():
    found = best_answers(logits([0, 9, 9, 0, 0, 0, 3, 9], [0, 9, 9, 5, 0, 0, 1, 9]), torch.tensor([SPANS]), 30)
    assert TEXT[found.begin.item() : found.end.item()] == "aa bb cc dd"[0:2]  # 0 + 5, and dd 3 + 1
    assert found.score.item() == 5.0


def test_longer_answers_than_allowed_are_not_given():
    scores = logits([0, 0, 0, 9, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 9, 0])
    texts = [best_answers(scores, torch.tensor([SPANS]), n) for n in (4, 3, 2, 1)]
    assert [(found.begin.item(), found.end.item()) for found in texts] == [(0, 11), (0, 8), (0, 5), (0, 2)]


def test_no_answer_is_worth_what_cls_gets():
    found = best_answers(logits([2.5, 0, 0, 0, 0, 0, 0, 0], [1.5, 0, 0, 0, 0, 0, 0, 0]), torch.tensor([SPANS]), 30)
    assert found.none.item() == 4.0


# -- questions and their windows -----------------------------------------------------------------------


def collected(windows, answers, **keys):
    """Quality of windows (question, first, last); every question is about TEXT."""
    rows = Rows(["?"] * len(answers), [TEXT] * len(answers), answers)
    quality = AnswerQuality(spec(**keys), Questions.of(rows))
    for question, first, last in windows:
        quality.update(logits(first, last), {"spans": torch.tensor([SPANS]), "example": torch.tensor([question])})
    return quality.compute()


AA = [0, 0, 0, 5, 0, 0, 0, 0]
BB = [0, 0, 0, 0, 6, 0, 0, 0]
NONE = [7, 0, 0, 0, 0, 0, 0, 0]


def test_the_best_window_answers_the_question():
    found = collected([(0, AA, AA), (0, BB, BB)], [Answer(("bb",), (3,))])
    assert (found.texts, found.metrics["exact_match"]) == (["bb"], 1.0)


def test_only_where_every_window_says_so_there_is_no_answer():
    assert collected([(0, NONE, NONE), (0, AA, AA)], [Answer()]).texts == ["aa"]  # none 0 of the second, aa 10
    assert collected([(0, NONE, NONE), (0, NONE, NONE)], [Answer()]).texts == [""]


def test_the_threshold_is_on_the_difference_none_less_best():
    window = (0, [7, 0, 0, 5, 0, 0, 0, 0], [7, 0, 0, 5, 0, 0, 0, 0])  # 14 - 10 = 4
    assert collected([window], [Answer()], null_threshold=3.9).texts == [""]
    assert collected([window], [Answer()], null_threshold=4.0).texts == ["aa"]  # not more than the threshold


def test_where_every_question_has_an_answer_one_is_given():
    assert collected([(0, NONE, NONE)], [Answer(("aa",), (0,))], unanswerable=False).texts != [""]


def test_metrics_of_questions_with_and_without_answer():
    answers = [Answer(("aa",), (0,)), Answer(("aa bb",), (0,)), Answer(), Answer()]
    # aa is right; bb against "aa bb": precision 1, recall 1/2, f1 2/3; none is right; aa where there is none is wrong
    found = collected([(0, AA, AA), (1, BB, BB), (2, NONE, NONE), (3, AA, AA)], answers)
    assert found.texts == ["aa", "bb", "", "aa"]
    assert found.exact.tolist() == [True, False, True, False]
    assert found.metrics == pytest.approx(
        {
            "exact_match": 2 / 4,
            "f1": (1 + 2 / 3 + 1 + 0) / 4,
            "has_answer_exact_match": 1 / 2,
            "has_answer_f1": (1 + 2 / 3) / 2,
            "no_answer_exact_match": 1 / 2,
            "no_answer_f1": 1 / 2,
        }
    )


def test_the_order_of_batches_changes_nothing():
    answers = [Answer(("aa",), (0,)), Answer()]
    windows = [(0, AA, AA), (1, NONE, NONE), (0, BB, BB), (1, BB, BB)]
    first, again = collected(windows, answers), collected(windows[::-1], answers)
    assert (first.texts, first.metrics) == (again.texts, again.metrics)


# -- the threshold that is found -----------------------------------------------------------------------


def test_the_best_threshold_lies_between_the_questions_that_it_divides():
    over = torch.tensor([-3.0, -1.0, 2.0, 5.0]).double()
    answered = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()  # quality where the question is answered
    silent = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()  # and where it is not
    assert best_threshold(over, answered, silent) == 0.5  # the first two answered: 3 of 4; so are all with 3 of 4
    assert best_threshold(over, torch.zeros(4).double(), torch.ones(4).double()) == -4.0  # answers nothing
    assert best_threshold(over, torch.ones(4).double(), torch.zeros(4).double()) == 6.0  # answers everything


def test_questions_of_equal_score_are_on_one_side():
    over = torch.tensor([1.0, 1.0]).double()
    answered, silent = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 0.0]).double()
    assert best_threshold(over, answered, silent) == 2.0


def test_a_threshold_left_open_is_the_best_one():
    left = [(0, [9, 0, 0, 8, 0, 0, 0, 0], [9, 0, 0, 8, 0, 0, 0, 0]), (1, [9, 0, 0, 1, 0, 0, 0, 0], NONE)]
    answers = [Answer(("aa",), (0,)), Answer()]
    assert collected(left, answers, null_threshold=0.0).metrics["f1"] == 0.5
    found = collected(left, answers, null_threshold=None)
    assert (found.metrics["f1"], found.texts) == (1.0, ["aa", ""])
    assert 2 < found.null_threshold < 15  # 18 - 16 and 16 - 1


def test_windows_say_what_their_question_got():
    """Question 0 has the answer "a cat", question 1 none; 0 is read in two windows."""
    windows = torch.tensor([0, 0, 1])
    dense = window_predictions(["a cat", ""], ["a cat", ""], torch.tensor([True, True]), windows)
    found = window_predictions(["a cat", ""], ["cats", ""], torch.tensor([False, True]), windows)
    assert [CLASSES[label] for label in found.labels] == ["an answer", "an answer", "no answer"]
    assert [CLASSES[label] for label in found.predicted] == ["wrong", "wrong", "no answer"]
    assert found.right.tolist() == [False, False, True]
    assert (dense.predicted == dense.labels).all()
    assert found.texts == [("a cat", "cats"), ("a cat", "cats"), ("", "")]


# -- torchmetrics' SQuAD against hand-worked cases ---------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "right", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 100, 100),  # case, punctuation and articles do not count
        ("a black cat", ["the black dog", "cat"], 0, 100 * 2 / 3),  # the best right answer: cat, 1/2 and 1
        ("black cat", ["black dog"], 0, 50),
        ("cat cat", ["cat"], 0, 100 * 2 / 3),  # a word counts as often as it is there
        ("dog", ["cat"], 0, 0),
        ("", [""], 100, 100),
        ("cat", [""], 0, 0),
        ("", ["cat"], 0, 0),
    ],
)
def test_exact_match_and_f1_are_those_of_squad(given, right, exact, f1):
    found = squad(
        [{"prediction_text": given, "id": "0"}],
        [{"answers": {"text": right, "answer_start": [0] * len(right)}, "id": "0"}],
    )
    assert float(found["exact_match"]) == pytest.approx(exact)
    assert float(found["f1"]) == pytest.approx(f1)


def test_an_answer_of_which_normalising_leaves_nothing_is_none():
    # as in SQuAD 2.0's script
    assert collected([(0, NONE, NONE)], [Answer(("the",), (0,))]).metrics["exact_match"] == 1.0
