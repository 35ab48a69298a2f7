"""Explanations show which tokens each layer kept, alike from the model and from the packed engine."""

import copy
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from rich.cells import cell_len
from support.exported import PRUNERS, stored_run
from support.models import tiny_model

import prunekit
from prunekit.runtime.explaining import explain
from prunekit.runtime.picture import Story, broken, plain, svg

STORY = Story(("[CLS]", "a", "late", "goal", "[SEP]"), (3, 1, 0, 2, 1), 3, "sport 98 %")


def test_a_dropped_token_leaves_a_dot_in_the_text():
    assert plain(STORY).split("\n") == [
        "sport 98 % | 5 tokens, 2.3 kept per layer on average",
        "",
        "text         5  [CLS] a late goal [SEP]",
        "layer 0      4  [CLS] a ·    goal [SEP]",
        "layer 1      2  [CLS] · ·    goal ·",
        "layer 2      1  [CLS] · ·    ·    ·",
    ]


def test_no_line_of_a_long_text_is_wider_than_80_columns():
    wide = Story(("[CLS]", *["日本語の言葉", "x" * 90] * 20), (2,) * 41, 2, "sport 98 %")
    lines = plain(wide).split("\n")
    assert max(map(cell_len, lines)) <= 80
    assert "x" * 23 + "…" in lines[2]
    assert lines[2].startswith("text        41  [CLS] 日本語の言葉 ")
    assert lines[6].startswith(" " * 16 + "x")  # the second part names no rows again


def test_lines_are_broken_before_the_token_that_does_not_fit():
    assert broken([3, 4, 2, 9, 1], 9) == [range(0, 3), range(3, 4), range(4, 5)]
    assert broken([20, 1], 9) == [range(0, 1), range(1, 2)]


def test_the_picture_is_whole_and_shows_each_token_until_the_layer_that_drops_it():
    drawn = svg([STORY])
    ET.fromstring(drawn)
    assert re.findall(r"(?:href|src|url)", drawn) == []  # nothing is fetched
    rows = {}
    for y, more, word in re.findall(r'<text x="[\d.]+" y="([\d.]+)"([^>]*monospace[^>]*)>([^<]+)<', drawn):
        rows.setdefault(float(y), []).append(f"-{word}" if "line-through" in more else word)
    assert [rows[y] for y in sorted(rows)] == [
        ["[CLS]", "a", "late", "goal", "[SEP]"],
        ["[CLS]", "a", "-late", "goal", "[SEP]"],
        ["[CLS]", "-a", "goal", "-[SEP]"],
        ["[CLS]", "-goal"],
    ]


def test_text_in_a_picture_cannot_become_markup():
    drawn = svg([Story(("<script>", "&"), (1, 1), 1, "<b>")])
    ET.fromstring(drawn)
    assert "<script" not in drawn
    assert "<b>" not in drawn


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stored_run(tmp_path_factory.mktemp("explained"), "topk", PRUNERS["topk"]())


def test_the_model_and_the_packed_engine_explain_a_text_alike(run):
    text = "the match ended in a draw"
    (own,) = prunekit.load(run).explain(text).stories
    (packed,) = prunekit.load(run, engine="packed", cls_last=False).explain([text]).stories
    assert own == packed
    assert own.tokens[0] == "[CLS]"
    # of 22 tokens topk keeps 0.6, 0.4 and 0.2, rounded up or to [CLS] as the policy does
    assert own.counts == [22, 22, 13, 9, 4]
    assert re.fullmatch(r"[01] \d\d %", own.answer)


def test_the_packed_engine_says_that_its_last_layer_is_for_the_first_token(run):
    explanation = prunekit.load(run, engine="packed").explain(["a", ("a", "b")])
    assert [story.counts[-1] for story in explanation.stories] == [1, 1]
    assert str(explanation).endswith("(the last layer is computed for the first token alone: the head reads no other)")
    assert "<svg" in explanation._repr_html_()


def test_a_copy_of_a_model_explains_itself(run):
    model = prunekit.load(run)
    twin = copy.deepcopy(model)
    assert twin.explain.args[0] is twin
    assert not [name for name in model.state_dict() if "explain" in name]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], ValueError, "no text; give one or more"),
        (5, TypeError, "explain was given 5.\nAllowed: a text"),
        ([("a", "b", "c")], TypeError, "explain was given ('a', 'b', 'c')."),
    ],
)
def test_what_is_no_text_is_refused(run, given, error, words):
    with pytest.raises(error, match=re.escape(words)):
        prunekit.load(run).explain(given)


def test_models_that_answer_for_each_token_are_refused(run):
    model, tokenizer = tiny_model(head="TokenClassification"), prunekit.load(run, engine="packed").tokenizer
    with pytest.raises(ValueError, match="answers for each token"):
        explain(lambda batch: (torch.zeros(1, 3, 2), [[[0]]]), tokenizer, model.config, 8, "a")


def test_without_a_tokenizer_there_is_nothing_to_read_texts_with():
    with pytest.raises(ValueError, match="no tokenizer"):
        explain(lambda batch: None, None, tiny_model().config, None, "a")
