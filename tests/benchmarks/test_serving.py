"""The load test: what a load counts, its tables, and one run of all of it on a tiny model."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack

import httpx2
import pytest
from support.exported import PRUNERS, stored_run
from support.models import benchmark_script
from support.paths import ROOT

from prunekit.config.errors import ConfigError

DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")

serving = benchmark_script("serving")

RESULT = {
    "task": "bbc_news",
    "method": "top",
    "dtype": "fp32",
    "max_length": 128,
    "budget": 3.0,
    "date": "2026-01-02",
    "hardware": {"cpu": "a CPU", "cpus": 2},
    "load_average": {"before": 0.1, "after": 1.5},
    "started_mb": 400.0,
    "settings": {
        "server": ["threads=1"], "seconds": 20, "texts": 1, "seed": 0, "attacked_s": 5, "rounds": 3, "others": 64
    },
    "loads": [
        {
            "kind": "closed", "clients": 8, "timed": 1000, "errors": {}, "requests_per_s": 50.0,
            "texts_per_s": 50.0, "tokens_per_text": 120.0, "latency_ms": {"p50": 150.4, "p95": 200.0, "p99": 251.0},
            "mean_batch_texts": 7.5, "server_computing": 0.95, "client_cpu": 0.1, "memory_mb": 410.2,
        },
        {
            "kind": "random", "share": 0.8, "asked_per_s": 40.0, "timed": 0, "errors": {"503": 2},
            "requests_per_s": 0.0, "texts_per_s": 0.0, "tokens_per_text": None,
            "latency_ms": {"p50": None, "p95": None, "p99": None}, "mean_batch_texts": None, "server_computing": 0.0,
            "client_cpu": 0.1, "memory_mb": 410.2,
        },
    ],
}  # fmt: skip


def test_the_table_says_what_was_measured_and_of_what():
    lines = serving.markdown([RESULT]).splitlines()
    assert lines[0] == (
        "**top on bbc_news, 3.00x fewer FLOPs**, fp32; 1 text in a request, 120 tokens on average, cut at 128; "
        "server: threads=1"
    )
    assert "| 8 clients | 50.0 | 150 | 200 | 251 | 7.5 | 95 % | 410 | none |" in lines
    assert "| at random, 40.0 per s | 0.0 | - | - | - | - | 0 % | 410 | 2 x 503 |" in lines
    assert "2 cores of a CPU, load average 0.1 before; 2026-01-02, 20 s per load" in lines[-1]


def test_attacks_are_compared_with_the_same_requests_in_the_rounds_between():
    def under(attack, p99, errors):
        more = {"latency_ms": {"p50": 10.0, "p95": 15.0, "p99": p99}, "errors": errors, "memory_mb": 420.0}
        return RESULT["loads"][0] | {"kind": "attack", "asked_per_s": 9.0, "attack": attack} | more

    p99 = {None: [20.0, 24.0, 90.0], "12 clients": [30.0, 28.0, 36.0], "400 clients": [None] * 3}
    loads = [
        under(attack, p99[attack][number], {"503": number} if attack == "12 clients" else {})
        for number in range(3)
        for attack in p99
    ]
    text = serving.markdown([RESULT | {"loads": RESULT["loads"] + loads}])
    assert "9.0 requests per s at random from 64 other clients; medians over 3 rounds" in text
    assert "| no attack | 50.0 | 10 | 15 | 24 | 1.00 | 420 | none |" in text
    assert "| 12 clients | 50.0 | 10 | 15 | 30 | 1.25 | 420 | 3 x 503 |" in text
    assert "| 400 clients | 50.0 | 10 | 15 | - | - | 420 | none |" in text


def test_the_table_of_the_docs_is_that_of_the_stored_results(tmp_path):
    page = tmp_path / "serving.md"
    page.write_text(DOCS)
    assert serving.main([f"into={page}"]) == 0
    assert page.read_text() == DOCS
    (tmp_path / "serving_b.json").write_text(json.dumps(RESULT))
    assert "| 8 clients | 50.0 |" in serving.markdown(serving.stored(tmp_path))


class Server:
    """Answers at once, and counts; every third request is turned away."""

    def __init__(self):
        self.asked = 0

    async def __call__(self, request):
        if request.url.path == "/stats":
            found = {"batches": self.asked // 2, "texts": self.asked, "computing_s": 0.0}
            return httpx2.Response(200, json={"models": {"news": found}})
        if request.url.path == "/metrics":
            return httpx2.Response(200, text="# a\nprunekit_resident_memory_bytes 410000000\n")
        self.asked += 1
        if self.asked % 3 == 0:
            return httpx2.Response(503, json={})
        return httpx2.Response(200, json={"predictions": [{"tokens": 7}]})


def loaded(load, seconds):
    server = Server()

    async def play():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(server), base_url="http://test") as client:
            return await serving.measured(client, iter(lambda: b"{}", None), seconds, load)

    return asyncio.run(play()), server


def test_times_are_of_requests_due_in_the_counted_time_and_throughput_of_answers_within_it():
    async def four(ask, until):  # the time is counted for 1 s after 0.1 s
        now = asyncio.get_running_loop().time
        await ask(now())  # while it warms up: nothing
        await asyncio.sleep(until - 0.8 - now())
        await ask(now())  # both
        await ask(now())  # turned away
        await asyncio.sleep(until + 0.01 - now())
        await ask(until - 0.1)  # due within, answered later: its time

    found, _ = loaded(four, 1.0)
    assert (found["timed"], found["errors"], found["requests_per_s"]) == (2, {"503": 1}, 1.0)
    assert (found["tokens_per_text"], found["texts_per_s"], found["mean_batch_texts"]) == (7, 1.0, 2)
    assert found["latency_ms"]["p50"] < 100 < found["latency_ms"]["p99"]


def test_each_request_is_of_one_of_the_askers():
    askers = [Server() for _ in range(4)]

    async def play():
        async with AsyncExitStack() as stack:
            client, *others = [
                await stack.enter_async_context(
                    httpx2.AsyncClient(transport=httpx2.MockTransport(server), base_url="http://test")
                )
                for server in (Server(), *askers)
            ]

            async def forty(ask, until):
                for _ in range(40):
                    await ask(until)

            await serving.measured(client, iter(lambda: b"{}", None), 0.1, forty, others)

    asyncio.run(play())
    assert sum(server.asked for server in askers) == 40
    assert min(server.asked for server in askers) > 0


def test_in_a_closed_loop_clients_ask_again_as_soon_as_they_are_answered():
    found, server = loaded(lambda ask, until: serving.closed_loop(ask, 2, until), 0.3)
    assert server.asked > 4
    assert found["timed"] > 2
    assert found["timed"] + found["errors"]["503"] < server.asked  # the first asked while it warmed up


def test_requests_at_random_do_not_wait_for_answers():
    due, inside, most = [], 0, 0

    async def slow(at):
        nonlocal inside, most
        due.append(at)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.3)
        inside -= 1

    async def play():
        start = asyncio.get_running_loop().time()
        await serving.arrivals(slow, 100, start + 0.5, random.Random(0))
        return start

    start = asyncio.run(play())
    rng = random.Random(0)
    assert due[0] == pytest.approx(start + rng.expovariate(100), abs=0.05)
    assert due[1] - due[0] == pytest.approx(rng.expovariate(100))
    assert 25 < len(due) < 80  # 50 expected
    assert most > 5


def test_a_file_without_the_block_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("nothing here")
    with pytest.raises(ConfigError, match="it has 0 blocks named serving"):
        serving.main([f"into={tmp_path / 'a.md'}"])


@pytest.mark.slow
def test_a_run_is_served_and_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = stored_run(tmp_path, "topk", PRUNERS["topk"]())
    (tmp_path / "serving.md").write_text("<!-- serving -->\n<!-- end of serving -->\n")
    out = tmp_path / "results" / "serving_tiny.json"
    given = ["server=[threads=1,read_s=1]", "clients=[1,3]", "shares=[0.5]", "seconds=1", "attacked_s=1", "rounds=1"]
    assert serving.main([f"run={run}", *given, f"out={out}", f"into={tmp_path / 'serving.md'}"]) == 0
    found = json.loads(out.read_text())
    assert [load["kind"] for load in found["loads"]] == ["closed", "closed", "random", *["attack"] * 7]
    attacks = [load["attack"] for load in found["loads"][3:]]
    assert attacks[:2] == [None, "12 clients with a text of 1 MB"]
    assert attacks[4] == "400 clients that drip a body"
    for load in found["loads"]:
        assert load["errors"] == {}  # under attack, others notice nothing but time
        assert load["memory_mb"] < found["started_mb"] + 200
        assert load["timed"] > 0
        assert 0 < load["latency_ms"]["p50"] <= load["latency_ms"]["p99"]
        assert load["mean_batch_texts"] >= 1
    assert "| 3 clients |" in (tmp_path / "serving.md").read_text()
    with pytest.raises(ConfigError, match="the server did not start"):
        serving.main([f"run={run}", "server=[port=nowhere]", *given[1:]])
