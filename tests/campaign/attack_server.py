"""Requests of any kind to a server: right answers, refusals in words, and an end that does not wait for ever."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

from support.served import running

from campaign.frame import DEAD_END, HANGS, REFUSED, SAME, SILENT, TRACEBACK, UNTRIED, Case, Verdict
from campaign.requests import DRAWS, unfinished, valid
from campaign.small_runs import JOBS, at_home, finished
from prunekit.runs.finished import open_run
from prunekit.serving.model import Served, load_all
from prunekit.serving.requests import RequestError, Text

TITLE = "requests to a server"
LONG, SHORT = 10_000, 60
PIECE, PART = 250, 1000  # to one server
WAIT_S, DRAIN_S, READ_S = 20, 1, 1
SETTINGS = {"dtype": "fp32", "threads": 1, "max_length": None, "batch_tokens": 4096, "batch_texts": 32, "cut": False}
NAME = "topk"
WORDS = [
    f"{first} {second} of text" for first in ("a red", "the blue", "no", "some green") for second in ("word", "line")
]


def cases(count: int, rng: random.Random, folder: Path) -> Iterator[Case]:
    """Yield requests to one server, and at last its end in the middle of requests."""
    models = served(folder)
    with ExitStack() as stack:
        server = stack.enter_context(running(models, f"drain_s={DRAIN_S}", f"read_s={READ_S}"))
        connections: dict[str, socket.socket] = {}
        for _ in range(count - 1):
            (draw,) = rng.choices(list(DRAWS), list(DRAWS.values()))
            content = draw(rng, WORDS)
            yield Case(
                f"{draw.__name__}: {content[:60]!r}", partial(attack, server.place, models, content, connections)
            )
        begun = [unfinished(rng, WORDS) for _ in range(rng.randint(1, 20))]
        asked = [valid(rng, WORDS) for _ in range(rng.randint(0, 5))]
        yield Case(f"the end, with {len(begun)} requests unfinished", partial(end, server, stack, models, begun, asked))


@cache
def served(folder: Path) -> Mapping[str, Served]:
    """Return the model of a small run, as the server has it."""
    with at_home(folder):
        return load_all([open_run(JOBS[NAME].folder(finished(NAME, folder)))], SETTINGS)


def attack(place: Any, models: Mapping[str, Served], content: bytes, connections: dict[str, socket.socket]) -> Verdict:
    """Send one request and judge what comes.

    It goes over the connection of the last one where that is still open, and once more over a new one if the server
    closes that without an answer: it may have done so before.
    """
    answer = None
    if (kept := connections.pop("open", None)) is not None:
        answer = exchanged(kept, content, connections)
    if answer is None or answer[0] == 0:
        answer = exchanged(socket.create_connection(place, WAIT_S), content, connections)
    if answer[0] < 0:
        return Verdict(HANGS, f"no answer within {WAIT_S} s")
    return judged(models, content, *answer)


def exchanged(connection: socket.socket, content: bytes, connections: dict[str, socket.socket]) -> tuple[int, bytes]:
    """Return status and body of an answer; status 0 where the connection is closed instead, -1 where nothing comes."""
    connection.settimeout(WAIT_S)
    status, body, is_open = 0, b"", False
    try:
        connection.sendall(content)
        if not is_whole(content):
            connection.shutdown(socket.SHUT_WR)
        status, body, is_open = answer_of(connection)
    except TimeoutError:
        status = -1
    except (OSError, EOFError):
        status = 0
    if is_open:
        connections["open"] = connection
    else:
        connection.close()
    return status, body


def is_whole(content: bytes) -> bool:
    """Return whether bytes hold a head, and as much of a body as it says to have."""
    head, _, body = content.partition(b"\r\n\r\n")
    sizes = [
        line.partition(b":")[2].strip() for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    ]
    return b"\r\n\r\n" in content and (not sizes or not sizes[0].isdigit() or int(sizes[0]) <= len(body))


def answer_of(connection: socket.socket) -> tuple[int, bytes, bool]:
    """Read one answer: its status, its body, and whether the connection stays open. Raises EOFError at an early end."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            raise EOFError
        data += chunk
        if data.startswith(b"HTTP/1.1 100") and b"\r\n\r\n" in data:
            data = data.partition(b"\r\n\r\n")[2]
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    (size,) = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length")] or [0]
    while len(body) < size:
        chunk = connection.recv(65536)
        if not chunk:
            raise EOFError
        body += chunk
    return int(lines[0].split()[1]), body, b"connection: close" not in lines


def judged(models: Mapping[str, Served], content: bytes, status: int, body: bytes) -> Verdict:
    """Return what an answer is worth."""
    counts = {f"answered with {status or 'nothing'}": 1}
    if status == 200:
        if not content.startswith(b"POST /predict"):
            return Verdict(SAME, counts=counts)
        wanted = expected(models, content)
        found = json.loads(body)["predictions"]
        is_right = wanted is not None and len(found) == len(wanted) and all(map(_alike, found, wanted))
        if is_right:
            return Verdict(SAME, counts=counts)
        return Verdict(SILENT, f"{found} instead of {wanted}"[:600], counts)
    if 400 <= status < 500:
        return Verdict(REFUSED, counts=counts)
    if status == 0:
        is_request = (
            is_whole(content) and content.startswith(b"POST /predict HTTP/1.1\r\n") and expected(models, content)
        )
        return Verdict(DEAD_END, "cut off") if is_request else Verdict(REFUSED, counts=counts)
    return Verdict(TRACEBACK, f"status {status}: {body[:300]!r}", counts)


def expected(models: Mapping[str, Served], content: bytes) -> list[Any] | None:
    """Return what the model says of the texts in a request; None where it holds none."""
    body = content.partition(b"\r\n\r\n")[2]
    if b"transfer-encoding: chunked" in content.lower():
        body = body.partition(b"\r\n")[2].partition(b"\r\n0\r\n")[0]
    try:
        texts = json.loads(body)["texts"]
        (one,) = models.values()
        return [_alone(one, text) for text in texts]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


@cache
def _cached(model: Any, text: str) -> Any:
    return model.compute(model.read([Text("", (text,))]))[0]


def _alone(one: Served, text: str) -> Any:
    found = _cached(one.model, text)
    if isinstance(found, RequestError):
        raise found
    return found


def _alike(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether two answers are the same up to rounding, which depends on the rest of a batch."""
    differences = [abs(found["scores"][name] - wanted["scores"][name]) for name in wanted["scores"]]
    return found["tokens"] == wanted["tokens"] and max(differences) < 1e-4


def end(server: Any, stack: ExitStack, models: Mapping[str, Served], begun: list[bytes], asked: list[bytes]) -> Verdict:
    """End a server while requests are unfinished: those that were whole are answered, and it ends in time."""
    if not begun:
        return Verdict(UNTRIED)
    opened = [socket.create_connection(server.place, WAIT_S) for _ in [*begun, *asked]]
    for connection, content in zip(opened, [*begun, *asked], strict=True):
        connection.sendall(content)
    time.sleep(0.05)  # they are accepted
    began = time.monotonic()
    stack.close()  # waits for its thread
    took = time.monotonic() - began
    answers = [answer_of(connection) for connection in opened[len(begun) :]]
    for connection in opened:
        connection.close()
    if took > DRAIN_S + 5:
        return Verdict(HANGS, f"ended after {took:.1f} s")
    verdicts = [judged(models, content, *answer[:2]) for content, answer in zip(asked, answers, strict=True)]
    wrong = [one for one in verdicts if one.outcome != SAME]
    return wrong[0] if wrong else Verdict(SAME, counts={"servers ended in the middle of requests": 1})
