"""Entities of labels, by cases worked by hand; the counting is that of conlleval and of seqeval's default."""

import pytest

from prunekit.data.tagging import entities, marks_entities


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ("O B-PER I-PER O", [(1, 3, "PER")]),
        ("B-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),  # adjacent
        ("I-LOC I-LOC O I-LOC", [(0, 2, "LOC"), (3, 4, "LOC")]),  # I- without B-
        ("B-PER I-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC")]),  # the type changes inside
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("B-ORG I-ORG B-ORG", [(0, 2, "ORG"), (2, 3, "ORG")]),
        ("O O O", []),
        ("B I O B", [(0, 2, ""), (3, 4, "")]),  # of one type only
        ("B-a-b I-a-b I-a", [(0, 2, "a-b"), (2, 3, "a")]),
        ("S-PER S-PER B-LOC I-LOC E-LOC E-LOC", [(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC"), (5, 6, "LOC")]),
        ("S-PER I-PER", [(0, 1, "PER"), (1, 2, "PER")]),
    ],
)
def test_entities_have_a_type_and_boundaries(labels, found):
    assert entities(labels.split()) == found


def test_a_word_without_a_prediction_is_in_no_entity():
    assert entities(["B-PER", "I-PER", None, "I-PER"]) == [(0, 2, "PER"), (3, 4, "PER")]


def test_without_marks_every_word_that_is_not_outside_is_one():
    assert entities(["NOUN", "NOUN", "O", "I-X"], marked=False) == [(0, 1, "NOUN"), (1, 2, "NOUN"), (3, 4, "I-X")]


@pytest.mark.parametrize(
    ("names", "marked"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["I-PER", "O"], True),
        (["O", "B", "I"], True),
        (["B-PER", "E-PER", "I-PER", "O", "S-PER"], True),
        (["O", "PER"], False),
        (["NOUN", "VERB"], False),
        (["O", "B-PER", "PER"], False),
        (["O", "B-"], False),
        (["O"], False),
    ],
)
def test_labels_mark_entities_if_all_do(names, marked):
    assert marks_entities(names) is marked
