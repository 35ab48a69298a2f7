"""A given model is known by its weights: another content is another run, another place is the same."""

import json
import shutil

import pytest
from support.folders import classifier_folder, edit_json

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical, teacher_config
from prunekit.runs.kinds import kind_of

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


# -- texts without labels --------------------------------------------------------------------------------


def test_texts_without_labels_take_kind_and_classes_from_the_model(folder):
    task = composed(folder, "task.label=null")["task"]
    assert task["kind"] == "distilled_classification"
    assert task["labels"] == list(json.loads((folder / "config.json").read_text())["id2label"].values())
    edit_json(folder / "config.json", id2label={"0": "score"})
    task = composed(folder, "task.label=null")["task"]
    assert (task["kind"], task["labels"]) == ("distilled_regression", None)


def test_texts_without_labels_need_a_model(folder):
    with pytest.raises(ConfigError, match=r"task\.label=null, but there is no model.*\n.*\nGive model="):
        canonical(compose(["task=csv", f"task.file={folder.parents[1] / 't.csv'}", "task.label=null"])[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["method=dense"], "the model would learn its own answers"),
        (["method=topk", "loss=ce"], "loss=ce with task.label=null: there are no labels"),
        (["method=topk", "loss=kd+ce"], r"loss=kd\+ce with task.label=null"),
        (["method=top", "method.task_loss=ce"], "method.task_loss=ce with task.label=null"),
        (["method=top", "loss=ce"], "method.task_loss=ce with task.label=null"),
    ],
)
def test_without_labels_nothing_is_learned_from_labels(folder, given, message):
    cfg = composed(folder, "task.label=null", *given)
    with pytest.raises(ConfigError, match=message):
        kind_of(cfg).check(cfg, folder)


@pytest.mark.parametrize("method", ["topk", "top"])
def test_without_labels_the_loss_need_not_be_named(folder, method):
    cfg = composed(folder, "task.label=null", f"method={method}", "loss=kd")
    assert RunFolder.of(cfg) == RunFolder.of(composed(folder, "task.label=null", f"method={method}"))
    kind_of(cfg).check(cfg, folder)


# -- what is learned from --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["method=topk", "loss=ce"], ["method=topk"]),
        (["method=top", "loss=kd"], ["method=top", "method.task_loss=kd"]),
        (["method=top", "loss=kd+ce"], ["method=top"]),
        (["method=dense", "loss=kd"], ["method=dense"]),
        (["method=wanda", "task=domain_text", "loss=kd"], ["method=wanda", "task=domain_text"]),
    ],
)
def test_a_loss_is_one_run_however_it_is_spelt(one, other):
    assert RunFolder.of(canonical(compose(one)[0])) == RunFolder.of(canonical(compose(other)[0]))


def test_another_loss_is_another_run_of_the_same_teacher():
    label, teacher = (canonical(compose(["method=topk", f"loss={loss}"])[0]) for loss in ("ce", "kd"))
    assert RunFolder.of(label) != RunFolder.of(teacher)
    assert teacher_config(label) == teacher_config(teacher)
