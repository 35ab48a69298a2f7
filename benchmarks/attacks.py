"""Attacks on a server of this machine, one a time, until the process ends; benchmarks/serving.py starts them.

    python benchmarks/attacks.py NAME PORT

Needs nothing but the standard library, and knows nothing about the server but its address. A client that is answered
pauses for 50 ms, as one that is refused does in the load test.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle

PAUSE_S = 0.05
HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {type}\r\nContent-Length: {size}\r\n{more}\r\n"
WORDS = "the storm was long and the harbour lay dark under it "


def request(body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    return HEAD.format(type=kind, size=len(body), more=more).encode() + body


def texts(*given: str) -> bytes:
    return json.dumps({"texts": given}).encode()


NONSENSE = [
    request(b'{"\\ud800": 1}'),
    request(b'{"texts": ["\xff\xfe"]}'),
    request(b"[" * 100_000),
    request(b'{"a":' * 20_000),
    request(b"9" * 100_000),
    request(texts("\u200b")),
    request(b"\x1f\x8b" + b"\0" * 1000, more="Content-Encoding: gzip\r\n"),
    request(texts("a text"), kind="application/xml"),
    b"GET /" + b"%ff" * 1000 + b" HTTP/1.1\r\nHost: [\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


async def asking(port: int, requests: list[bytes]) -> None:
    """A client that sends one request after another, and reads what it is told; it connects again when cut off."""
    waiting = cycle(requests)
    while True:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while True:
                    writer.write(next(waiting))
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    await reader.readexactly(int(size[0].split(b":")[1]))
                    await asyncio.sleep(PAUSE_S)
            finally:
                writer.close()
        await asyncio.sleep(PAUSE_S)


async def dripping(port: int, start: bytes, byte: bytes) -> None:
    """A client that never finishes its request, a byte now and then; it connects again when cut off."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(start)
                while not writer.is_closing():
                    await asyncio.sleep(0.5)
                    writer.write(byte)
                    await writer.drain()
            finally:
                writer.close()
        await asyncio.sleep(PAUSE_S)


HALF_A_BODY = request(texts("a text" * 1000))[:-5000]
LONGEST = texts(*[WORDS * 150] * 30)  # 240 KB of texts that are cut to the longest that the model reads

# name -> what it is, how many clients, and one of them
ATTACKS: dict[str, tuple[str, int, Callable[[int], Awaitable[None]]]] = {
    "huge": ("clients with a text of 1 MB", 12, lambda port: asking(port, [request(texts("a" * 2**20))])),
    "long": ("clients with 30 texts of 8,000 characters", 12, lambda port: asking(port, [request(LONGEST)])),
    "nonsense": ("clients with what is no request", 12, lambda port: asking(port, NONSENSE)),
    "bodies": ("clients that drip a body", 400, lambda port: dripping(port, HALF_A_BODY, b"a")),
    "heads": ("clients that drip a head", 400, lambda port: dripping(port, b"POST /predict HTTP/1.1\r\n", b"a")),
    "silent": ("clients that say nothing", 1000, lambda port: dripping(port, b"", b"")),
}


async def attack(name: str, port: int) -> None:
    what, clients, client = ATTACKS[name]
    print(f"{clients:,} {what}", flush=True)
    await asyncio.gather(*(client(port) for _ in range(clients)))


if __name__ == "__main__":
    asyncio.run(attack(sys.argv[1], int(sys.argv[2])))
