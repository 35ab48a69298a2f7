"""What a run's last lines say: the verdict in a sentence, what to try, and what to type next."""

import io
import re
import shlex

import pytest
from rich.console import Console
from support.run_result import RESULT, changed

from prunekit.cli.settings import parse_settings
from prunekit.results.closing import advice, headline, next_commands
from prunekit.results.summary import print_result, print_teacher

# what gives no advice: no point lost, nothing cut, faster everywhere, a test of many rows
GOOD = {"score__rows": 2000, "truncated": {}, "speed__0__speedup_vs_packed": 1.3}


# -- the verdict -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "2.98x fewer FLOPs for -0.6 points; 2.1x faster at batch 32, slower at batch 1 (0.81x)"),
        (
            {"speed__0__speedup_vs_packed": 1.2},
            "2.98x fewer FLOPs for -0.6 points; 2.1x faster at batch 32, 1.2x at batch 1",
        ),
        (
            {"speed__0__speedup_vs_packed": 1.01},
            "2.98x fewer FLOPs for -0.6 points; 2.1x faster at batch 32, no faster at batch 1",
        ),
        (
            {"speed__1__speedup_vs_packed": 0.9, "speed__0__speedup_vs_packed": 1.2},
            "2.98x fewer FLOPs for -0.6 points; slower at batch 32 (0.90x), 1.2x faster at batch 1",
        ),
        ({"speed": [], "score__pruned": 0.968}, "2.98x fewer FLOPs for 0.0 points"),
        ({"speed": [], "score__pruned": 0.9704}, "2.98x fewer FLOPs and +0.2 points"),
        ({"speed": [], "flops__of": "encoder"}, "2.98x fewer FLOPs of the encoder for -0.6 points"),
        ({"method": "dense"}, ""),
    ],
)
def test_the_verdict_is_one_sentence(changes, sentence):
    assert headline(changed(**changes)) == sentence


# -- advice ------------------------------------------------------------------------------------------


def test_a_good_run_is_given_no_advice():
    assert advice(changed(**GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"score__pruned": 0.92}, "4.8 points are lost: try budget=2x, or train longer (trainer.epochs)"),
        (
            {"score__pruned": 0.92, "budget__asked": 2.0},
            "4.8 points are lost: try budget=1.5x, or train longer (trainer.epochs)",
        ),
        (
            {"score__pruned": 0.92, "budget__asked": None, "budget__reached": 6.1},
            "4.8 points are lost: try budget=4x, or train longer (trainer.epochs)",
        ),
        (
            {"score__pruned": 0.92, "budget__knob": {"name": "sparsity", "asked": 0.7, "reached": 0.7}},
            "4.8 points are lost: try method.sparsity below 0.7, or train longer (trainer.epochs)",
        ),
        (
            {"truncated": {"train": {"rows": 811, "of": 997, "max_length": 128}}},
            "81 % of the texts are cut at 128 tokens: try task.max_length=256",
        ),
        (
            {"truncated": {"train": {"rows": 8, "of": 9, "max_length": 512}}},
            "89 % of the texts are cut at 512 tokens",
        ),
        (
            {"speed__0__speedup_vs_packed": 0.8},
            "slower than dense at batch 1: give it texts in batches, as of 32; prunekit bench compares runtimes",
        ),
        (
            {"speed__0__speedup_vs_packed": 0.8, "speed__1__speedup_vs_packed": 0.9},
            "slower than dense at batch 1 and 32: it pays for longer texts and larger batches; prunekit bench compares "
            "runtimes",
        ),
        (
            {"score__rows": 64},
            "64 test texts are few: a score is known to about ±2.7 points; use more rows, or several seeds (-m "
            "seed=1,2,3)",
        ),
    ],
)
def test_advice_follows_from_the_numbers(changes, sentence):
    assert advice(changed(**(GOOD | changes))) == [sentence]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"score__one_class": {"pruned": "sport"}}, "the pruned model predicts one class only: train longer (trainer"),
        ({"score__one_class": {"dense": "sport"}}, "the dense model predicts one class only: train longer (teacher"),
        (
            {"method": "dense", "score__one_class": {"dense": "sport", "pruned": "sport"}},
            "the dense model predicts one class only: train longer (trainer",
        ),
    ],
)
def test_a_model_that_predicts_one_class_is_told_first(changes, sentence):
    found = advice(changed(**(GOOD | changes), score__pruned=0.2))
    assert found[0] == f"{sentence}.epochs), or on more rows (data.train_rows)"


# -- what to type next -------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["runs", "my runs", "it's", "/data/a=b", "a=b", "-x", "$HOME & co"])
def test_the_commands_can_be_pasted_whatever_the_folder_is_called(top):
    path = f"{top}/bbc_news/top/minilm/3x/s1-0a1b2c3d"
    report, export, bench, predict, load = [shlex.split(command) for _, command in next_commands(RESULT, path)]
    assert report[:2] == ["prunekit", "report"]
    (paths,) = parse_settings("report", report[2:])["paths"]
    assert paths.removeprefix("./") == top
    for verb, command in (("export", export), ("bench", bench), ("predict", predict)):
        assert command[:2] == ["prunekit", verb]
        assert parse_settings(verb, command[2:])["run"] == path
    assert load[0] == "model"


def test_a_translation_is_neither_exported_nor_timed():
    text = changed(score__of="text")
    assert len(next_commands(text, "r/a/b/c/d/e")) == 5
    question = changed(score__of="question")
    assert [command.split()[1] for _, command in next_commands(question, "r/a/b/c/d/e")] == ["report", "export", "="]


def test_labels_of_words_are_predicted_from_json_lines():
    words = changed(score__of="text", truncated={"test": {"rows": 0, "words": 0, "of_words": 7}})
    commands = [command for _, command in next_commands(words, "r/a/b/c/d/e")]
    assert [command.split()[1] for command in commands] == ["report", "predict", "="]
    assert commands[1].endswith("data=new.jsonl out=predicted.jsonl")


def test_vectors_are_served_and_encoded():
    vectors = changed(score__pruned_all={"spearman": 0.8, "cosine": 0.9})
    commands = [command for _, command in next_commands(vectors, "r/a/b/c/d/e")]
    assert [command.split()[1] for command in commands] == ["report", "export", "serve", "="]
    assert commands[-1].endswith(".encode(texts)")


def printed(result, width=80, **options):
    stream = io.StringIO()
    print_result(result, console=Console(file=stream, width=width, highlight=False, color_system=None), **options)
    return stream.getvalue()


def test_verdict_advice_folder_and_commands_come_last_in_this_order():
    text = printed(changed(score__pruned=0.92), path="runs/bbc_news/top/minilm/3x/s1-0a1b2c3d")
    order = [" verdict  ", " advice  ", " teacher 140 s", " next\n prunekit report runs ", "prunekit.load("]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_closing_lines_fit_the_terminal(width):
    text = printed(changed(score__pruned=0.92, score__rows=64), width)
    assert max(map(len, text.splitlines())) <= width


def test_a_teacher_in_the_middle_of_a_run_is_one_line():
    stream = io.StringIO()
    console = Console(file=stream, width=80, highlight=False)
    dense = changed(method="dense")
    print_teacher(dense, "runs/x", stored=False, console=console)
    print_teacher(dense, "runs/x", stored=True, console=console)
    assert stream.getvalue() == (
        "teacher    trained in 06:30: accuracy 96.80 on 445 test texts\n"
        "teacher    found, not trained again: accuracy 96.80 on 445 test texts\n"
    )


# -- colours -----------------------------------------------------------------------------------------


def coloured(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    print_result(
        changed(budget__met=False, score__pruned=0.92),
        "runs/a/b/c/d/s1-x",
        console=Console(file=stream, width=80, highlight=False, force_terminal=True, color_system="standard"),
    )
    return stream.getvalue()


def codes(text):
    return {int(code) for found in re.findall(r"\x1b\[([\d;]*)m", text) for code in found.split(";") if code}


def test_needed_text_is_readable_on_a_light_and_on_a_dark_terminal(monkeypatch):
    """Green and red are legible on both; yellow, white, black, the bright ones and backgrounds are not."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert {31, 32} <= codes(coloured(monkeypatch)) <= {0, 1, 2, 31, 32}


def test_no_color_leaves_no_colour_and_a_file_gets_no_escape_at_all(monkeypatch):
    assert codes(coloured(monkeypatch, NO_COLOR="1")) <= {0, 1, 2}
    assert "\x1b" not in printed(RESULT, path="runs/a/b/c/d/s1-x")
