"""Real connections to a server with a stand-in for the model: slow, broken and idle ones, and too many of them."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx2
import pytest
from support.served import StandIn, hold, one, opened, predict, running, said

from prunekit.serving.address import bind

BODY = b'{"texts": ["abc"]}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture
def model():
    return StandIn()


def status(answer):
    return int(answer.split(b" ")[1])


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_response_does_not_wait_for_the_client_to_acknowledge_its_head():
    """Head and body are sent separately; on a kept-alive connection that costs 40 ms without TCP_NODELAY."""
    with bind("127.0.0.1", 0) as place:
        place.listen()
        with socket.create_connection(place.getsockname()):
            connection, _ = place.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_request_that_does_not_arrive_is_refused_and_its_connection_closed(model):
    with running(one(model), "read_s=0.5") as server:
        slow = {
            "nothing": opened(server),
            "half a head": opened(server, HEAD[:20]),
            "half a body": opened(server, HEAD + BODY[:5]),
            "after an answer": opened(server, HEAD + BODY + HEAD[:20]),
            "after a refusal": opened(server, HEAD.replace(b"POST", b"PUT") + BODY[:5]),
        }
        start = time.monotonic()
        dripping = opened(server, HEAD)
        for number in range(7):  # a byte now and then gives no more time
            time.sleep(0.1)
            try:
                dripping.sendall(BODY[number : number + 1])
            except OSError:
                break
        answers = {name: said(connection, 5) for name, connection in slow.items()}
        dripped = said(dripping, 5)
        assert time.monotonic() - start < 4
        until(lambda: len(server.open_connections) == 0)
    assert answers["nothing"] == b""
    assert [status(answers[name]) for name in ("half a head", "half a body")] == [408, 408]
    assert status(dripped) == 408
    told = json.loads(answers["half a body"].partition(b"\r\n\r\n")[2])["error"]
    assert told["given"] == "no whole request within 0.5 s"
    assert answers["after an answer"].count(b"HTTP/1.1 200") == answers["after an answer"].count(b"HTTP/1.1 408") == 1
    assert answers["after a refusal"].startswith(b"HTTP/1.1 405")


def test_slow_requests_in_time_are_answered(model):
    with running(one(model), "read_s=5") as server, opened(server) as connection:
        for byte in HEAD + BODY:
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 90_000,
        HEAD.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nA") + b"no number\r\n",
    ],
    ids=["words", "TLS", "no host", "a long head", "no chunk"],
)
def test_what_is_no_http_is_refused_with_400_and_the_server_goes_on(sent, model, capsys):
    with running(one(model)) as server:
        answer = said(opened(server, sent))
        assert status(answer) == 400
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["allowed"] == "HTTP/1.1"
        with opened(server, HEAD + BODY) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert capsys.readouterr().err == ""


def test_where_there_are_too_many_connections_the_most_useless_one_makes_room(model):
    with running(one(model), "connections=3", "read_s=30") as server:
        first = opened(server, HEAD + BODY[:5])
        until(lambda: len(server.open_connections) == 1)
        second = opened(server, HEAD[:9])
        until(lambda: len(server.open_connections) == 2)
        first.sendall(BODY[5:])  # which makes the second one the most useless
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        third = opened(server, HEAD + BODY)
        assert third.recv(100).startswith(b"HTTP/1.1 200")
        fourth = opened(server, HEAD + BODY)
        assert fourth.recv(100).startswith(b"HTTP/1.1 200")
        assert said(second) == b""
        assert len(server.open_connections) == 3
        for connection in (first, third, fourth):
            connection.close()


def test_connections_that_await_an_answer_are_not_closed_for_others(model):
    with running(one(model), "connections=1") as server:
        model.go.clear()
        first = opened(server, HEAD + BODY)
        assert model.busy.wait(20)
        answer = said(opened(server))
        assert (status(answer), b"1 open connections" in answer) == (503, True)
        model.go.set()
        assert first.recv(100).startswith(b"HTTP/1.1 200")
        first.close()


def test_a_client_that_does_not_read_its_answers_is_cut_off(model):
    with running(one(model), "read_s=0.5", "timeout_s=20") as server:
        greedy = socket.socket()
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        greedy.connect(server.place)
        greedy.setblocking(False)
        deadline = time.monotonic() + 20
        sent = 0
        while len(server.open_connections) or not sent:  # asks and asks, and never reads
            assert time.monotonic() < deadline
            try:
                sent += greedy.send((b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") * 50)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        until(lambda: len(server.open_connections) == 0)
        greedy.close()


# -- shutdown ------------------------------------------------------------------------------------------------


def test_a_disconnected_client_is_dropped_and_the_others_are_answered_even_during_shutdown(model):
    async def scene(server):
        batcher = server.app.state.service.batchers["synthetic"]
        async with httpx2.AsyncClient(base_url=server.address, trust_env=False) as client:
            first = await hold(client, model)
            connection = opened(server, HEAD + BODY)
            other = predict(client, "other")
            while batcher.waiting < 2:
                await asyncio.sleep(0.01)
            connection.close()
            while batcher.waiting > 1:
                await asyncio.sleep(0.01)
            server.should_exit = True  # what SIGTERM does
            await asyncio.sleep(0.2)
            model.go.set()
            return await first, await other, batcher.tally.outcomes

    with running(one(model)) as server:
        *answers, outcomes = asyncio.run(asyncio.wait_for(scene(server), 30))
    assert [answer.json()["predictions"][0]["label"] for answer in answers] == ["4", "5"]
    assert model.computed == ["held", "other"]
    assert outcomes == {"ok": 2, "left": 1}


def test_unfinished_requests_do_not_delay_the_shutdown(model):
    with running(one(model), "read_s=60", "drain_s=60") as server:
        connections = [opened(server), opened(server, HEAD[:9]), opened(server, HEAD + BODY[:5])]
        until(lambda: len(server.open_connections) == 3)
        start = time.monotonic()
        server.should_exit = True
        answers = [said(connection) for connection in connections]
        server.thread.join(20)
        assert time.monotonic() - start < 3
    assert [status(answer) for answer in answers if answer] == [503] * sum(map(bool, answers))
    assert b"half a request" in answers[2]


def test_after_the_drain_accepted_requests_are_refused_and_readers_cut_off(model):
    with running(one(model), "drain_s=0.3") as server:
        model.go.clear()
        held = opened(server, HEAD + BODY)
        assert model.busy.wait(20)
        start = time.monotonic()
        server.should_exit = True
        answer = said(held)
        assert time.monotonic() - start < 3
        model.go.set()
    assert status(answer) == 503
    assert b"the server shuts down before the answer is computed" in answer
