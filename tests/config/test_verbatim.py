"""What is typed for a text is that text, whatever Hydra or YAML would read in it; messages show little of a value."""

import os

import pytest

from prunekit.cli.settings import parse_settings
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError, listed, quoted, shell_words, shorten, shown
from prunekit.config.validation import validate
from prunekit.config.verbatim import quote_texts


def value(*overrides, key="task.text"):
    cfg, choices = compose(["task=csv", *overrides])
    validate(cfg, choices)
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("0", "0"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("1e5", "1e5"),
        ("1.0", "1.0"),
        ("TRUE", "TRUE"),
        ("nan", "nan"),
        ("2024-01-01", "2024-01-01"),
        ("Question Text", "Question Text"),
        ("Größe (cm)", "Größe (cm)"),
        ("a=b", "a=b"),
        ("a,b", "a,b"),
        ("#1", "#1"),
        ("{a: b}", "{a: b}"),
        ('it\'s "x"', 'it\'s "x"'),
        ("a\\", "a\\"),
        ("a\\'b", "a\\'b"),
        ("'null'", "null"),
        ('"1e5"', "1e5"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_a_text_is_what_was_typed(typed, text):
    assert value(f"task.text={typed}") == text


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("queue", "queue"),
        ("0", "0"),
        ("a;b", "a;b"),
        ("[sport,politics]", ["sport", "politics"]),
        ("[0,1e5,yes]", ["0", "1e5", "yes"]),
    ],
)
def test_a_label_is_a_text_or_a_list_of_texts(typed, label):
    assert value(f"task.label={typed}", key="task.label") == label


@pytest.mark.parametrize("separator", [";", ",", "|", "//"])
def test_a_separator_is_what_was_typed(separator):
    assert value(f"task.label_separator={separator}", key="task.label_separator") == separator


def test_an_empty_list_of_columns_is_no_label():
    with pytest.raises(ConfigError, match=r"task.label=\[\] is empty"):
        value("task.label=[]")


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[0,1]", ["0", "1"]),
        ("[no, yes]", ["no", "yes"]),
        ("[true, False]", ["true", "False"]),
        ("[1.0, 2e3, 'a, b', 01]", ["1.0", "2e3", "a, b", "01"]),
        ("[é, (x)]", ["é", "(x)"]),
        ("[]", []),
    ],
)
def test_a_list_of_texts_is_what_was_typed(typed, texts):
    assert value(f"task.labels={typed}", key="task.labels") == texts


def test_a_template_can_be_typed_with_a_column_that_has_a_blank():
    typed = 'task.domain.template={{ row["Question Text"] }}: {{ a }}, {{ b }}'
    cfg, _ = compose(["task=domain_text", "method=wanda", "backbone=smollm2", typed])
    assert cfg["task"]["domain"]["template"] == '{{ row["Question Text"] }}: {{ a }}, {{ b }}'


def test_in_a_sweep_commas_separate_values():
    assert quote_texts(["task.text=a,0"], swept=True) == ["task.text=a,0"]
    assert quote_texts(["task.text=a,0"]) == ["task.text='a,0'"]
    assert value("task.text=0") == "0"  # as a job of that sweep is given it


def test_what_is_no_text_is_left_to_hydra():
    kept = ["seed=1", "task.labels=null", "task.text=${budget}", "budget=3x", "method=top", "~trainer", "runs_dir=7"]
    assert quote_texts(kept) == kept


@pytest.mark.parametrize(
    ("yaml", "found"),
    [
        ("labels: [no, yes]", ["no", "yes"]),
        ("labels: [0, 1]", ["0", "1"]),
        ("labels: [010, 1_0]", ["010", "1_0"]),
        ("labels: [1e5, 2024-01-01]", ["1e5", "2024-01-01"]),
        ('labels: ["no", on]', ["no", "on"]),
    ],
)
def test_a_file_says_texts_without_quotes(tmp_path, monkeypatch, yaml, found):
    monkeypatch.setattr("prunekit.config.search_path.plugin_dirs", lambda: [tmp_path])
    monkeypatch.setattr("prunekit.config.composition.plugin_dirs", lambda: [tmp_path])
    monkeypatch.setattr("prunekit.config.keys.plugin_dirs", lambda: [tmp_path])
    (tmp_path / "experiment").mkdir()
    head = "# @package _global_\ndefaults:\n  - override /task: csv\n"
    (tmp_path / "experiment" / "own.yaml").write_text(f"{head}task:\n  {yaml}\n")
    assert value_of_experiment() == found


def value_of_experiment():
    cfg, choices = compose(["experiment=own"])
    validate(cfg, choices)
    return cfg["task"]["labels"]


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert value("task.file=~/x (1).csv", key="task.file") == "/home/me/x (1).csv"
    assert value("runs_dir=~", key="runs_dir") == "/home/me"
    assert parse_settings("bench", ["model=~/m", "data=~/d.csv"])["data"] == os.path.expanduser("~/d.csv")


def test_settings_of_other_verbs_take_numbers_of_any_length_apart():
    with pytest.raises(ConfigError, match=r"examples=1{77}\.\.\. is not a whole number"):
        parse_settings("bench", [f"examples={'1' * 5000}"])


# -- what a message shows ----------------------------------------------------------------------------


def test_a_message_shows_80_characters_of_a_value_on_one_line():
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 77 + "..."
    assert shorten("a\nb\ud83d\x00") == "a\\nb\\ud83d\\x00"
    assert shown([True, None, "a"]) == "[true, null, a]"
    assert shown(10**5000) == "a number of 5,001 digits"
    assert quoted("z") == "'z'"
    assert quoted(["x" * 500]) == "['" + "x" * 75 + "..."
    assert quoted({"a": 10**5000}) == "a dict"
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert quoted(nested) == "a list that is nested too deep"
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_what_to_type_is_quoted_for_a_shell():
    assert shell_words("task.text", "null") == "'task.text=\"null\"'"
    assert shell_words("t", '{{ row["A B"] }}') == """'t='"'"'{{ row["A B"] }}'"'"''"""
