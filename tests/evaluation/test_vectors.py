"""Vectors are judged by those of the dense model, and by scores of pairs."""

import pytest
import torch

from prunekit.data.encoding import VectorTargets
from prunekit.data.spec import TaskSpec
from prunekit.evaluation import vectors
from prunekit.evaluation.vectors import VectorJudge, mean_cosine, neighbour_overlap, pair_cosines

RIGHT, UP, LEFT = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
NEAR_RIGHT, NEAR_UP = [0.9, 0.1], [0.1, 0.9]


def of(*rows):
    return torch.tensor(rows)


def judged(found, dense, scores=None, **task):
    spec = TaskSpec.from_config({"name": "own", **task})
    targets = VectorTargets(len(found), scores, dense)
    judge = VectorJudge(spec, targets, "cpu")
    for rows in (torch.tensor([1, 0]), torch.arange(2, len(found))):
        judge.update(found[rows], {"index": rows, **targets.batch(rows, torch.ones(len(rows), 1).bool())})
    return judge.compute()


def test_the_cosine_is_a_mean_over_texts_whatever_the_lengths():
    assert mean_cosine(of(RIGHT, UP), of([5.0, 0.0], [3.0, 0.0])) == 0.5


def test_the_overlap_is_the_share_of_neighbours_that_both_models_have(monkeypatch):
    monkeypatch.setattr(vectors, "NEIGHBOURS", 1)
    dense = of(RIGHT, NEAR_RIGHT, UP, NEAR_UP)
    assert neighbour_overlap(dense, dense) == 1
    # by ours the nearest of each is, in turn, 2, 3, 0, 1; the first and the third row swapped
    assert neighbour_overlap(of(RIGHT, UP, NEAR_RIGHT, NEAR_UP), dense) == 0
    # at these angles the third is nearest to the second, and not to the fourth; the others are as they were
    angles = torch.tensor([0.0, 6.0, 13.0, 60.0]).deg2rad()
    assert neighbour_overlap(torch.stack([angles.cos(), angles.sin()], 1), dense) == 0.75


def test_of_few_texts_all_others_are_neighbours_and_blocks_change_nothing(monkeypatch):
    found, dense = torch.randn(12, 4), torch.randn(12, 4)
    assert neighbour_overlap(found[:5], dense[:5]) == 1
    assert neighbour_overlap(found[:1], dense[:1]) == 1
    whole = neighbour_overlap(found, dense)
    monkeypatch.setattr(vectors, "BLOCK", 5)
    assert neighbour_overlap(found, dense) == whole


def test_rows_two_by_two_are_pairs():
    torch.testing.assert_close(pair_cosines(of(RIGHT, UP, RIGHT, RIGHT, RIGHT, LEFT)), torch.tensor([0.0, 1.0, -1.0]))


def test_texts_without_labels_are_judged_by_the_dense_vectors_in_any_order():
    found = of(RIGHT, UP, LEFT)
    verdict = judged(found, found, kind="distilled_embedding")
    assert verdict.metrics == {"cosine": pytest.approx(1), "overlap": 1}
    assert verdict.judged == 3


def test_scores_of_pairs_are_compared_with_cosines():
    found = of(RIGHT, RIGHT, RIGHT, UP, RIGHT, LEFT)
    verdict = judged(found, found, torch.tensor([5.0, 3.0, 0.0]), kind="embedding", text_pair="b")
    assert verdict.metrics == {"spearman": pytest.approx(1, abs=1e-4), "cosine": pytest.approx(1), "overlap": 1}
    turned = judged(found, found, torch.tensor([0.0, 3.0, 5.0]), kind="embedding", text_pair="b")
    assert turned.metrics["spearman"] == pytest.approx(-1, abs=1e-4)


def test_scores_that_are_all_the_same_say_nothing():
    found = of(RIGHT, RIGHT, RIGHT, UP, RIGHT, LEFT)
    assert judged(found, found, torch.ones(3), kind="embedding", text_pair="b").metrics["spearman"] == 0


def test_without_dense_vectors_pairs_alone_are_judged():
    found = of(RIGHT, RIGHT, RIGHT, UP, RIGHT, LEFT)
    verdict = judged(found, None, torch.tensor([5.0, 3.0, 0.0]), kind="embedding", text_pair="b")
    assert verdict.metrics == {"spearman": pytest.approx(1, abs=1e-4)}
