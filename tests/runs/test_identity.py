"""A given model is known by its weights: another content is another run, another place is the same."""

import shutil

import pytest
from support.folders import classifier_folder, edit_json

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config

TABLE = "text,label\n" + "".join(f"word {row},{'red' if row % 2 else 'blue'}\n" for row in range(10))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    return classifier_folder(tmp_path / "here" / "my_model")


def composed(folder, *given):
    table = folder.parents[1] / "t.csv"
    return canonical(compose(["task=csv", f"task.file={table}", f"model={folder}", *given])[0])


def test_the_run_is_called_after_the_model_and_takes_what_the_task_leaves_open(folder):
    cfg = composed(folder)
    assert RunFolder.of(cfg).path.as_posix().startswith("runs/csv/top/my_model/3x/s1-")
    assert cfg["task"]["max_length"] == 512
    assert teacher_config(cfg) is None
    assert "package" not in cfg["backbone"]
    assert canonical(cfg) == cfg


def test_a_length_that_is_typed_is_kept(folder):
    assert composed(folder, "task.max_length=128")["task"]["max_length"] == 128
    assert compose(["task=csv"])[0]["task"]["max_length"] == 128


def test_a_copy_elsewhere_is_the_same_run_and_other_weights_are_not(folder, tmp_path):
    cfg = composed(folder)
    shutil.copytree(folder, tmp_path / "there" / "my_model")
    shutil.copytree(folder, tmp_path / "there" / "other_name")
    assert RunFolder.of(composed(tmp_path / "there" / "my_model")) == RunFolder.of(cfg)
    assert RunFolder.of(composed(tmp_path / "there" / "other_name")).hash == RunFolder.of(cfg).hash
    other = classifier_folder(tmp_path / "else" / "my_model", seed=1)
    assert RunFolder.of(composed(other)).hash != RunFolder.of(cfg).hash
    edit_json(tmp_path / "there" / "my_model" / "config.json", hidden_act="relu")
    assert RunFolder.of(composed(tmp_path / "there" / "my_model")).hash != RunFolder.of(cfg).hash


def test_what_the_teacher_would_have_been_changes_nothing(folder):
    assert RunFolder.of(composed(folder, "teacher.epochs=9")) == RunFolder.of(composed(folder))


@pytest.mark.parametrize("key", ["teacher.path", "backbone.path"])
def test_two_models_are_one_too_many(folder, key):
    with pytest.raises(ConfigError, match=rf"(?s)both name a model.*Leave {key} out"):
        composed(folder, f"{key}={folder}")
