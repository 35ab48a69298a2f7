"""Dynamic batching: a bounded queue in front of one compute thread that batches items of concurrent requests.

Knows nothing about HTTP, texts or models. One thread turns incoming data into items that have a length, another
computes a batch of items at a time, and the event loop manages the queue. Batches are filled in order of arrival.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 10_000  # most recent answers from which the latency percentiles are computed


@dataclass(frozen=True)
class Limits:
    """Limits on batch size, queue length and waiting time; the length of an item is its number of tokens."""

    texts: int  # per batch
    tokens: int  # per batch; an item longer than this is computed alone
    wait_s: float | int  # longest time an item waits for others to share its batch, while nothing else is computed
    queue: int  # items that may wait, including those still being read
    timeout_s: float | int  # from arrival to answer


class QueueFullError(RuntimeError):
    """The queue has no room; `retry_s` estimates in how many seconds it will."""

    def __init__(self, waiting: int, given: int, allowed: int, retry_s: int) -> None:
        super().__init__(f"{waiting} texts are waiting, and {given} more would exceed the limit of {allowed}")
        self.waiting = waiting
        self.given = given
        self.allowed = allowed
        self.retry_s = retry_s


class RequestTimeoutError(RuntimeError):
    """The request timed out; work that had not started was cancelled."""


class BatcherClosedError(RuntimeError):
    """The batcher is shutting down: it finishes what is queued and accepts nothing new."""


class BatchFailedError(RuntimeError):
    """The computation of a batch raised an error, which is the cause of this one."""


@dataclass(eq=False)
class _Entry:
    """An item in the queue."""

    item: Any
    arrived: float
    deadline: float
    answer: asyncio.Future[Any]


@dataclass
class Tally:
    """Counters since the start. Outcomes count calls of `submit`; times are those of answered calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    texts: int = 0
    tokens: int = 0
    computing_s: float = 0.0
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def summary(self) -> dict[str, Any]:
        """Return the counters as plain numbers; percentiles cover the most recent answers, None before the first."""
        ordered = sorted(self.answered_s)
        return {
            "requests": dict(self.outcomes),
            "batches": self.batches,
            "texts": self.texts,
            "tokens": self.tokens,
            "computing_s": self.computing_s,
            "mean_batch_texts": self.texts / self.batches if self.batches else None,
            "mean_batch_tokens": self.tokens / self.batches if self.batches else None,
            "latency_ms": {f"p{percent}": percentile_ms(ordered, percent) for percent in (50, 95, 99)},
        }


def percentile_ms(ordered: Sequence[float], percent: float | int) -> float | None:
    """Return the nearest-rank percentile of sorted seconds, in milliseconds; None for an empty sequence."""
    if not ordered:
        return None
    return 1000 * ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class Batcher:
    """A queue that answers requests of one or more items each, computing items of different requests together.

        async with Batcher(read, compute, limits) as batcher:
            answers = await batcher.submit(["a text", "another one"])

    `read` turns a submitted list into the same number of items, each with a length; its errors reach the caller of
    `submit`. `compute` turns a list of items into the same number of results. Each runs in its own thread, one call
    at a time.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Any]], Sequence[Any]],
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        limits: Limits,
    ) -> None:
        self.read = read
        self.compute = compute
        self.limits = limits
        self.tally = Tally()
        self.closing = False
        self._queue: dict[_Entry, None] = {}  # in order of arrival; a dict, because any entry may be removed
        self._reading = 0
        self._open_calls = 0  # of submit
        self._changed = asyncio.Event()  # the queue grew, or it is time to stop
        self._pace_s = 0.0  # per item of the last batch

    async def __aenter__(self) -> Batcher:
        self._reader = ThreadPoolExecutor(1, "reading")
        self._computer = ThreadPoolExecutor(1, "computing")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop accepting items, and return once everything accepted has been answered."""
        self.closing = True
        self._changed.set()
        await self._worker
        for pool in (self._reader, self._computer):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Number of items accepted whose computation has not started."""
        return self._reading + len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether new requests will be answered."""
        return not self.closing and not self._worker.done()

    async def submit(self, given: Sequence[Any]) -> list[Any]:
        """Return the answers, in order. If cancelled, remove the items whose computation has not started.

        Raises:
            QueueFullError: the queue has no room for all of these items; none of them was accepted.
            RequestTimeoutError: no answer within `limits.timeout_s`.
            BatcherClosedError: the batcher is shutting down.
            BatchFailedError: the computation raised an error.
        """
        if self.closing:
            raise BatcherClosedError("the server is shutting down")
        if self.waiting + len(given) > self.limits.queue:
            self.tally.outcomes["full"] += 1
            retry_s = max(1, math.ceil(self.waiting * self._pace_s))
            raise QueueFullError(self.waiting, len(given), self.limits.queue, retry_s)
        self._open_calls += 1
        start = asyncio.get_running_loop().time()
        outcome = "refused"  # by `read`, unless one of the outcomes below applies
        try:
            answers = await self._read_and_wait(given, start + self.limits.timeout_s)
            outcome = "ok"
            self.tally.answered_s.append(asyncio.get_running_loop().time() - start)
            return answers
        except RequestTimeoutError:
            outcome = "late"
            raise
        except BatchFailedError:
            outcome = "failed"
            raise
        except asyncio.CancelledError:
            outcome = "left"
            raise
        finally:
            self.tally.outcomes[outcome] += 1
            self._open_calls -= 1
            if self.closing:
                self._changed.set()

    async def _read_and_wait(self, given: Sequence[Any], deadline: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        entries: list[_Entry] = []
        try:
            async with asyncio.timeout_at(deadline):
                self._reading += len(given)
                try:
                    items = await loop.run_in_executor(self._reader, self.read, given)
                finally:
                    self._reading -= len(given)
                now = loop.time()
                entries = [_Entry(item, now, deadline, loop.create_future()) for item in items]
                self._queue.update(dict.fromkeys(entries))
                self._changed.set()
                return await asyncio.gather(*(entry.answer for entry in entries))
        except TimeoutError as error:
            raise RequestTimeoutError(f"no answer within {self.limits.timeout_s:g} s") from error
        finally:
            for entry in entries:
                entry.answer.cancel()
                self._queue.pop(entry, None)

    # -- batches ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not (self.closing and self._open_calls == 0):
            if self._queue:
                await self._wait_for_more()
                await self._compute(self._take_batch())
            else:
                await self._wait_for_change()

    async def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _wait_for_more(self) -> None:
        """Wait until the batch is full or its first item has waited `wait_s`; return at once when shutting down."""
        loop = asyncio.get_running_loop()
        while self._queue and not self.closing and not self._next_batch()[1]:
            left = next(iter(self._queue)).arrived + self.limits.wait_s - loop.time()
            if left <= 0:
                return
            await self._wait_for_change(left)

    def _next_batch(self) -> tuple[list[_Entry], bool]:
        """Return the entries that would be computed now, and whether they fill the batch."""
        batch: list[_Entry] = []
        tokens = 0
        for entry in self._queue:
            tokens += len(entry.item)
            if batch and (len(batch) == self.limits.texts or tokens > self.limits.tokens):
                return batch, True
            batch.append(entry)
        return batch, len(batch) == self.limits.texts or tokens >= self.limits.tokens

    def _take_batch(self) -> list[_Entry]:
        """Remove the next batch from the queue, after discarding entries that nobody is waiting for any more."""
        now = asyncio.get_running_loop().time()
        for entry in [entry for entry in self._queue if entry.answer.done() or entry.deadline <= now]:
            del self._queue[entry]
        batch, _ = self._next_batch()
        for entry in batch:
            del self._queue[entry]
        return batch

    async def _compute(self, batch: Sequence[_Entry]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        start = loop.time()
        items = [entry.item for entry in batch]
        try:
            answers = await loop.run_in_executor(self._computer, self.compute, items)
            for entry, answer in zip(batch, answers, strict=True):
                if not entry.answer.done():
                    entry.answer.set_result(answer)
        except Exception as error:  # fails this batch only: the next one has other texts
            for entry in batch:
                if not entry.answer.done():
                    failed = BatchFailedError(f"{type(error).__name__}: {error}")
                    failed.__cause__ = error
                    entry.answer.set_exception(failed)
        spent = loop.time() - start
        self._pace_s = spent / len(batch)
        self.tally.batches += 1
        self.tally.texts += len(batch)
        self.tally.tokens += sum(map(len, items))
        self.tally.computing_s += spent
