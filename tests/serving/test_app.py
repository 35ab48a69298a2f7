"""The HTTP application: which requests get which answers, with a stand-in for the model."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import httpx2
import pytest
import torch
from support.served import StandIn, hold, one, predict, serving

from prunekit.serving.model import Served


@pytest.fixture
def model():
    return StandIn()


@pytest.mark.parametrize(
    ("body", "status", "given"),
    [
        (b"the film", 400, "the body is not JSON"),
        (b"", 400, "the body is not JSON"),
        (b'{"texts": ["\xff"]}', 400, "the body is not JSON (byte 12 is not UTF-8)"),
        ('{"texts": ["a"]}'.encode("utf-16"), 400, "the body is not JSON (byte 0 is not UTF-8)"),
        (b"[" * 2000, 400, "the body is not JSON"),
        (b'{"a":' * 400, 400, "the body is not JSON"),
        (b"1" * 2000, 422, "the body is a number"),
        (b"1" * 5000, 400, "the body is not JSON"),
        (b"NaN", 422, "the body is a number"),
        (b'["a"]', 422, "the body is a list"),
        (b"{}", 422, "no field texts"),
        (b'{"texts": ["a"], "temperature": 1}', 422, "the fields temperature"),
        (b'{"\\ud800": 1}', 422, "the fields \ud800"),
        (b'{"texts": ["a"], "texts": ["b"]}', 422, "the field texts twice"),
        (b'{"texts": "a"}', 422, "texts is a string"),
        (b'{"texts": []}', 422, "0 texts"),
        (b'{"texts": ["a", "b", "c", "d"]}', 422, "4 texts"),
        (b'{"texts": ["a", 3]}', 422, "texts[1] is a number"),
        (b'{"texts": [null]}', 422, "texts[0] is null"),
        (b'{"texts": [["a", "b"]]}', 422, "texts[0] is a list"),
        (b'{"texts": ["a", " \\n"]}', 422, "texts[1] is empty"),
        (b'{"texts": ["\\ud83d"]}', 422, "texts[0] has half a surrogate pair"),
        (b'{"texts": ["a", "' + b"b" * 61 + b'"]}', 422, "texts[1] has 61 characters"),
        (b'{"texts": ["a"], "model": "\\ud800"}', 422, 'the model "\\ud800"'),
        (b'{"texts": ["a"], "model": ["synthetic"]}', 422, 'the model ["synthetic"]'),
        (b'{"texts": ["infinite"]}', 422, "texts[0]"),
        (b'{"texts": ["' + b"a" * 7000 + b'"]}', 413, "a body of more than 6 KB"),
    ],
)
def test_a_bad_request_gets_what_was_given_what_is_allowed_and_what_to_do(body, status, given, model):
    async def scene():
        async with serving(one(model), "request_texts=3", "request_kb=6", "text_chars=60") as (client, _):
            answer = await client.post("/predict", content=body)
            return answer, (await client.get("/stats")).json()

    answer, stats = asyncio.run(scene())
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["given"].startswith(given)
    assert error["allowed"]
    assert error["do"]
    assert "infinite" in str(body) or (model.computed, stats["refused"]) == ([], 1)


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("content-encoding", "gzip", 415),
        ("content-encoding", "br", 415),
        ("content-encoding", "\xff", 415),
        ("content-encoding", "identity", 200),
        ("content-type", "application/xml", 415),
        ("content-type", "multipart/form-data; boundary=x", 415),
        ("content-type", "text/plain", 415),
        ("content-type", "application/json; charset=utf-16", 415),
        ("content-type", "application/json; charset=UTF-8", 200),
        ("content-type", "application/vnd.api+json", 200),
        ("content-type", "application/x-www-form-urlencoded", 200),  # which curl -d says
    ],
)
def test_a_body_is_json_in_utf_8_and_not_compressed(header, value, status, model):
    async def scene():
        async with serving(one(model)) as (client, _):
            headers = [(header.encode(), value.encode("latin-1"))]
            return await client.post("/predict", content=b'{"texts": ["a"]}', headers=headers)

    answer = asyncio.run(scene())
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["do"]


def test_a_large_body_is_refused_before_it_is_read(model):
    async def body():
        yield b"{"
        raise AssertionError("was asked for more")

    async def scene():
        async with serving(one(model), "request_kb=2") as (client, _):
            return await client.post("/predict", content=body(), headers={"content-length": "3000"})

    assert asyncio.run(scene()).status_code == 413


def test_unknown_paths_and_verbs_get_the_list_of_endpoints(model):
    async def scene():
        async with serving(one(model)) as (client, _):
            bad_host = await client.get("/nowhere/", headers={"host": "["})
            return await client.get("/"), await client.get("/predict"), await client.post("/rerank"), bad_host

    answers = asyncio.run(scene())
    assert [answer.status_code for answer in answers] == [404, 405, 404, 404]
    assert answers[1].json()["error"]["given"] == "GET /predict: Method Not Allowed"
    assert answers[0].json()["error"]["allowed"] == (
        "POST /predict, GET /models, GET /stats, GET /metrics, GET /health, GET /ready"
    )


def test_requests_that_arrive_together_share_a_batch(model):
    async def scene():
        async with serving(one(model), "batch_wait_ms=200", "batch_texts=3") as (client, _):
            answers = await asyncio.gather(*(predict(client, "a" * length) for length in (1, 2, 3)))
            return [answer.json() for answer in answers], (await client.get("/stats")).json()

    answers, stats = asyncio.run(scene())
    assert [answer["predictions"][0]["label"] for answer in answers] == ["1", "2", "3"]
    found = stats["models"]["synthetic"]
    assert (found["batches"], found["mean_batch_texts"], found["waiting"]) == (1, 3, 0)
    assert (found["requests"], stats["refused"]) == ({"ok": 3}, 0)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]


def test_a_text_without_an_answer_fails_its_request_alone(model):
    async def scene():
        async with serving(one(model), "batch_wait_ms=200", "batch_texts=2") as (client, _):
            return await asyncio.gather(predict(client, "infinite"), predict(client, "a"))

    assert [answer.status_code for answer in asyncio.run(scene())] == [422, 200]


def test_a_request_has_a_limit_of_tokens_together(model):
    async def scene():
        async with serving(one(model), "request_tokens=5") as (client, _):
            return await predict(client, "abc", "de"), await predict(client, "abc", "def")

    within, beyond = asyncio.run(scene())
    assert (within.status_code, beyond.status_code) == (200, 422)
    assert beyond.json()["error"]["given"] == "6 tokens together"
    assert beyond.json()["error"]["allowed"] == "5 tokens per request"


def test_a_full_queue_answers_503_with_a_time_to_retry(model):
    async def scene():
        async with serving(one(model), "queue=2", "request_texts=2") as (client, app):
            first = await hold(client, model)
            waiting = predict(client, "a", "b")
            while app.state.service.batchers["synthetic"].waiting < 2:
                await asyncio.sleep(0.01)
            rejected = await predict(client, "c")
            model.go.set()
            return rejected, await first, await waiting

    rejected, first, waiting = asyncio.run(scene())
    assert rejected.status_code == 503
    assert int(rejected.headers["Retry-After"]) >= 1
    assert rejected.json()["error"]["given"] == "2 texts are waiting, and 1 more would exceed the limit of 2"
    assert (first.status_code, waiting.status_code) == (200, 200)
    assert "c" not in model.computed


def test_a_request_that_takes_too_long_is_answered_504_and_not_computed_later(model):
    async def scene():
        async with serving(one(model), "timeout_s=0.8") as (client, _):
            first = await hold(client, model)
            late = await predict(client, "late")
            await first
            model.go.set()
            return late, await predict(client, "next")

    late, after = asyncio.run(scene())
    assert late.status_code == 504
    assert late.json()["error"]["given"] == "no answer within 0.8 s"
    assert after.status_code == 200
    assert model.computed == ["held", "next"]


def test_an_error_of_the_computation_is_answered_500_and_others_succeed(model, capsys):
    async def scene():
        async with serving(one(model), "batch_wait_ms=200", "batch_texts=2") as (client, _):
            return [*await asyncio.gather(predict(client, "bad"), predict(client, "a")), await predict(client, "good")]

    bad, *others = asyncio.run(scene())
    assert (bad.status_code, [other.status_code for other in others]) == (500, [200, 200])
    assert "no such instruction" not in bad.text  # the cause is for the operator only
    assert "a batch failed: RuntimeError: no such instruction" in capsys.readouterr().err


def test_readiness_ends_with_the_shutdown_and_health_does_not(model):
    async def scene():
        async with serving(one(model)) as (client, app):
            up = [await client.get("/health"), await client.get("/ready")]
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as later:
            return up, [await later.get("/health"), await later.get("/ready")], await predict(later, "a")

    up, down, refused = asyncio.run(scene())
    assert [(answer.status_code, answer.json()["status"]) for answer in up] == [(200, "ok"), (200, "ready")]
    assert [(answer.status_code, answer.json()["status"]) for answer in down] == [(200, "ok"), (503, "going down")]
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)


# -- several models ------------------------------------------------------------------------------------------


def two():
    return {
        "news": Served("news", StandIn(), {"task": "news"}),
        "pairs": Served("pairs", StandIn(), {"task": "pairs"}, pairs=True, ranks=True),
    }


def test_a_request_names_one_of_several_models():
    models = two()

    async def scene():
        async with serving(models) as (client, _):
            return [
                await predict(client, "a", model="news"),
                await predict(client, ["a", "bc"], model="pairs"),
                await predict(client, "a"),
                await predict(client, "a", model="sst2"),
                await client.get("/models"),
            ]

    news, pairs, unnamed, unknown, listed = asyncio.run(scene())
    assert news.json()["predictions"][0]["label"] == "1"
    assert pairs.json()["predictions"][0]["label"] == "3"
    assert (models["news"].model.computed, models["pairs"].model.computed) == (["a"], ["abc"])
    error = {"given": "no field model", "allowed": "news, pairs", "do": 'add "model": "news"'}
    assert (unnamed.status_code, unnamed.json()["error"]) == (422, error)
    assert (unknown.status_code, unknown.json()["error"]["given"]) == (422, 'the model "sst2"')
    assert listed.json()["models"] == {"news": {"task": "news"}, "pairs": {"task": "pairs"}}


def test_documents_are_ranked_by_the_score_of_their_pair_with_the_query():
    def ranking(**more):
        return {"model": "pairs", "query": "q", "documents": ["aa", "b", "cccc"], **more}

    async def scene():
        async with serving(two()) as (client, _):
            return [
                await client.post("/rerank", json=ranking()),
                await client.post("/rerank", json=ranking(top_n=1)),
                await client.post("/rerank", json=ranking(top_n=0)),
                await client.post("/rerank", json=ranking(documents=["a", ""])),
                await client.post("/rerank", json=ranking(model="news")),
                await client.post("/rerank", json=ranking(top_k=1)),
                await client.post("/rerank", json=ranking(top_k=1, top_n=1)),
            ]

    all_of_them, best, none, empty, wrong, same, twice = asyncio.run(scene())
    assert all_of_them.json()["results"] == [
        {"index": 2, "relevance_score": 5.0},
        {"index": 0, "relevance_score": 3.0},
        {"index": 1, "relevance_score": 2.0},
    ]
    assert best.json()["results"] == [{"index": 2, "relevance_score": 5.0}]
    assert (none.status_code, none.json()["error"]["given"]) == (422, "top_n is 0")
    assert (empty.status_code, empty.json()["error"]["given"]) == (422, "documents[1] is empty")
    assert (wrong.status_code, wrong.json()["error"]["allowed"]) == (422, "pairs")
    assert same.json() == best.json()
    assert (twice.status_code, twice.json()["error"]["given"]) == (422, "the fields top_k and top_n")


def test_relevance_scores_have_passed_the_activation_of_the_model():
    served = replace(two()["pairs"], activation=torch.nn.Sigmoid())

    async def scene():
        async with serving({"pairs": served}) as (client, _):
            return await client.post("/rerank", json={"query": "q", "documents": ["aa"]})

    (row,) = asyncio.run(scene()).json()["results"]
    assert row["relevance_score"] == pytest.approx(0.95257413)  # the logistic function of 3


# -- who may ask ---------------------------------------------------------------------------------------------


def test_with_tokens_everything_but_health_needs_one(model):
    async def scene():
        async with serving(one(model), tokens=["first", "second"]) as (client, _):

            async def ask(path, **headers):
                method, body = ("POST", b'{"texts": ["a"]}') if path == "/predict" else ("GET", None)
                return (await client.request(method, path, content=body, headers=headers)).status_code

            return [
                await ask("/predict"),
                await ask("/predict", authorization="Bearer third"),
                await ask("/predict", authorization="Basic first"),
                await ask("/predict", authorization="Bearer"),
                await ask("/predict", authorization=b"Bearer \xff"),
                await ask("/metrics"),
                await ask("/predict", authorization="Bearer first"),
                await ask("/predict", authorization="bearer second"),
                await ask("/health"),
                await ask("/ready"),
            ], (await client.post("/predict")).headers["www-authenticate"]

    codes, header = asyncio.run(scene())
    assert codes == [401] * 6 + [200] * 4
    assert header == "Bearer"
    assert model.computed == ["a", "a"]


# -- metrics -------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_asked_and_how_long_it_took():
    models = two() | {'a "b"': Served('a "b"', StandIn(), {})}

    async def scene():
        async with serving(models) as (client, _):
            await predict(client, "abc", "d", model="news")
            await predict(client, model="news")
            return await client.get("/metrics")

    answer = asyncio.run(scene())
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        "# TYPE prunekit_requests_total counter",
        'prunekit_requests_total{model="",outcome="refused"} 1',
        'prunekit_requests_total{model="news",outcome="ok"} 1',
        'prunekit_texts_total{model="news"} 2',
        'prunekit_tokens_total{model="news"} 4',
        'prunekit_texts_total{model="a \\"b\\""} 0',
        "# TYPE prunekit_request_seconds histogram",
        'prunekit_request_seconds_bucket{model="news",le="10"} 1',
        'prunekit_request_seconds_bucket{model="news",le="+Inf"} 1',
        'prunekit_request_seconds_count{model="pairs"} 0',
        "prunekit_connections 0",
    ):
        assert line in lines
    pattern = r'[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)*\})? [-+.\de]+'
    assert [line for line in lines if line[0] != "#" and not re.fullmatch(pattern, line)] == []
