"""Vectors over HTTP: the engine's own, in two forms, within the limits of the other endpoints."""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode

import numpy as np
import pytest
from support.folders import embedder_folder
from support.served import StandIn, serving, settings

from prunekit.config.composition import compose
from prunekit.data.synthetic import MARKERS
from prunekit.pipelines.run import run
from prunekit.runs.finished import open_labelling
from prunekit.serving.model import Served, load_all

pytest.importorskip("sentence_transformers")

TEXTS = ["the film was good", "a bad one"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    own, table = embedder_folder(folder / "own"), folder / "pairs.csv"
    lines = [f"{MARKERS[row % 9]} word {row},{MARKERS[row % 7]} word,{row % 5}" for row in range(40)]
    table.write_text("text,other,score\n" + "\n".join(lines) + "\n")
    given = ["task=csv", f"task.file={table}", "task.text_pair=other", "task.label=score", f"model={own}"]
    given += ["method=topk", "budget=1.5x", "method.train=false", "trainer=debug", "task.max_length=48", "logger=[]"]
    given += ["plots=false", "bench.enabled=false", "examples=0", f"data.cache_dir={folder / 'cache'}"]
    run(compose([*given, f"runs_dir={folder / 'runs'}"])[0])
    (left,) = (folder / "runs").glob("csv/topk/*/*/s1-*")
    return load_all([open_labelling(left, "", "", vectors=True)], settings("threads=1"))


def asked(models, *posts, words=()):
    """The answers to requests, each an endpoint and a body."""

    async def scene():
        async with serving(models, *words) as (client, _):
            return [await client.post(where, json=body) for where, body in posts]

    return asyncio.run(scene())


def test_vectors_are_those_of_the_engine_although_it_learned_from_pairs(models):
    (answer,) = asked(models, ("/embed", {"texts": TEXTS}))
    expected = models["csv"].model.engine.encode(TEXTS)
    np.testing.assert_allclose(answer.json()["embeddings"], expected, atol=1e-5)


def test_openai_s_form_has_lists_or_base64_and_counts_tokens(models):
    single, several, packed = asked(
        models,
        ("/v1/embeddings", {"input": TEXTS[0], "model": "csv"}),
        ("/v1/embeddings", {"input": TEXTS}),
        ("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64", "user": "me"}),
    )
    engine = models["csv"].model.engine
    expected, tokens = engine.encode(TEXTS), [len(ids) for ids in engine.tokenizer(TEXTS)["input_ids"]]
    assert single.json()["usage"] == {"prompt_tokens": tokens[0], "total_tokens": tokens[0]}
    assert (several.json()["object"], several.json()["model"]) == ("list", "csv")
    assert several.json()["usage"]["total_tokens"] == sum(tokens)
    for answer, read in ((several, list), (packed, lambda text: struct.unpack("<32f", b64decode(text)))):
        rows = answer.json()["data"]
        assert [(row["object"], row["index"]) for row in rows] == [("embedding", 0), ("embedding", 1)]
        np.testing.assert_allclose([read(row["embedding"]) for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("where", "body", "status", "given"),
    [
        ("/embed", {"texts": "a"}, 422, "texts is a string"),
        ("/embed", {"texts": ["a", "b", "c"]}, 422, "3 texts"),
        ("/embed", {"texts": ["good " * 60]}, 422, "texts[0] has 242 tokens or more"),
        ("/v1/embeddings", {}, 422, "no field input"),
        ("/v1/embeddings", {"input": 3}, 422, "input is a number"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 422, "input[0] is a list"),
        ("/v1/embeddings", {"input": " "}, 422, "input is empty"),
        ("/v1/embeddings", {"input": ["a", "b", "c"]}, 422, "3 input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, 422, "the fields dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 422, 'encoding_format is "int8"'),
        ("/v1/embeddings", {"input": "a", "model": "gpt"}, 422, 'the model "gpt"'),
        ("/predict", {"texts": ["a"]}, 422, "the model csv, which gives vectors: POST /embed"),
    ],
)
def test_a_bad_request_is_refused_within_the_limits_of_the_others(models, where, body, status, given):
    (answer,) = asked(models, (where, body), words=("request_texts=2", "text_chars=400"))
    assert (answer.status_code, answer.json()["error"]["given"][: len(given)]) == (status, given)


def test_a_model_without_vectors_is_named_and_the_others_are(models):
    both = {**models, "news": Served("news", StandIn(), {"task": "news"})}
    (answer,) = asked(both, ("/embed", {"texts": ["a"], "model": "news"}))
    assert answer.status_code == 422
    assert answer.json()["error"]["given"] == "the model news, which gives no vectors"
    assert answer.json()["error"]["allowed"] == "csv"


def test_without_an_embedder_there_is_no_such_endpoint():
    (answer,) = asked({"news": Served("news", StandIn(), {"task": "news"})}, ("/embed", {"texts": ["a"]}))
    assert answer.status_code == 404
