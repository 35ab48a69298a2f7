"""Scores of translations: those of sacreBLEU, by length, and what short ones show."""

import sys

import pytest

from prunekit.evaluation.translation import translation_quality

REFERENCES = ["the small dog runs over the green hill today", "a man reads a long book in the old garden"]


def test_the_reference_itself_scores_100():
    found = translation_quality(REFERENCES, REFERENCES, [9, 12])
    assert (found.bleu, found.chrf, found.length_ratio) == (pytest.approx(100), pytest.approx(100), 1.0)
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_lost_words_show_in_the_length():
    """8 of 9 and 5 of 10 words."""
    shorter = ["the small dog runs over the green hill", "a man reads a long"]
    found = translation_quality(shorter, REFERENCES, [9, 12])
    assert found.length_ratio == pytest.approx(13 / 19)
    assert found.bleu < 70


def test_each_length_has_a_score_of_its_own():
    found = translation_quality([REFERENCES[0], "something else"], REFERENCES, [9, 12], edges=[0, 10, 20, 30])
    assert [(bucket.low, bucket.high, bucket.rows) for bucket in found.buckets] == [(0, 10, 1), (10, 20, 1)]
    assert found.buckets[0].bleu == pytest.approx(100)
    assert found.buckets[1].bleu < 5


def test_as_many_of_each():
    with pytest.raises(ValueError, match="1 translations, 2 references and 2 source lengths"):
        translation_quality(["one"], REFERENCES, [9, 12])


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'prunekit\[translation\]'"):
        translation_quality(REFERENCES, REFERENCES, [9, 12])
