"""Entities and words are counted once per text, by numbers that can be checked by hand."""

import numpy as np
import pytest
import torch

from prunekit.data.ragged import Ragged
from prunekit.data.spec import TaskSpec
from prunekit.data.words import WordTargets
from prunekit.evaluation.tagging import CLASSES, TagJudge

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def targets(labels, words, names=NAMES):
    """`labels` of the words of each text, and `words`: the number of the word that begins at each token, or -1."""
    return WordTargets(
        labels=torch.tensor([names.index(label) for row in labels for label in row.split()]),
        offsets=torch.from_numpy(np.cumsum([0, *(len(row.split()) for row in labels)])),
        words=Ragged.of(words),
        names=names,
        read=sum(word >= 0 for row in words for word in row),
        texts=["\n".join(f"w{n}" for n in range(len(row.split()))) for row in labels],
    )


def judged(given, predicted, order=None, **keys):
    """The verdict on these labels of the words that are read, batch by batch of one text."""
    judge = TagJudge(TaskSpec.from_config({"name": "t", "kind": "tokens", **keys}), given, "cpu")
    for row in range(len(predicted)) if order is None else order:
        rows = torch.tensor([row])
        labels = given.batch(rows, torch.ones(1, 1, dtype=torch.bool))["labels"]
        numbers = torch.tensor([given.names.index(label) for label in predicted[row].split()])
        judge.update(torch.nn.functional.one_hot(numbers, len(given.names)).float(), {"index": rows, "labels": labels})
    return judge.compute()


def test_an_entity_is_right_with_its_type_and_both_boundaries():
    # right: 1 PER; wrong: a PER one word too long, a LOC that is called PER; missed: that PER and that LOC
    given = targets(["B-PER I-PER O", "O B-PER O B-LOC"], [[-1, 0, 1, 2, -1], [-1, 0, 1, 2, 3, -1]])
    found = judged(given, ["B-PER I-PER O", "O B-PER I-PER B-PER"])
    assert found.metrics == pytest.approx(
        {"entity_f1": 1 / 3, "entity_precision": 1 / 3, "entity_recall": 1 / 3, "word_accuracy": 5 / 7}
    )
    assert found.judged == 2


def test_an_i_without_its_b_is_the_same_entity():
    given = targets(["B-PER I-PER O"], [[0, 1, 2]])
    found = judged(given, ["I-PER I-PER O"])
    assert (found.metrics["entity_f1"], found.metrics["word_accuracy"]) == (1.0, pytest.approx(2 / 3))


def test_words_that_are_cut_are_missed_and_never_left_out():
    # of the second text the last two of four words have no token: a LOC is missed, and so is the PER that it cuts
    given = targets(["B-PER O", "O B-PER I-PER B-LOC"], [[0, 1], [0, 1]])
    found = judged(given, ["B-PER O", "O B-PER"])
    assert found.metrics == pytest.approx(
        {"entity_f1": 2 * 1 / (2 + 3), "entity_precision": 1 / 2, "entity_recall": 1 / 3, "word_accuracy": 4 / 6}
    )


def test_without_marks_the_words_that_are_not_outside_are_scored():
    # 3 of 4 words that have a name, 1 of which is right; 2 are called something
    given = targets(["O DET NOUN VERB"], [[0, 1, 2, 3]], ("O", "DET", "NOUN", "VERB"))
    found = judged(given, ["DET DET O O"])
    assert found.metrics == pytest.approx(
        {"entity_f1": 2 * 1 / 5, "entity_precision": 1 / 2, "entity_recall": 1 / 3, "word_accuracy": 1 / 4}
    )


def test_where_nothing_is_named_all_is_zero_but_the_words():
    found = judged(targets(["O O"], [[0, 1]]), ["O O"], metrics=["entity_f1", "word_accuracy"])
    assert found.metrics == {"entity_f1": 0.0, "word_accuracy": 1.0}


def test_the_order_of_batches_and_a_second_look_change_nothing():
    given = targets(["B-PER O", "O B-LOC"], [[0, 1], [0, 1]])
    first, again = (judged(given, ["B-PER O", "O O"], order) for order in ([0, 1], [1, 0, 1]))
    assert (first.metrics, first.judged) == (again.metrics, again.judged) == (again.metrics, 2)
    assert first.metrics["entity_f1"] == pytest.approx(2 / 3)


def test_what_is_stored_of_a_text_are_its_entities():
    given = targets(["B-PER I-PER O", "O O"], [[0, 1, 2], [0, 1]])
    found = judged(given, ["B-PER O B-LOC", "O O"]).predictions
    assert list(found.texts) == [("PER w0 w1", "PER w0; LOC w2"), ("O", "O")]
    assert [CLASSES[number] for number in found.predicted] == ["wrong", "right"]
    assert [CLASSES[number] for number in found.labels] == ["right", "right"]
