"""The model of a run as the server uses it: reading, computing, and what cannot be served."""

from __future__ import annotations

import asyncio
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exported import PRUNERS, stored_run
from support.folders import edit_json
from support.models import tiny_model
from support.served import predict, serving, settings

from prunekit.config.errors import ConfigError
from prunekit.runs.finished import open_run
from prunekit.runtime.engine import PackedEngine
from prunekit.serving.model import Model, ReadText, Served, load_all, load_model
from prunekit.serving.requests import RequestError, RequestLimits, Text, texts_of
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatioTable
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(stored_run(tmp_path_factory.mktemp("served"), "topk", PRUNERS["topk"]()))


@pytest.fixture(scope="module")
def model(run):
    return load_model(run, settings("threads=1"))


def texts(*given):
    return [Text(f"texts[{number}]", (text,) if isinstance(text, str) else text) for number, text in enumerate(given)]


def test_answers_equal_the_engines_whatever_shares_the_batch(model):
    words = [
        "a bright film",
        "the story was very dull and the end was bad",
        "good",
        "the actors were good but the film was very long and dull",
    ]

    async def scene():
        models = {"synthetic": Served("synthetic", model, {"max_length": model.max_length})}
        async with serving(models, "batch_wait_ms=200", "readers=3") as (client, app):
            responses = await asyncio.gather(*(predict(client, text) for text in words))
            tally = app.state.service.batchers["synthetic"].tally
            return [response.json()["predictions"] for response in responses], tally

    answers, tally = asyncio.run(scene())
    assert tally.batches < len(words)
    for text, (answer,) in zip(words, answers, strict=True):
        alone = model.engine([text])
        assert answer["label"] == alone.labels[0]
        assert list(answer["scores"].values()) == pytest.approx(alone.logits.softmax(-1)[0].tolist(), abs=1e-5)
        assert sum(answer["scores"].values()) == pytest.approx(1)
        assert answer["kept"] == [len(layer[0]) for layer in alone.kept]
        assert answer["tokens"] == len(model.tokenizer(text)["input_ids"]) > answer["kept"][-1]


def test_several_labels_are_answered_as_a_list(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "many")
    settings_of_model = {"problem_type": "multi_label_classification", "label_thresholds": [0.000001, 0.999999]}
    edit_json(tmp_path / "many/model/config.json", **settings_of_model)
    several = load_model(open_run(tmp_path / "many"), settings("threads=1"))
    (answer,) = several.compute(several.read(texts("a bright film")))
    assert "label" not in answer
    assert answer["labels"] == ["0"]
    result = several.engine(["a bright film"])
    assert list(answer["scores"].values()) == pytest.approx(result.logits.sigmoid()[0].tolist())
    assert (result.labels, result.probabilities.tolist()) == ([["0"]], result.logits.sigmoid().tolist())


def test_a_pair_is_read_with_its_token_types(model):
    pairs = [("the film", "was it good"), ("it was very dull", "no")]
    items = model.read(texts(*pairs))
    assert max(items[0].types) == 1
    answers = model.compute(items)
    for pair, answer in zip(pairs, answers, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(
            model.engine([pair]).logits.softmax(-1)[0].tolist(), abs=1e-5
        )


def test_a_regression_returns_its_value_as_the_score():
    engine = PackedEngine(install(tiny_model(classes=1), None))
    model = Model(engine, None, max_length=8, cut=False)
    (answer,) = model.compute([ReadText([5, 6, 7])])
    value = engine([[5, 6, 7]]).logits.item()
    assert answer == {"label": None, "scores": {"LABEL_0": pytest.approx(value)}, "tokens": 3, "kept": [3, 3, 3, 1]}


def test_a_text_that_is_too_long_is_refused_or_cut(run):
    long = "the film was good " * 20  # the tiny tokenizer splits these words into letters
    model = load_model(run, settings("max_length=12"))
    with pytest.raises(RequestError) as refused:
        model.read(texts("short", long))
    assert refused.value.status == 422
    assert refused.value.body["error"] == {
        "given": "texts[1] has 75 tokens or more",
        "allowed": "12 tokens",
        "do": "shorten it, or start the server with cut=true",
    }
    model.cut = True
    assert [len(ids) for ids in model.read(texts("short", long))] == [7, 12]


@pytest.mark.parametrize("nothing", ["\u200b", "\ufeff", "\u00ad", "\x00\x07", " \u200b\n"])
def test_a_text_of_which_the_tokenizer_leaves_nothing_is_empty(nothing, model):
    for given, place in [(nothing, "texts[0]"), (("good", nothing), "texts[0][1]")]:
        with pytest.raises(RequestError, match=re.escape(f"{place} is empty")):
            model.read(texts(given))


def test_a_text_of_special_tokens_alone_is_empty_and_an_unknown_one_is_not(model):
    with pytest.raises(RequestError, match=re.escape("texts[0] is empty")):
        model.read(texts("[SEP] [PAD]"))
    assert len(model.read(texts("☃"))[0]) == 3


def test_an_answer_that_is_no_number_is_refused_alone():
    engine = PackedEngine(install(tiny_model(classes=3), None))
    model = Model(engine, None, max_length=8, cut=False)
    healthy = engine.head.logits

    def broken(hidden):
        logits = healthy(hidden).clone()
        logits[1, 2] = float("nan")
        return logits

    engine.head = type(engine.head)(broken, engine.head.reads)
    items = [ReadText([5, 6, 7]), ReadText([5, 6]), ReadText([8, 9])]
    items[1].place = "texts[4]"
    first, second, third = model.compute(items)
    assert first["label"] == engine([[5, 6, 7], [5, 6]]).labels[0]
    assert isinstance(second, RequestError)
    assert (second.status, str(second)) == (422, "texts[4], for which the model computes no finite number")
    assert third["tokens"] == 2


# -- what cannot be served -----------------------------------------------------------------------------------


def damaged(run, tmp_path, change):
    """The run with other weights."""
    shutil.copytree(run.path, tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    return open_run(tmp_path / "run")


def fill(weights, value):
    name = next(name for name in weights if "layer.2.output.dense.weight" in name)
    weights[name] = torch.full_like(weights[name], value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_the_server_starts(value, run, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be served \(") as refused:
        load_model(damaged(run, tmp_path, lambda weights: fill(weights, value)), settings("threads=1"))
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    "name", ["config.json", "prunekit.json", "prunekit.safetensors", "model.safetensors", "tokenizer.json"]
)
def test_a_damaged_file_is_one_clear_error(name, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    file = tmp_path / "run" / "model" / name
    if not file.exists():
        pytest.skip(f"the model has no {name}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ConfigError, match=re.escape(f"run={tmp_path / 'run'} cannot be served (")) as refused:
        load_model(open_run(tmp_path / "run"), settings("threads=1"))
    assert len(str(refused.value).splitlines()) == 3


def test_runs_of_one_task_are_told_apart_by_their_hash(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text()) | {"hash": "5e6f7a8b"}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    models = load_all([run, open_run(tmp_path / "run")], settings("threads=1"))
    assert list(models) == ["synthetic-1a2b3c4d", "synthetic-5e6f7a8b"]
    about = {"task": "synthetic", "method": "topk", "hash": "5e6f7a8b", "dtype": "fp32", "max_length": 64}
    assert models["synthetic-5e6f7a8b"].about == about
    assert [name for name, served in load_all([run], settings("threads=1")).items() if not served.pairs] == [
        "synthetic"
    ]
    with pytest.raises(ConfigError, match="is given twice"):
        load_all([run, run], settings("threads=1"))


# -- several budgets ------------------------------------------------------------------------------------


def test_texts_of_different_budgets_are_answered_each_at_its_own():
    policy = KeepRatioTable({"2x": {1: 0.5}, "4x": {1: 0.25}}, "2x")
    engine = PackedEngine(install(tiny_model(), TokenPruner(AttentionReceived(), policy, [1])))
    model, items = Model(engine, None, max_length=20, cut=False), []
    for budget in ("4x", None, "2x", "4x"):
        items.append(ReadText(range(5, 13)))
        items[-1].budget = budget
    assert [answer["kept"][1] for answer in model.compute(items)] == [2, 4, 4, 2]


def test_a_request_names_one_of_the_budgets():
    limits = RequestLimits(1, 10, 100)
    given = {"texts": ["a", "b"], "budget": "4x"}
    assert [text.budget for text in texts_of(given, limits, pairs=False, budgets=("2x", "4x"))] == ["4x", "4x"]
    for budgets, allowed in [(("2x", "3x"), "2x, 3x"), ((), "no budget: the model was trained for one")]:
        with pytest.raises(RequestError, match='the budget "4x"') as refused:
            texts_of(given, limits, pairs=False, budgets=budgets)
        assert refused.value.body["error"]["allowed"] == allowed
