"""What a task of one's own takes from a given model: kind and length."""

import json

import pytest
from support.folders import edit_json

from prunekit.config.errors import ConfigError
from prunekit.models.given import longest_text_of, with_settings_of
from prunekit.models.sources import find_model, is_hub_id, name_of_model

TASK = {"kind": "classification", "labels": None, "max_length": None}
CONFIG = {"model_type": "bert", "max_position_embeddings": 512, "id2label": {"0": "spam", "1": "ham"}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "my_model"


def test_the_length_is_the_model_s(folder):
    assert with_settings_of(folder, TASK) == {"kind": "classification", "labels": None, "max_length": 512}


def test_what_the_task_says_is_kept(folder):
    task = {"kind": "classification", "labels": ["ham", "spam"], "max_length": 64}
    assert with_settings_of(folder, task) == task


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "classification"),
        ({"id2label": {"0": "LABEL_0"}}, "regression"),
        ({"id2label": None}, "classification"),
        ({"id2label": [1]}, "classification"),
        ({"problem_type": "regression"}, "regression"),
        ({"problem_type": "multi_label_classification"}, "multilabel"),
    ],
)
def test_the_head_decides_the_kind(folder, changes, kind):
    edit_json(folder / "config.json", **changes)
    assert with_settings_of(folder, TASK)["kind"] == kind


def test_the_length_is_that_of_training_where_it_is_known(folder):
    assert longest_text_of(folder) == 512
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    assert longest_text_of(folder) == 256
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert longest_text_of(folder) == 512
    edit_json(folder / "config.json", model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert longest_text_of(folder) == 512
    (folder / "tokenizer.json").write_text('{"truncation": {"max_length": 128}}')
    assert longest_text_of(folder) == 128
    (folder / "prunekit.json").write_text('{"max_length": 96}')
    assert longest_text_of(folder) == 96


@pytest.mark.parametrize("given", ["~nobody_of_this_name/m", "~[|*", "m" * 300, "a\tb"])
def test_what_cannot_be_the_name_of_a_folder_is_no_model(given):
    with pytest.raises(ConfigError, match="is no model: there is no folder") as raised:
        find_model(given, {"HF_HUB_OFFLINE": "1"})
    assert max(map(len, str(raised.value).splitlines())) < 300


def test_a_model_is_found_by_folder_run_or_hub_id(folder, tmp_path, monkeypatch):
    assert find_model(str(folder)) == folder
    run = tmp_path / "s1-ab"
    run.mkdir()
    folder.rename(run / "model")
    assert find_model(str(run)) == run / "model"
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_text("")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert find_model("org/name", {"HF_HUB_CACHE": str(tmp_path / "hub")}) == snapshot


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("./nowhere", "there is no folder /"),
        ("org/name", "there is no folder /.*; hub org/name .HF_HUB_OFFLINE is set"),  # paths may be long
        ("empty", "/.* has no config.json"),
    ],
)
def test_what_is_no_model_says_where_it_looked(tmp_path, monkeypatch, given, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"model={given} is no model: {why}"):
        find_model(given, {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)})


def test_runs_are_called_after_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").mkdir()
    assert name_of_model(".", tmp_path / "my_model") == "my_model"
    assert name_of_model("./my_model/checkpoint-500", tmp_path / "my_model" / "checkpoint-500") == (
        "my_model-checkpoint-500"
    )
    assert name_of_model("org/name", tmp_path / "snapshots" / "abc") == "name"
    assert not is_hub_id("my_model")
    assert is_hub_id("org/name-v1.5")
    assert not is_hub_id("../org/name")
    assert not is_hub_id("~/model")


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("value", ["many", [], {}, -1, 10**400, float("inf"), float("-inf"), float("nan"), None])
def test_lengths_that_are_none_say_nothing(tmp_path, family, value):
    for name, content in {
        "config.json": {"model_type": family, "max_position_embeddings": value, "pad_token_id": value},
        "tokenizer_config.json": {"model_max_length": value},
        "tokenizer.json": {"truncation": value},
        "prunekit.json": {"max_length": value},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert longest_text_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps({"truncation": {"max_length": value}}))
    assert longest_text_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "max_position_embeddings": 66}))
    assert longest_text_of(tmp_path) == {"bert": 66, "roberta": 65}[family]
