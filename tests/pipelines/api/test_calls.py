"""What Python asks for is the run that the command line asks for, and nothing else of the process changes."""

import json
import logging
import os
import random
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import lightning.pytorch  # noqa: F401  (what an import sets up is no disturbance)
import numpy as np
import pytest
import torch
import transformers  # noqa: F401
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from support.folders import classifier_folder
from support.run_result import CONTENT

import prunekit
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.pipelines.api import calls, hub
from prunekit.pipelines.api.arguments import Typed, task_settings, words
from prunekit.pipelines.api.pruned import PrunedModel
from prunekit.pipelines.api.undisturbed import undisturbed
from prunekit.runs.folder import RunFolder
from prunekit.runs.identity import canonical
from prunekit.runs.result import RunResult

RESULT = RunResult.from_json(CONTENT)
COLOURS = ("red", "green", "blue")
SMALL = {
    "trainer": "debug",
    "trainer.max_steps": 2,
    "plots": False,
    "examples": 8,
    "bench.enabled": False,
    "logger.wandb.enabled": False,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("models") / "my_model", names=COLOURS)


@pytest.fixture
def table(tmp_path):
    rows = [f"word number {row} of some text" for row in range(80)]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(rows) + "\n")
    return tmp_path / "texts.csv"


# -- settings ----------------------------------------------------------------------------------------


def test_settings_are_typed_as_on_the_command_line():
    settings = {"method": "topk", "method.train": False, "trainer.epochs": 3, "task.label": None, "a": [1, "b c"]}
    assert words(settings) == [
        "method=topk", "method.train=false", "trainer.epochs=3", "task.label=null", "a=[1,'b c']",
    ]  # fmt: skip
    assert words({"a": Typed("[1,2]"), "b": "[1,2]", "c": "it's"}) == ["a=[1,2]", "b='[1,2]'", "c='it\\'s'"]


@pytest.mark.parametrize("text", ["plain", "a b", "it's", 'say "x"', "null", "3", "a=b", "[x]", "tab\\", "größe, cm"])
def test_any_text_arrives_as_it_is(text):
    assert compose(words({"task": "csv", "task.text": text}))[0]["task"]["text"] == text


def test_texts_are_a_list_of_texts_or_of_pairs(tmp_path):
    found = task_settings(["a", "b"], None, text="body", text_pair=None, cache_dir=tmp_path)
    assert [json.loads(line) for line in Path(found.pop("task.file")).read_text().splitlines()] == [
        {"text": "a"},
        {"text": "b"},
    ]
    assert found == {"task.text": "text", "task.label": None}
    found = task_settings([("a", "b"), ("c", "d")], [1, 0], text="text", text_pair=None, cache_dir=tmp_path)
    rows = [json.loads(line) for line in Path(found.pop("task.file")).read_text().splitlines()]
    assert rows[1] == {"text": "c", "text_pair": "d", "label": 0}
    assert found == {"task.text": "text", "task.text_pair": "text_pair", "task.label": "label"}


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], None, "0 texts are given"),
        (["one"], None, "1 texts are given"),
        (["a", 2], None, "text 1 of the list is 2"),
        ([("a", "b"), "c"], None, "text 1 of the list is 'c'"),
        (["a", "b"], ["x"], r"labels=\['x'\] for 2 texts"),
        ([{"text": "a"}, {"text": "b"}], ["x", "y"], "beside a table"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(tmp_path, texts, labels, message):
    with pytest.raises(ConfigError, match=message) as error:
        task_settings(texts, labels, text="text", text_pair=None, cache_dir=tmp_path)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("model", [3, object()])
def test_a_model_is_a_folder_an_id_or_one_of_transformers(model, table):
    with pytest.raises(ConfigError, match="the model given is of type"):
        prunekit.prune(model, table)


# -- the same run ------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The folders of the runs that were asked for."""
    folders = []

    def run(cfg):
        folders.append(RunFolder.of(canonical(cfg)))
        return RESULT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunekit.pipelines.run.run", run)
    return folders


def test_prune_is_the_run_of_the_command_line(own, table, asked):
    pruned = prunekit.prune(own, table, budget="2x", settings={"trainer.epochs": 2})
    typed = ["method=topk", f"model={own}", "task=csv", f"task.file={table}", "task.label=null"]
    expected = RunFolder.of(canonical(compose([*typed, "budget=2x", "trainer.epochs=2"])[0]))
    assert asked == [expected]
    assert (pruned.path, pruned.result) == (expected.path.absolute(), RESULT)


def test_fit_is_the_run_of_the_command_line(table, asked, tmp_path):
    (tmp_path / "t.csv").write_text("body,queue\na,x\nb,y\n")
    prunekit.fit(tmp_path / "t.csv", text="body", label="queue", backbone="tiny", budget="2x")
    typed = ["method=topk", "backbone=tiny", "task=csv", f"task.file={tmp_path / 't.csv'}", "budget=2x"]
    assert asked == [RunFolder.of(canonical(compose([*typed, "task.text=body", "task.label=queue"])[0]))]


# -- nothing else changes ----------------------------------------------------------------------------


def state():
    """What a program may rely on."""
    return {
        "levels": {name: logging.getLogger(name).level for name in ("", "transformers", "lightning.pytorch", "mine")},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in ("", "transformers", "mine")},
        "warnings": list(warnings.filters),
        "random": random.getstate()[1][:-1],  # without how many of them were drawn: type checks of the tests draw some
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "arguments": list(sys.argv),
        "hydra": GlobalHydra.instance().hydra,
        "store": {name: set(node) for name, node in ConfigStore.instance().repo.items() if isinstance(node, dict)},
    }


def changed(before):
    """What is not as it was."""
    return {name: (before[name], value) for name, value in state().items() if value != before[name]}


def disturb():
    from prunekit.console import silence_libraries

    silence_libraries()
    logging.getLogger("mine").addHandler(logging.NullHandler())
    logging.getLogger("mine").setLevel(logging.CRITICAL)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    torch.set_num_threads(torch.get_num_threads() + 1)
    os.environ["PL_GLOBAL_SEED"] = "5"
    warnings.simplefilter("ignore")
    ConfigStore.instance().store(name="mine", node={}, group="mine")
    GlobalHydra.instance().clear()


def test_what_a_run_changes_is_given_back():
    compose([])  # what Hydra sets up when it is first used is no disturbance either
    before = state()
    with undisturbed([]):
        assert sys.argv == ["train.py"]
        disturb()
        assert all(state()[name] != before[name] for name in before if name != "hydra")
    assert changed(before) == {}


def test_it_is_given_back_after_an_error_too(own, table):
    before = state()
    with pytest.raises(ConfigError, match=r"no key trainer\.epoch"):
        prunekit.prune(own, table, settings={"trainer.epoch": 3})
    assert changed(before) == {}


# -- what comes out ----------------------------------------------------------------------------------


@pytest.fixture
def pruned(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", ".sha256"):
        (tmp_path / "run" / "model" / name).write_text(name)
    return PrunedModel(tmp_path / "run", RESULT)


def test_save_copies_the_model_into_a_new_folder(pruned, tmp_path):
    folder = pruned.save(tmp_path / "copy")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in pruned.folder.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        pruned.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "run"]


class Hub:
    """A stand-in for huggingface_hub.HfApi."""

    calls: ClassVar[list] = []

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo, *, private, exist_ok):
        assert exist_ok
        self.calls.append(("create", repo, private, self.token))
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, commit_message):
        self.calls.append(("upload", repo_id, folder_path, ignore_patterns))


def test_push_uploads_the_model_with_its_card_and_without_seals(pruned, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert pruned.push_to_hub("me/my_model-3x", private=True, token="t") == "https://hub/me/my_model-3x"
    assert Hub.calls == [
        ("create", "me/my_model-3x", True, "t"),
        ("upload", "me/my_model-3x", pruned.folder, [".*", "**/.*"]),
    ]


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(pruned, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: pytest.fail("the hub was asked"))
    for name in ("my_model", "a/b/c", "me/"):
        with pytest.raises(ConfigError, match=r"Allowed: owner/name"):
            pruned.push_to_hub(name)
    (pruned.folder / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"has no README\.md"):
        pruned.push_to_hub("me/my_model-3x")


def test_what_the_hub_says_is_told_in_three_lines(pruned, monkeypatch):
    def refuse(self, repo, **_):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(ConfigError, match=r"me/x cannot be uploaded \(no route to host\)") as error:
        hub.push_folder(pruned.folder, "me/x")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.slow
def test_texts_alone_prune_a_model_and_the_copy_is_measured(own, table, tmp_path, capsys):
    before = state()
    settings = SMALL | {"data.cache_dir": str(tmp_path / "cache"), "trainer.epochs": 1}
    found = prunekit.prune(own, table, budget="1.2x", folder=tmp_path / "runs", settings=settings)
    assert changed(before) == {}
    score = found.report().score
    assert (score.metric, score.dense, score.rows) == ("agreement", 1.0, 16)
    assert score.dense_all["kl"] == pytest.approx(0, abs=1e-6)
    assert "agreement with dense" in capsys.readouterr().out
    assert len(found(["some text"]).labels) == 1
    assert "agreement" in (found.folder / "README.md").read_text()
    again = prunekit.prune(own, table, budget="1.2x", folder=tmp_path / "runs", settings=settings)
    assert (again.path, again.result) == (found.path, found.result)
    # measured on what the dense model answers, the copy has the agreement of the run
    texts = table.read_text().splitlines()[1:]
    answers = prunekit.load(own, engine="packed")(texts).labels
    rows = [{"text": text, "label": answer} for text, answer in zip(texts, answers, strict=True)]
    dense = prunekit.evaluate(own, file=rows, settings={"data.cache_dir": str(tmp_path / "cache")})
    assert (dense.score, dense.rows, dense.flops["flops_vs_unpadded"]) == (1.0, 80, 1.0)
    copy = found.save(tmp_path / "copy")
    measured = prunekit.evaluate(copy, file=rows, settings={"data.cache_dir": str(tmp_path / "cache")})
    assert measured.flops["flops_vs_unpadded"] == pytest.approx(1.2, abs=0.05)
    expected = prunekit.load(copy, engine="packed")(texts).labels
    assert measured.score == pytest.approx(np.mean([one == two for one, two in zip(answers, expected, strict=True)]))


def test_the_three_calls_are_found_without_importing_torch():
    assert calls.prune is prunekit.prune
    assert {"prune", "fit", "evaluate"} <= set(dir(prunekit)) | set(prunekit.__all__)
