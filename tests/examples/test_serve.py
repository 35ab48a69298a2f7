"""examples/serve.py: which requests get which answers, mostly with a stand-in for the model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location

import httpx2
import pytest
import yaml
from support.exported import PRUNERS, stored_run
from support.models import tiny_model
from support.paths import ROOT
from support.run_result import CONTENT

from prunekit.bench.protocol import Encoded
from prunekit.cli.settings import parse_settings
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.runs.finished import open_run
from prunekit.runtime.engine import PackedEngine
from prunekit.tokens.encoder import install

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def example(name):
    place = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = module_from_spec(place)
    place.loader.exec_module(module)
    return module


serve = example("serve")


class StandIn:
    """A model that answers a text with its length, once `go` is set."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()
        self.computed = []

    def read(self, texts):
        return list(texts)

    def compute(self, batch):
        self.computed += batch
        self.busy.set()
        assert self.go.wait(20)
        if "bad" in batch:
            raise RuntimeError("no such instruction")
        return [{"label": str(len(text)), "tokens": len(text)} for text in batch]


@pytest.fixture
def model():
    return StandIn()


@asynccontextmanager
async def serving(model, *words, pairs=False):
    """Yield a client of the application, and the application."""
    app = serve.build_app(model, parse_settings(serve.SETTINGS, list(words)), {"task": "synthetic"}, pairs=pairs)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client, app


def predict(client, *texts):
    return asyncio.create_task(client.post("/predict", json={"texts": list(texts)}))


async def hold(client, model):
    """Send a request that is being computed until `go` is set."""
    model.go.clear()
    first = predict(client, "held")
    assert await asyncio.to_thread(model.busy.wait, 20)
    return first


# -- the model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(stored_run(tmp_path_factory.mktemp("served"), "topk", PRUNERS["topk"]()))


def test_answers_equal_the_engines_whatever_shares_the_batch(run):
    given = parse_settings(serve.SETTINGS, ["threads=1", "batch_wait_ms=200"])
    model = serve.load(run, given)
    texts = [
        "a bright film",
        "the story was very dull and the end was bad",
        "good",
        "the actors were good but the film was very long and dull",
    ]

    async def scene():
        async with serving(model, "batch_wait_ms=200") as (client, app):
            responses = await asyncio.gather(*(predict(client, text) for text in texts))
            return [response.json()["predictions"] for response in responses], app.state.batcher.tally

    answers, tally = asyncio.run(scene())
    assert tally.batches < len(texts)
    for text, (answer,) in zip(texts, answers, strict=True):
        alone = model.engine([text])
        assert answer["label"] == alone.labels[0]
        assert list(answer["scores"].values()) == pytest.approx(alone.logits.softmax(-1)[0].tolist(), abs=1e-5)
        assert sum(answer["scores"].values()) == pytest.approx(1)
        assert answer["kept"] == [len(layer[0]) for layer in alone.kept]
        assert answer["tokens"] == len(model.tokenizer(text)["input_ids"]) > answer["kept"][-1]


def test_a_pair_is_read_with_its_token_types(run):
    model = serve.load(run, parse_settings(serve.SETTINGS, ["threads=1"]))
    pairs = [("the film", "was it good"), ("it was very dull", "no")]
    items = model.read(pairs)
    assert max(items[0].types) == 1
    answers = model.compute(items)
    for pair, answer in zip(pairs, answers, strict=True):
        assert list(answer["scores"].values()) == pytest.approx(
            model.engine([pair]).logits.softmax(-1)[0].tolist(), abs=1e-5
        )


def test_a_regression_returns_its_value_as_the_score():
    engine = PackedEngine(install(tiny_model(classes=1), None))
    model = serve.Model(engine, None, max_length=8, cut=False)
    (answer,) = model.compute([Encoded([5, 6, 7])])
    value = engine([[5, 6, 7]]).logits.item()
    assert answer == {"label": None, "scores": {"LABEL_0": pytest.approx(value)}, "tokens": 3, "kept": [3, 3, 3, 1]}


def test_a_text_that_is_too_long_is_refused_or_cut(run):
    long = "the film was good " * 20  # the tiny tokenizer splits these words into letters
    model = serve.load(run, parse_settings(serve.SETTINGS, ["max_length=12"]))
    with pytest.raises(serve.RequestError) as refused:
        model.read(["short", long])
    assert refused.value.status == 422
    assert refused.value.body["error"] == {
        "given": "texts[1] has 282 tokens",
        "allowed": "12 tokens",
        "do": "shorten it, or start the server with cut=true",
    }
    model.cut = True
    assert [len(ids) for ids in model.read(["short", long])] == [7, 12]


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "given"),
    [
        (b"the film", 400, "the body is not JSON"),
        (b'{"texts": ["\xff"]}', 400, "the body is not JSON"),
        (b"[" * 2000, 400, "the body is not JSON"),
        (b'["a"]', 422, "the body is a list"),
        (b"{}", 422, "no field texts"),
        (b'{"texts": ["a"], "temperature": 1}', 422, "the fields temperature"),
        (b'{"texts": "a"}', 422, "texts is a string"),
        (b'{"texts": []}', 422, "0 texts"),
        (b'{"texts": ["a", "b", "c", "d"]}', 422, "4 texts"),
        (b'{"texts": ["a", 3]}', 422, "texts[1] is a number"),
        (b'{"texts": [null]}', 422, "texts[0] is null"),
        (b'{"texts": [["a", "b"]]}', 422, "texts[0] is a list"),
        (b'{"texts": ["a", " \\n"]}', 422, "texts[1] is empty"),
        (b'{"texts": ["\\ud83d"]}', 422, "texts[0] has half a surrogate pair"),
        (b'{"texts": ["' + b"a" * 3000 + b'"]}', 413, "a body of more than 2 KB"),
    ],
)
def test_a_bad_request_gets_what_was_given_what_is_allowed_and_what_to_do(body, status, given, model):
    async def scene():
        async with serving(model, "request_texts=3", "request_kb=2") as (client, _):
            answer = await client.post("/predict", content=body)
            return answer, (await client.get("/stats")).json()

    answer, stats = asyncio.run(scene())
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["given"].startswith(given)
    assert error["allowed"]
    assert error["do"]
    assert model.computed == []
    assert stats["requests"] == {"refused": 1}


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ({"texts": ["a"]}, "texts[0] is a string"),
        ({"texts": [["a"]]}, "texts[0] is a list of 1"),
        ({"texts": [["a", ""]]}, "texts[0][1] is empty"),
    ],
)
def test_a_task_of_pairs_requires_both_texts(body, given):
    with pytest.raises(serve.RequestError) as refused:
        serve.parse_texts(json.dumps(body).encode(), most=9, pairs=True)
    assert refused.value.body["error"]["given"] == given
    assert serve.parse_texts(b'{"texts": [["a", "b"]]}', most=9, pairs=True) == [("a", "b")]


def test_unknown_paths_and_verbs_get_the_list_of_endpoints(model):
    async def scene():
        async with serving(model) as (client, _):
            return await client.get("/"), await client.get("/predict")

    answers = asyncio.run(scene())
    assert [answer.status_code for answer in answers] == [404, 405]
    assert answers[1].json()["error"]["given"] == "GET /predict: Method Not Allowed"
    assert "POST /predict" in answers[0].json()["error"]["allowed"]


def test_requests_that_arrive_together_share_a_batch(model):
    async def scene():
        async with serving(model, "batch_wait_ms=200", "batch_texts=3") as (client, _):
            answers = await asyncio.gather(*(predict(client, "a" * length) for length in (1, 2, 3)))
            return [answer.json() for answer in answers], (await client.get("/stats")).json()

    answers, stats = asyncio.run(scene())
    assert [answer["predictions"][0]["label"] for answer in answers] == ["1", "2", "3"]
    assert (stats["batches"], stats["mean_batch_texts"], stats["waiting"]) == (1, 3, 0)
    assert stats["requests"] == {"ok": 3}
    assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p99"]


def test_a_full_queue_answers_503_with_a_time_to_retry(model):
    async def scene():
        async with serving(model, "queue=2", "request_texts=2") as (client, app):
            first = await hold(client, model)
            waiting = predict(client, "a", "b")
            while app.state.batcher.waiting < 2:
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
        async with serving(model, "timeout_s=0.8") as (client, _):
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


def test_an_error_of_the_computation_is_answered_500_and_the_next_request_succeeds(model, capsys):
    async def scene():
        async with serving(model) as (client, _):
            return await predict(client, "bad"), await predict(client, "good")

    bad, good = asyncio.run(scene())
    assert (bad.status_code, good.status_code) == (500, 200)
    assert "no such instruction" not in bad.text  # the cause is for the operator only
    assert "a batch failed: RuntimeError: no such instruction" in capsys.readouterr().err


def test_health_reports_what_is_served_and_the_shutdown(model):
    async def scene():
        async with serving(model) as (client, app):
            up = await client.get("/healthz")
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as later:
            return up, await later.get("/healthz"), await predict(later, "a")

    up, down, refused = asyncio.run(scene())
    assert (up.status_code, up.json()) == (200, {"status": "ok", "task": "synthetic"})
    assert (down.status_code, down.json()["status"]) == (503, "going down")
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)


# -- over a real connection ----------------------------------------------------------------------------------


def test_a_response_does_not_wait_for_the_client_to_acknowledge_its_head():
    """Head and body are sent separately; on a kept-alive connection that costs 40 ms without TCP_NODELAY."""
    with serve.open_socket("127.0.0.1", 0) as place, socket.create_connection(place.getsockname()):
        connection, _ = place.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_disconnected_client_is_dropped_and_the_others_are_answered_even_during_shutdown(model):
    app = serve.build_app(model, parse_settings(serve.SETTINGS, []), {})
    listener = serve.open_socket("127.0.0.1", 0)
    server = serve.uvicorn.Server(serve.uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"

    async def scene():
        async with httpx2.AsyncClient(base_url=address, trust_env=False) as client:
            first = await hold(client, model)
            body = b'{"texts": ["disconnected"]}'
            connection = socket.create_connection(listener.getsockname())
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            other = predict(client, "other")
            while app.state.batcher.waiting < 2:
                await asyncio.sleep(0.01)
            connection.close()
            while app.state.batcher.waiting > 1:
                await asyncio.sleep(0.01)
            server.should_exit = True  # what SIGTERM does
            await asyncio.sleep(0.2)
            model.go.set()
            return await first, await other

    try:
        answers = asyncio.run(asyncio.wait_for(scene(), 30))
    finally:
        model.go.set()
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
    assert [answer.json()["predictions"][0]["label"] for answer in answers] == ["4", "5"]
    assert model.computed == ["held", "other"]
    assert app.state.batcher.tally.outcomes == {"ok": 2, "left": 1}


@pytest.mark.slow
def test_the_readmes_command_serves_a_run_and_sigterm_finishes_open_requests(run):
    command, _of_the_docs = re.findall(r"^python examples/serve\.py run=.*$", README + DOCS, re.MULTILINE)
    (ask,) = re.findall(r"^curl .*$", DOCS, re.MULTILINE)
    words = ["port=0" if w.startswith("port=") else w for w in shlex.split(command, comments=True)[1:]]
    words = [f"run={run.path}" if word.startswith("run=") else word for word in words]
    body = shlex.split(ask)[-1].encode()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, *words, "batch_wait_ms=1500"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        line = child.stdout.readline()
        assert line.startswith(f"serving {run.path} on http://127.0.0.1:")
        answers = []

        def post():
            with urllib.request.urlopen(line.split()[-1] + "/predict", body, 30) as answer:
                answers.append((answer.status, json.load(answer)))

        client = threading.Thread(target=post)
        client.start()
        time.sleep(0.7)  # the request waits for others, which do not come
        child.send_signal(signal.SIGTERM)
        client.join(30)
        assert child.wait(30) == 0
        assert child.stdout.read() == "answered 1 requests\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert answers[0][0] == 200
    assert set(answers[0][1]["predictions"][0]) == {"label", "scores", "tokens", "kept"}


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ports=1"], "Unknown setting of serve: ports=1.\n"),
        (["port=70000"], "port=70000 is out of range"),
        (["timeout_s=0"], "timeout_s=0 is out of range"),
        (["queue=8", "request_texts=9"], "such a request would never fit"),
        ([], "no run is given"),
        (["run=nowhere"], "run=nowhere is no run"),
        (["run=RUN", "port=TAKEN"], "cannot listen on host=127.0.0.1 port=TAKEN (Address already in use"),
        (["run=RUN", "port=0", "max_length=600"], "max_length=600, but this model reads"),
        (["run=RUN", "port=0", "max_length=32", "batch_tokens=31"], "has no room for one text of max_length=32"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(words, message, run):
    with serve.open_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        words = [word.replace("RUN", str(run.path)).replace("TAKEN", str(port)) for word in words]
        with pytest.raises(ConfigError, match=re.escape(message.replace("TAKEN", str(port)))) as refused:
            serve.main(words)
    assert len(str(refused.value).splitlines()) <= 3


def test_a_question_answering_run_is_refused_before_anything_slow(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cfg, _ = compose(["method=topk", "task=squad2", "backbone=tiny"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(cfg))))
    result = CONTENT | {"hash": "1a2b3c4d", "method": "topk", "task": "squad2"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    monkeypatch.setitem(sys.modules, "prunekit.models.pretrained", None)
    with pytest.raises(ConfigError, match="finds answers in texts, which it reads in windows, which this server"):
        serve.main([f"run={tmp_path}"])


def test_help_is_the_commented_file(capsys):
    assert serve.main(["--help"]) == 0
    assert "queue: 256           # int 1..; texts that may wait" in capsys.readouterr().out
