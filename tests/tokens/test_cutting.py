"""Cut texts: what a tokenizer would have left of them that truncates the longest first."""

import random

import pytest
import torch
from transformers import AutoTokenizer

from prunekit.models.tiny import build_tiny_backbone
from prunekit.tokens.cutting import cut

CLS, SEP = 101, 102


def padded(*rows):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def left(batch, longest):
    found = cut(batch, longest)
    return [ids[mask > 0].tolist() for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)]


def test_a_text_keeps_its_beginning_and_its_end_mark():
    batch = padded([CLS, 1, 2, 3, 4, SEP], [CLS, 5, SEP])
    assert left(batch, 4) == [[CLS, 1, 2, SEP], [CLS, 5, SEP]]
    assert cut(batch, 4)["input_ids"].tolist() == [[CLS, 1, 2, SEP], [CLS, 5, SEP, 0]]


@pytest.mark.parametrize(
    ("longest", "first", "second"),
    [
        (10, [1, 2, 3, 4, 5], [11, 12]),  # nothing to cut
        (9, [1, 2, 3, 4], [11, 12]),  # the longer loses
        (7, [1, 2], [11, 12]),
        (6, [1, 2], [11]),  # the odd token is the longer one's
        (5, [1], [11]),
        (4, [1], []),
    ],
)
def test_of_a_pair_the_longer_text_loses_tokens_first(longest, first, second):
    assert left(padded([CLS, 1, 2, 3, 4, 5, SEP, 11, 12, SEP]), longest) == [[CLS, *first, SEP, *second, SEP]]


def test_of_texts_of_one_length_the_second_has_the_odd_token():
    assert left(padded([CLS, 1, 2, 3, SEP, 11, 12, 13, SEP]), 6) == [[CLS, 1, SEP, 11, 12, SEP]]


def test_what_belongs_to_tokens_is_cut_alike_and_nothing_else():
    batch = padded([CLS, 1, 2, 3, SEP, 11, SEP]) | {
        "token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 1, 1]]),
        "protected": torch.tensor([[True, False, False, False, False, False, True]]),
        "labels": torch.arange(7)[None],  # as many labels as there are tokens
    }
    found = cut(batch, 5)
    assert found["input_ids"].tolist() == [[CLS, 1, SEP, 11, SEP]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert found["protected"].tolist() == [[True, False, False, False, True]]
    assert found["labels"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_a_text_full_of_separators_is_no_longer_than_others():
    assert left(padded([CLS, SEP, 1, SEP, 2, SEP, SEP]), 4) == [[CLS, SEP, SEP, SEP]]


def test_without_a_length_or_a_mask():
    batch = padded([CLS, 1, 2, SEP])
    assert torch.equal(cut(batch, None)["input_ids"], batch["input_ids"])
    found = cut({"input_ids": batch["input_ids"]}, 3)
    assert (found["input_ids"].tolist(), found["attention_mask"].tolist()) == ([[CLS, 1, SEP]], [[1, 1, 1]])


@pytest.mark.parametrize("of_pairs", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta"])  # one separator between two texts, or two
def test_it_is_what_a_tokenizer_leaves(tmp_path, family, of_pairs):
    build_tiny_backbone(tmp_path / family, family)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / family)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    draw = random.Random(0)
    texts = [[" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(32)] for _ in range(1 + of_pairs)]
    for longest in (7, 9, 14):
        wanted = tokenizer(*texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        found = cut(tokenizer(*texts, padding=True, return_tensors="pt"), longest)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
