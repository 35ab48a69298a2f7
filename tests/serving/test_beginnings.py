"""Beginnings of long texts: their tokens are the first of the whole text's, and no more is read than is needed."""

from __future__ import annotations

import random

import pytest
from support.exported import PRUNERS, stored_run
from support.served import settings
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prunekit.runs.finished import open_run
from prunekit.serving.beginnings import beginning, divides_at_blanks
from prunekit.serving.model import load_model
from prunekit.serving.requests import RequestError, Text

SIGNS = ["a", "B", "storm", "don't", "é", "ﬁ", "☃", "世界", "\u0301", ".", "!?", "1984", "<x>", "_", "e\u0301"]
BLANKS = [" ", " ", " ", "  ", "\n", " \n ", "\t", "\r\n", "\u00a0", "\u3000", "\x1c"]


def wrapped(model, normalizer, pre_tokenizer):
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", truncation_side="right")


def word_pieces():
    letters = "abcdefghijklmnopqrstuvwxyz019.!?'_<>"
    words = ["[UNK]", "storm", *letters, *(f"##{letter}" for letter in letters)]
    model = models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    return wrapped(model, normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer())


def byte_pairs(pre_tokenizer=None):
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "[UNK]"]
    merges = [("Ġ", "s"), ("t", "o"), ("r", "m"), ("Ġs", "to"), ("Ġ", "Ġ"), ("!", "Ċ"), ("Ċ", "Ġ"), (".", "Ġ")]
    words = dict.fromkeys([*sorted(alphabet), *("".join(pair) for pair in merges)])
    model = models.BPE({word: number for number, word in enumerate(words)}, merges, unk_token="[UNK]")
    return wrapped(model, None, pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False))


def unigrams(split=True):
    words = [
        ("[UNK]", -9.0),
        ("▁", -2.0),
        ("▁a", -1.5),
        ("storm", -1.0),
        ("a▁", -0.5),
        *((one, -3.0) for one in "aBstorm.!1_"),
    ]
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return wrapped(models.Unigram(words, 0, False), normalizer, pre_tokenizers.Metaspace(split=split))


DIVIDING = {"word pieces": word_pieces, "byte pairs": byte_pairs, "unigrams": unigrams}


@pytest.mark.parametrize("kind", DIVIDING)
def test_the_tokens_of_a_beginning_are_the_first_of_the_whole_text(kind):
    tokenizer = DIVIDING[kind]()
    assert divides_at_blanks(tokenizer)
    rng = random.Random(0)
    shorter = 0
    for _ in range(300):
        text = "".join(rng.choice(SIGNS) + (rng.choice(BLANKS) if rng.random() < 0.7 else "") for _ in range(20))
        begun = beginning(text, rng.randrange(1, len(text)))
        shorter += begun != text
        first, whole = (tokenizer(one)["input_ids"] for one in (begun, text))
        assert whole[: len(first)] == first, (begun, text)
    assert shorter > 200


def test_tokenizers_whose_tokens_may_reach_over_blanks_read_whole_texts():
    left = word_pieces()
    left.truncation_side = "left"
    phrase = word_pieces()
    phrase.add_tokens([AddedToken("New York")])
    blanks_away = word_pieces()
    blanks_away.backend_tokenizer.normalizer = normalizers.Replace(" ", "_")
    undivided = byte_pairs(pre_tokenizers.ByteLevel(use_regex=False))
    for tokenizer in (left, phrase, blanks_away, undivided, unigrams(split=False), wrapped(models.BPE(), None, None)):
        assert not divides_at_blanks(tokenizer)
    assert not divides_at_blanks(None)


def test_a_beginning_ends_after_a_word():
    assert beginning("the storm was long", 9) == "the storm"
    assert beginning("the storm was long", 12) == "the storm"
    assert beginning("the  storm", 5) == "the"
    assert beginning("the\n storm was", 7) == "the\n storm was"  # a tokenizer may join a sign and a line's end
    assert beginning("thestorm", 4) == "thestorm"
    assert beginning(" the storm", 2) == " the storm"
    assert beginning("short", 5) == "short"


# -- what a model reads --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = open_run(stored_run(tmp_path_factory.mktemp("served"), "topk", PRUNERS["topk"]()))
    return load_model(run, settings("threads=1", "max_length=12", "cut=true"))


class Counting:
    """A tokenizer that notes how many characters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read = tokenizer, []

    def __call__(self, *columns, **settings):
        self.read.append([sum(map(len, parts)) for parts in zip(*columns, strict=True)])
        return self.tokenizer(*columns, **settings)


def read(model, monkeypatch, *texts, cut=True):
    """The tokens of texts, and how many characters the tokenizer was given, call by call."""
    monkeypatch.setattr(model, "cut", cut)
    whole = [model.tokenizer(*text.parts, truncation=True, max_length=12)["input_ids"] for text in texts]
    counting = Counting(model.tokenizer)
    monkeypatch.setattr(model, "tokenizer", counting)
    try:
        items = model.read(texts)
    except RequestError as error:
        return str(error), counting.read
    assert items == whole
    return items, counting.read


def test_of_a_long_text_no_more_is_read_than_the_model_needs(model, monkeypatch):
    texts = [Text("texts[0]", ("the film was good " * 500,)), Text("texts[1]", ("short",))]
    items, counted = read(model, monkeypatch, *texts)
    assert [len(ids) for ids in items] == [12, 7]
    assert counted == [[93, 5]]  # of 9,000 characters


def test_more_is_read_where_the_beginning_has_too_few_tokens(model, monkeypatch):
    sparse = "\u200b" * 50 + " a" + "\u200b " * 400 + "b c " * 500  # most characters are no tokens
    items, counted = read(model, monkeypatch, Text("texts[0]", (sparse,)))
    assert (len(items[0]), counted) == (12, [[95], [383], [1535]])


def test_a_text_that_is_too_long_is_refused_by_its_beginning(model, monkeypatch):
    refusal, counted = read(model, monkeypatch, Text("texts[0]", ("the film was good " * 500,)), cut=False)
    assert (refusal, counted) == ("texts[0] has 75 tokens or more", [[93]])


def test_pairs_are_read_as_a_whole(model, monkeypatch):
    long = "the film was good " * 20
    _, counted = read(model, monkeypatch, Text("texts[0]", (long, long)))
    assert counted == [[720]]
