"""Requests to a server: those that it must answer, those that it must refuse, and what is no request at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

HEAD = "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{more}\r\n"
LETTERS = "abcdefghij klmnop. ,!?äé中א\U0001f600\u200b\ufeff\x00\t\\\"'"
Draw = Callable[[random.Random, Sequence[str]], bytes]


def post(
    body: bytes, *, size: object = None, kind: str = "application/json", more: str = "", path: str = "/predict"
) -> bytes:
    """Return a request with a body; `size` is the length that it says to have, by default the right one."""
    length = f"Content-Length: {len(body) if size is None else size}\r\n"
    return HEAD.format(method="POST", path=path, kind=kind, more=length + more).encode("utf-8", "surrogatepass") + body


def body_of(*texts: Any) -> bytes:
    """Return the body that asks for the labels of texts."""
    return json.dumps({"texts": texts}).encode()


def valid(rng: random.Random, words: Sequence[str]) -> bytes:
    """Ask for the labels of a few texts."""
    return post(body_of(*rng.choices(words, k=rng.randint(1, 5))))


def mutated(rng: random.Random, words: Sequence[str]) -> bytes:
    """Ask with a body of which some bytes are others, missing or twice."""
    body = bytearray(body_of(*rng.choices(words, k=2)))
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(body))
        how = rng.randrange(3)
        if how == 0:
            body[place] = rng.randrange(256)
        elif how == 1:
            del body[place]
        else:
            body[place:place] = body[place : place + rng.randint(1, 8)]
    return post(bytes(body))


def strange(rng: random.Random, words: Sequence[str]) -> bytes:
    """Ask for the label of a text of any characters."""
    text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 200)))
    return post(body_of(text, *rng.choices(words, k=rng.randint(0, 2))))


VALUES: tuple[bytes, ...] = (
    *(b"[]", b"null", b"7", b'"x"', b"[[]]", b"[null]", b'[""]', b'[" "]', b'["\\ud800"]', b'["\\u0000"]', b"[1e400]"),
    *(
        b"[NaN]",
        b"[true]",
        b'[["a", "b"]]',
        b'[{"a": 1}]',
        b"9" * 5000,
        b'["\\u200b"]',
        b"{}",
        b'["a" "b"]',
        b"[",
        b"-",
    ),
    *(b'["' + b"a" * 2**17 + b'"]', b"[" * 50_000, b'["a"' + b', "a"' * 100 + b"]", b'["a"' + b', "a"' * 63 + b"]"),
)


def values(rng: random.Random, words: Sequence[str]) -> bytes:
    """Give another value in the place of the texts."""
    return post(b'{"texts": ' + rng.choice(VALUES) + b"}")


BODIES: tuple[bytes, ...] = (
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"texts": ["a"], "texts": ["b"]}',
        b"[" * 10**5,
    ),
    *(
        b'{"texts": ["a"], "more": 1}',
        b'{"\\ud800": 1}',
        b'{"texts": ["a"], "model": "\\ud800"}',
        b"a=b",
        b"{'texts': []}",
    ),
    *(
        b'{"a":' * 20_000,
        b"9" * 10**5,
        b'{"texts": ["a"], "model": ' + b"[" * 9999,
        b'{"texts": ["a"]} x',
        b"\x00" * 500,
    ),
    body_of("a" * 2**20),
)


def bodies(rng: random.Random, words: Sequence[str]) -> bytes:
    """Send another body."""
    return post(rng.choice(BODIES))


def heads(rng: random.Random, words: Sequence[str]) -> bytes:
    """Ask for something else, or in other words, than the server knows."""
    body = body_of(rng.choice(words))
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    chunked = HEAD.format(
        method="POST", path="/predict", kind="application/json", more="Transfer-Encoding: chunked\r\n"
    )
    return rng.choice(
        (
            post(body, kind=rng.choice(("text/xml", "application/json; charset=utf-16", "\udcff", "", "a" * 500))),
            post(body, more=rng.choice(("Content-Encoding: gzip\r\n", "Expect: 100-continue\r\n", "Upgrade: h2c\r\n"))),
            post(body, size=rng.choice((-1, 10**9, 10**30, "x", "1_0", "0x10"))),
            post(body, more=f"X-Long: {'a' * 10**5}\r\n"),
            post(
                body,
                path=rng.choice(("/nothing", "/predict/", "//predict", "/%ff", "/predict?x=1", "/../predict", "*")),
            ),
            post(body, more="Transfer-Encoding: chunked\r\n"),
            chunked.encode() + chunk,
            chunked.encode() + b"zz\r\n" + body,
            *(
                HEAD.format(method=method, path="/predict", kind="a/b", more="").encode()
                for method in ("GET", "PUT", "BREW")
            ),
            *(
                HEAD.format(method="GET", path=path, kind="a/b", more="").encode()
                for path in ("/stats", "/health", "/")
            ),
        )
    )


def nonsense(rng: random.Random, words: Sequence[str]) -> bytes:
    """Send what is no request."""
    return rng.choice(
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /" + b"%ff" * 1000 + b" HTTP/1.1\r\nHost: [\r\n\r\n",
            b"\r\n" * 1000,
            b"POST /predict HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            bytes(rng.randrange(256) for _ in range(300)) + b"\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"GET /predict\r\n\r\n",
        )
    )


def unfinished(rng: random.Random, words: Sequence[str]) -> bytes:
    """Send the beginning of a request."""
    whole = valid(rng, words)
    return whole[: rng.randrange(1, len(whole))]


DRAWS: dict[Draw, float] = {
    **{valid: 4, mutated: 3, strange: 2, values: 3, bodies: 2, heads: 3, nonsense: 1, unfinished: 1},
}
