import io
import re

import pytest
from rich.console import Console
from support.run_result import RESULT, changed

from prunekit.results.summary import (
    Row,
    format_points,
    format_score,
    format_significant,
    markdown,
    noise,
    print_result,
    rows,
    speed_verdict,
    verdicts,
)


def printed(result, width, **options):
    stream = io.StringIO()
    print_result(result, console=Console(file=stream, width=width, highlight=False, color_system=None), **options)
    return stream.getvalue()


def line(text, start):
    return next(found for found in text.splitlines() if found.strip().startswith(start))


def words(text):
    return re.split(r"\s{2,}", text.strip())


# -- what the table says -----------------------------------------------------------------------------


def test_the_quality_of_both_and_the_drop_in_points():
    text = printed(RESULT, 80)
    assert words(line(text, "accuracy")) == ["accuracy, 445 test texts", "96.80", "96.20", "-0.60 points"]
    assert words(line(text, "f1")) == ["f1, 445 test texts", "96.12", "96.34", "+0.22 points"]


def test_f1_says_which_class_it_is_of_and_how_to_have_the_other():
    found = changed(score__positive="legit", score__negative="spam")
    assert words(line(printed(found, 80), "f1"))[0] == "f1 of legit, 445 test texts"
    assert ("F1", "of legit, the second class; 'task.labels=[legit,spam]' makes it of spam", "plain") in verdicts(found)
    assert not any(label == "F1" for label, _, _ in verdicts(RESULT))


def test_a_model_that_answers_one_class_only_is_said():
    found = verdicts(changed(score__one_class={"pruned": "ham"}))
    sentence = "the pruned model calls all 445 test texts ham: it has learnt nothing, or lost it"
    assert ("one class", sentence, "bad") in found
    assert len([label for label, _, _ in found if label == "one class"]) == 1


def test_flops_against_unpadded_come_first_and_those_against_padded_say_to_what_length():
    text = printed(RESULT, 80)
    assert words(line(text, "GFLOPs per text, unpadded"))[1:] == ["2.12", "0.712", "2.98x fewer"]
    assert words(line(text, "GFLOPs per text, padded to 128"))[1:] == ["2.75", "0.712", "3.85x fewer"]
    assert text.index("unpadded") < text.index("padded to 128")


def test_tokens_layer_by_layer():
    found = words(line(printed(RESULT, 80), "tokens per text"))
    assert found == ["tokens per text, mean of layers", "126", "73.3", "126 126 101 55 22 9 by layer"]


def test_speed_at_both_batch_sizes_against_both_layouts():
    text = printed(RESULT, 80)
    assert words(line(text, "CPU ms per batch of 32, packed"))[1:] == ["369", "172", "2.15x faster"]
    assert words(line(text, "CPU ms per batch of 32, padded"))[1:] == ["412", "172", "2.40x faster"]


def test_where_dense_is_faster_the_table_says_so():
    text = printed(RESULT, 80)
    assert words(line(text, "CPU ms per batch of 1, packed"))[1:] == ["10.1", "12.4", "0.81x: dense is faster here"]
    assert words(line(text, "CPU ms per batch of 1, padded"))[1:] == ["11.2", "12.4", "0.90x: dense is faster here"]
    assert line(text, "batch 1").strip() == "batch 1    0.81x where the FLOPs say 2.98x: dense is faster here"


def test_how_much_of_the_nominal_reduction_the_clock_shows():
    assert verdicts(RESULT)[2] == ("batch 32", "2.15x where the FLOPs say 2.98x: 72 % of it is realised", "plain")


def test_a_noisy_measurement_says_how_noisy():
    result = changed(speed__1__control=1.25)
    assert verdicts(result)[2][1].endswith("72 % of it is realised (noise ±25 %)")


@pytest.mark.parametrize(
    ("changes", "sentence", "tone"),
    [
        ({}, "3.00x asked, 2.98x on validation: met within 2 %", "good"),
        (
            {"budget__met": False, "budget__reached": 2.5},
            "3.00x asked, 2.50x on validation: MISSED, +20.0 % FLOPs, 2 % allowed",
            "bad",
        ),
        (
            {"budget__met": False, "budget__reached": 4.0},
            "3.00x asked, 4.00x on validation: MISSED, -25.0 % FLOPs, 2 % allowed",
            "bad",
        ),
        ({"budget__asked": None}, "2.98x fewer FLOPs on validation; none was asked for", "plain"),
    ],
)
def test_the_budget_asked_and_reached_and_whether_it_was_met(changes, sentence, tone):
    assert verdicts(changed(**changes))[0] == ("budget", sentence, tone)


GOAL = {
    "asked_ms": 12.0, "batch": 8, "threads": 1, "dtype": "fp32", "device": "cpu", "clock": "cpu", "split": "validation",
    "texts": 64, "budget": 3.0, "predicted_ms": 11.6, "fastest_ms": 6.25, "dense_ms": 40.0,
    "predicted_as_trained_ms": 11.7, "measured_ms": 11.9, "ms": {"median": 11.9, "q25": 11.5, "q75": 12.2},
    "p95_ms": 13.1, "control": 1.0, "rounds": 5, "load": None, "margin": 0.03, "tolerance": 0.05,
    "feasible_ms": [6.25, 40.0], "met": True,
}  # fmt: skip


def test_a_latency_that_was_asked_for_is_said_with_what_was_predicted_and_measured():
    label, sentence, tone = verdicts(changed(goal=GOAL))[1]
    assert (label, tone) == ("goal", "good")
    assert sentence == (
        "12 ms asked per batch of 8, 11.6 predicted, 11.9 measured (p95 13.1): met within 5 %; "
        "feasible here: 6.25 to 40.0 ms; CPU time on 1 thread, fp32"
    )
    missed = GOAL | {"met": False, "measured_ms": 14.0, "control": 1.2}
    label, sentence, tone = verdicts(changed(goal=missed))[1]
    assert tone == "bad"
    assert "14.0 measured (p95 13.1): MISSED, 5 % allowed; feasible here" in sentence
    assert sentence.endswith("(noise ±20 %)")


def test_texts_that_were_cut_are_counted_by_split():
    assert verdicts(RESULT)[-1] == ("cut texts", "train 1210", "plain")
    assert verdicts(changed(truncated={}))[-1][0] == "clock"


def test_a_stored_result_says_that_nothing_was_run_and_where_it_lies():
    text = printed(RESULT, 80, path="runs/here", stored=True)
    assert "stored result, nothing was run (force=true runs it again)\n runs/here" in text
    assert "teacher 140 s, fit 202 s, total 390 s\n runs/here" in printed(RESULT, 80, path="runs/here")


def test_a_dense_run_has_nothing_to_compare_and_no_verdict_on_a_budget():
    result = changed(method="dense", budget__asked=None, speed=[])
    text = printed(result, 80)
    assert words(line(text, "accuracy")) == ["accuracy, 445 test texts", "96.80"]
    assert "fewer" not in text
    assert "budget" not in text
    assert "| accuracy, 445 test texts | 96.80 |" in markdown(result)


def test_a_result_without_a_teachers_score_shows_no_drop():
    result = changed(score__pruned_all={"pearson": 0.5}, score__dense_all={})
    assert rows(result)[0][1] == Row("pearson, 445 test texts", "-", "50.00", "-")


# -- what it never does ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width):
    result = changed(
        tokens_per_layer=[126.3] * 24,
        mean_length=1234.5,
        flops__dense_unpadded_g=12345.6,
        flops__dense_padded_g=99999.9,
    )
    text = printed(result, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert len(re.findall(r"\b126\b", text)) == 25  # 24 layers and their mean
    for number in ("12346", "100000", "1234", "0.712", "369", "172", "2.98x"):
        assert number in text


def test_the_markdown_has_the_same_cells():
    text = markdown(RESULT)
    assert text.startswith(
        "**top on bbc_news, minilm, seed 1**\n\n| | dense | top | top against dense |\n|---|---:|---:|---|\n"
    )
    for section in rows(RESULT):
        for row in section:
            assert f"| {row.what} | {row.dense} | {row.pruned} | {row.gain} |\n" in text
    assert "- budget: 3.00x asked, 2.98x on validation: met within 2 %\n" in text
    assert text.endswith("- cut texts: train 1210\n")


# -- numbers into words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (0.7123, "0.712"),
        (9.0, "9.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12346"),
    ],
)
def test_three_significant_digits_and_never_less_than_the_whole_part(value, shown):
    assert format_significant(value) == shown


def test_points_have_a_sign_except_for_none():
    assert [format_points(change) for change in (0.006, -0.0123, 0.00001, -0.00001)] == [
        "+0.60 points",
        "-1.23 points",
        "0.00 points",
        "0.00 points",
    ]
    assert format_score(0.6034) == "60.34"


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.5, "1.50x faster"),
        (1.01, "1.01x: no difference"),
        (0.99, "0.99x: no difference"),
        (0.5, "0.50x: dense is faster here"),
    ],
)
def test_a_ratio_within_the_noise_is_no_difference(ratio, said):
    assert speed_verdict(ratio, 0.02)[0] == said


def test_noise_is_the_control_in_either_direction_and_at_least_two_percent():
    assert noise(1.0) == noise(None) == 0.02
    assert noise(1.1) == pytest.approx(0.1)
    assert noise(0.8) == pytest.approx(0.25)
