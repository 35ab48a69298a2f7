"""Items that arrive together are computed together: a bounded queue in front of one computing thread.

Nothing here knows HTTP, texts or models. What comes in is read (made into items that have a length) in one thread and
computed in another, a batch at a time; the event loop only keeps the queue. A batch takes who came first.
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

REMEMBERED = 10_000  # answers whose times the percentiles are of


@dataclass(frozen=True)
class Limits:
    """Of a batch, of the queue and of patience; an item's length counts as tokens."""

    texts: int  # in a batch
    tokens: int  # in a batch, though an item that is longer alone is computed alone
    wait_s: float | int  # that an item waits for company, while nothing else is computed
    queue: int  # items that wait, those being read among them
    timeout_s: float | int  # from arrival to answer


class QueueFullError(RuntimeError):
    """The queue has no room; `retry_s` is when it should have."""

    def __init__(self, waiting: int, given: int, allowed: int, retry_s: int) -> None:
        super().__init__(f"{waiting} texts are waiting, and {given} more are over the limit of {allowed}")
        self.waiting = waiting
        self.given = given
        self.allowed = allowed
        self.retry_s = retry_s


class RequestTimeoutError(RuntimeError):
    """There was no answer in time; what had not been started never will be."""


class BatcherClosedError(RuntimeError):
    """Nothing is taken any more: what is in the queue is being finished."""


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
    """What has happened so far. Outcomes are of calls of `submit`, times of those that were answered."""

    outcomes: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    texts: int = 0
    tokens: int = 0
    computing_s: float = 0.0
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def summary(self) -> dict[str, Any]:
        """As plain numbers; percentiles are of the last answers, None before the first."""
        ordered = sorted(self.answered_s)
        return {
            "requests": dict(self.outcomes),
            "batches": self.batches,
            "texts": self.texts,
            "tokens": self.tokens,
            "computing_s": self.computing_s,
            "mean_batch_texts": self.texts / self.batches if self.batches else None,
            "mean_batch_tokens": self.tokens / self.batches if self.batches else None,
            "latency_ms": {f"p{percent}": milliseconds(ordered, percent) for percent in (50, 95, 99)},
        }


def milliseconds(ordered: Sequence[float], percent: float | int) -> float | None:
    """A percentile of sorted seconds: the smallest one that so many percent do not exceed; None of none."""
    if not ordered:
        return None
    return 1000 * ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class Batcher:
    """Answers requests of one or more items each, computing items of different requests together.

        async with Batcher(read, compute, limits) as batcher:
            answers = await batcher.submit(["a text", "another one"])

    `read` makes a list of what was submitted into as many items, which have a length; what it raises is the caller's.
    `compute` answers a list of items with as many results. Each runs in a thread of its own, one call at a time.
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
        self._queue: dict[_Entry, None] = {}  # in order of arrival; a dict, because anybody may leave it
        self._reading = 0
        self._open = 0  # calls of submit
        self._news = asyncio.Event()  # somebody came, or it is time to stop
        self._pace_s = 0.0  # per item of the last batch

    async def __aenter__(self) -> Batcher:
        self._reader = ThreadPoolExecutor(1, "reading")
        self._computer = ThreadPoolExecutor(1, "computing")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Takes nothing more, and returns when all that was taken is answered."""
        self.closing = True
        self._news.set()
        await self._worker
        for pool in (self._reader, self._computer):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Items that were taken and are not being computed yet."""
        return self._reading + len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether answers may be expected."""
        return not self.closing and not self._worker.done()

    async def submit(self, given: Sequence[Any]) -> list[Any]:
        """The answers, in order. Cancelled, those of its items that are not being computed yet leave the queue.

        Raises:
            Full: there are more items than room in the queue; nothing of this call was taken.
            Late: no answer within the time that the limits allow.
            Closed: nothing is taken any more.
            Failed: the computation raised an error.
        """
        if self.closing:
            raise BatcherClosedError("the server is going down")
        if self.waiting + len(given) > self.limits.queue:
            self.tally.outcomes["full"] += 1
            retry_s = max(1, math.ceil(self.waiting * self._pace_s))
            raise QueueFullError(self.waiting, len(given), self.limits.queue, retry_s)
        self._open += 1
        start = asyncio.get_running_loop().time()
        outcome = "refused"  # by `read`, unless something else becomes of it
        try:
            answers = await self._answers(given, start + self.limits.timeout_s)
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
            self._open -= 1
            if self.closing:
                self._news.set()

    async def _answers(self, given: Sequence[Any], deadline: float) -> list[Any]:
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
                self._news.set()
                return await asyncio.gather(*(entry.answer for entry in entries))
        except TimeoutError as error:
            raise RequestTimeoutError(f"no answer within {self.limits.timeout_s:g} s") from error
        finally:
            for entry in entries:
                entry.answer.cancel()
                self._queue.pop(entry, None)

    # -- batches ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not (self.closing and self._open == 0):
            if self._queue:
                await self._company()
                await self._answer(self._taken())
            else:
                await self._next_news()

    async def _next_news(self, seconds: float | None = None) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _company(self) -> None:
        """Waits for more items than the first, as long as it may and as they fit; when going down, not at all."""
        loop = asyncio.get_running_loop()
        while self._queue and not self.closing and not self._fitting()[1]:
            left = next(iter(self._queue)).arrived + self.limits.wait_s - loop.time()
            if left <= 0:
                return
            await self._next_news(left)

    def _fitting(self) -> tuple[list[_Entry], bool]:
        """Who would be computed now, and whether that is all there is room for."""
        chosen: list[_Entry] = []
        tokens = 0
        for entry in self._queue:
            tokens += len(entry.item)
            if chosen and (len(chosen) == self.limits.texts or tokens > self.limits.tokens):
                return chosen, True
            chosen.append(entry)
        return chosen, len(chosen) == self.limits.texts or tokens >= self.limits.tokens

    def _taken(self) -> list[_Entry]:
        """The next batch, out of the queue; without those whom nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        for entry in [entry for entry in self._queue if entry.answer.done() or entry.deadline <= now]:
            del self._queue[entry]
        chosen, _ = self._fitting()
        for entry in chosen:
            del self._queue[entry]
        return chosen

    async def _answer(self, batch: Sequence[_Entry]) -> None:
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
        except Exception as error:  # of one batch: the next one has other texts
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
