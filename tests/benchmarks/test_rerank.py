"""The script that compares rerankers: what its candidates and its numbers are."""

import pytest
import torch
from support.models import benchmark_script


@pytest.fixture(scope="module")
def script():
    return benchmark_script("rerank")


def test_a_passage_is_divided_into_pairs_of_sentences_that_cover_it(script):
    passage = 'One ends. Two, as v. 3.5 does, ends! "Three" asks? Four ends. Five has none'
    found = list(script.parts(passage))
    assert [text for text, _, _ in found] == [
        "One ends. Two, as v. 3.5 does, ends!",
        '"Three" asks? Four ends.',
        "Five has none",
    ]
    assert [start for _, start, _ in found] == [0, *(end for _, _, end in found[:-1])]
    assert found[-1][2] == len(passage)


def test_numbers_are_of_the_unpruned_scores_and_of_the_labels(script):
    """The answer is second for one question of twelve candidates, and first for the other."""
    tested = [script.Candidates("q", tuple("abcdefghijkl"), frozenset({place})) for place in (1, 0)]
    dense = torch.arange(12.0, 0, -1)
    reference = torch.cat([dense, dense]), torch.tensor([0.1, 0.2, 0.3])
    scored = [("a", "b", 3.0), ("a", "c", 2.0), ("a", "d", 1.0)]
    found = script.rated(reference, reference, tested, scored)
    assert found == pytest.approx(
        {
            "overlap@10": 1.0,
            "qnli_spearman": 1.0,
            "stsb_spearman": 1.0,
            "stsb_spearman_labels": -1.0,
            "answer_first": 0.5,
            "answer_mrr": 0.75,
        }
    )
    row = found | {"ms": 12.34}
    stored = {"rows": {"dense": row, "truncate as 2x": row | {"length": 24}}, "queries": 2, "pairs": 3, "cpu": "a CPU"}
    text = script.table(stored | {"settings": {"labelled": 1, "queries": 4, "candidates": 12, "pairs": 5}})
    assert "| truncate as 2x (24 tokens) | 12.3 | 100.00 | 100.00 | 100.00 | -100.00 | 50.00 | 75.00 |" in text
    assert "on 4 questions of SQuAD with 12 candidates each" in text
