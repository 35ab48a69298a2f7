"""What loggers show of a run's texts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prunekit.results import examples, fonts, heatmap


@pytest.fixture
def found():
    """Three texts of 3, 2 and 4 tokens through 2 layers; pruning made the second one wrong."""
    depth = np.array([2, 1, 2, 2, 0, 2, 2, 1, 0], np.uint8)
    entered = np.arange(2) <= depth[:, None]
    return examples.Examples(
        labels=np.array([0, 1, 1]),
        predicted=np.array([0, 0, 1]),
        dense=np.array([0, 1, 0]),
        lengths=np.array([3, 2, 4], np.uint16),
        counts=np.array([[3, 2], [1, 1], [3, 2]], np.uint16),
        index=np.arange(3, dtype=np.int32),
        offsets=np.array([0, 3, 5, 9], np.int32),
        ids=np.array([1, 7, 9, 1, 7, 1, 9, 9, 7], np.int32),
        depth=depth,
        scores=examples.encode_scores(np.full((9, 2), 1.0), entered),
        piece_ids=np.array([1, 7, 9]),
        pieces=np.array(["[CLS]", "not", "$good"]),
        special=np.array([True, False, False]),
        classes=("bad", "fine"),
    )


def test_texts_that_pruning_made_wrong_come_first_then_the_first_ones(found):
    assert heatmap.choose_texts(found, 2) == [1, 0]
    assert heatmap.choose_texts(found, 9) == [1, 0, 2]
    assert heatmap.choose_texts(replace(found, classes=()), 2) == [0, 1]  # values are neither right nor wrong


def test_the_table_has_a_row_per_token_with_what_became_of_it(found):
    columns, rows = heatmap.token_table(found, [1])
    assert columns == ["row", "label", "dense", "pruned", "position", "token", "layers_passed", "score_00", "score_01"]
    assert rows == [
        [1, "fine", "fine", "bad", 0, "[CLS]", 2, 1.0, 1.0],
        [1, "fine", "fine", "bad", 1, "not", 0, 1.0, None],
    ]
    json.dumps(rows, allow_nan=False)  # plain numbers


def test_values_stand_in_the_table_where_there_are_no_classes(found):
    values = replace(found, classes=(), labels=np.array([0.25, 0.5, 1.0]))
    assert heatmap.token_table(values, [0])[1][0][1] == 0.25


def test_letters_without_a_font_are_code_points_in_the_picture_and_themselves_in_the_table(found, monkeypatch):
    monkeypatch.setattr(fonts, "font_of", lambda letter: "DejaVu Sans" if letter < "\u3000" else None)
    japanese = replace(found, pieces=np.array(["[CLS]", "日本", "$good"]), classes=("悪", "fine"))
    figure = heatmap.heat_map(japanese, [1])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["[CLS]", "U+65E5 U+672C"]
    assert axes.get_title(loc="left") == "test row 1: fine; dense says fine, pruned U+60AA"
    assert heatmap.pixels(figure).shape[2] == 3  # and no warning, which would be an error here
    assert [row[5] for row in heatmap.token_table(japanese, [1])[1]] == ["[CLS]", "日本"]


def test_who_left_is_white_in_the_picture_and_who_stayed_is_not(found):
    figure = heatmap.heat_map(found, [0])
    (axes,) = figure.axes
    assert axes.images[0].get_array().mask[:, 1].tolist() == [False, True]  # "not" passed layer 0 alone
    assert [label.get_text() for label in axes.get_xticklabels()] == ["[CLS]", "not", r"\$good"]
    assert axes.get_title(loc="left") == "test row 0: bad; dense says bad, pruned bad"


def test_a_picture_has_room_for_the_first_tokens_and_says_how_many_more_there_are(found, monkeypatch):
    monkeypatch.setattr(heatmap, "WIDE", 3)
    figure = heatmap.heat_map(found, [2])
    assert figure.axes[0].get_title(loc="left").endswith("; 1 more tokens")
    assert figure.axes[0].images[0].get_array().shape == (2, 3)


def test_a_picture_is_bytes_of_red_green_and_blue(found):
    pixels = heatmap.pixels(heatmap.heat_map(found, [0, 1]))
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert pixels.std() > 0
