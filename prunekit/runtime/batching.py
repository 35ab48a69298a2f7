"""Dynamic batching: a bounded, fair queue, and a computation that takes items of concurrent requests together.

Knows nothing about HTTP, texts or models. A pool of threads turns incoming data into items that have a length, other
threads compute a batch of items at a time, and the event loop manages the queues. Both are fair to the owners of calls,
by size: a call of many or long items waits behind those of owners who ask for less.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prunekit.runtime.fair_queue import FairQueue, Waiting
from prunekit.runtime.tally import Tally


@dataclass(frozen=True)
class Limits:
    """Limits on batch size, queue length and waiting time; the length of an item is its number of tokens."""

    texts: int  # per batch
    tokens: int  # per batch; an item longer than this is computed alone
    wait_s: float | int  # longest time an item waits for others to share its batch, while nothing else is computed
    queue: int  # items that may wait, including those still being read
    timeout_s: float | int  # from arrival to answer
    call_tokens: int | None = None  # in one call
    readers: int = 1  # threads that read
    piece: int = 16_384  # size of what a thread reads at a time, if it is more than one item
    lanes: int = 1  # batches that are computed at the same time
    batch_s: float | None = None  # how long a batch may take, by the pace of those before: later items wait so long


class QueueFullError(RuntimeError):
    """The queue has no room; `retry_s` estimates in how many seconds it will."""

    def __init__(self, waiting: int, given: int, allowed: int, retry_s: int) -> None:
        super().__init__(f"{waiting} texts are waiting, and {given} more would exceed the limit of {allowed}")
        self.waiting = waiting
        self.given = given
        self.allowed = allowed
        self.retry_s = retry_s


class CallTooLongError(RuntimeError):
    """The items of one call have more tokens together than a call may have."""

    def __init__(self, tokens: int, allowed: int) -> None:
        super().__init__(f"{tokens} tokens together")
        self.allowed = allowed


class RequestTimeoutError(RuntimeError):
    """The request timed out; work that had not started was cancelled."""


class BatcherClosedError(RuntimeError):
    """The batcher is shutting down: it finishes what is queued and accepts nothing new."""


class BatchFailedError(RuntimeError):
    """The computation of a batch raised an error, which is the cause of this one."""


@dataclass(eq=False)
class _Piece(Waiting):
    """Some of what one call gave, to be read; it costs the size of that."""

    given: Sequence[Any]
    items: asyncio.Future[Sequence[Any]]


@dataclass(eq=False)
class _Entry(Waiting):
    """An item in the queue; it costs its length."""

    item: Any
    arrived: float
    deadline: float
    answer: asyncio.Future[Any]


@dataclass(eq=False)
class _Call:
    """One call of `submit`: first its pieces are read, and then its entries computed."""

    owner: Hashable
    size: int
    deadline: float
    pieces: list[_Piece] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Raise an error in the caller, unless everything is answered already."""
        futures = [entry.answer for entry in self.entries] or [piece.items for piece in self.pieces]
        for future in futures:
            if not future.done():
                future.set_exception(error)
                return


@dataclass
class _Pace:
    """How fast the last batches were computed: seconds per item and per token."""

    item_s: float = 0.0
    token_s: float = 0.0

    def update(self, spent: float, items: int, tokens: int, limits: Limits) -> None:
        """Take a batch into account."""
        self.item_s = spent / items
        # small batches are slower per token and say little about large ones, so each counts by its size
        weight = min(0.5, tokens / limits.tokens) if self.token_s else 1
        self.token_s += (spent / max(1, tokens) - self.token_s) * weight

    def most_tokens(self, limits: Limits) -> float | int:
        """Return how many tokens a batch may have, of which a single item may have more."""
        if limits.batch_s is None or not self.token_s:
            return limits.tokens
        return min(limits.tokens, limits.batch_s / self.token_s)


class Batcher:
    """A queue that answers requests of one or more items each, computing items of different requests together.

        async with Batcher(read, compute, limits) as batcher:
            answers = await batcher.submit(["a text", "another one"], owner="a connection")

    `read` turns part of a submitted list into the same number of items, each with a length; its errors reach the caller
    of `submit`. `compute` turns a list of items into the same number of results; a result that is an exception is
    raised in its caller. `read` runs in `limits.readers` threads, `compute` in `limits.lanes`, or in an executor that
    several batchers share.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Any]], Sequence[Any]],
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        limits: Limits,
        executor: Executor | None = None,
    ) -> None:
        self.read = read
        self.compute = compute
        self.limits = limits
        self.tally = Tally()
        self.closing = False
        self._executor = executor
        self._unread: FairQueue[_Piece] = FairQueue()
        self._queue: FairQueue[_Entry] = FairQueue()
        self._calls: dict[_Call, None] = {}  # open calls of submit, in order of arrival
        self._readers: set[asyncio.Task[None]] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()  # the queue grew, a batch is done, or it is time to stop
        self._pace = _Pace()

    async def __aenter__(self) -> Batcher:
        self._reader = ThreadPoolExecutor(self.limits.readers, "reading")
        self._computer = self._executor or ThreadPoolExecutor(self.limits.lanes, "computing")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop accepting items, and return once everything accepted has been answered."""
        self.close()
        await self._worker
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self._executor is None:
            self._computer.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Accept nothing more, and do not wait for more items before a batch is computed."""
        self.closing = True
        self._changed.set()

    def give_up(self) -> None:
        """Answer every open call with BatcherClosedError, now."""
        for call in list(self._calls):
            self._drop(call, BatcherClosedError("the server shuts down before the answer is computed"))

    @property
    def waiting(self) -> int:
        """Number of items accepted whose computation has not started."""
        return sum(call.size for call in self._calls if not call.entries) + len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether new requests will be answered."""
        return not self.closing and not self._worker.done()

    async def submit(self, given: Sequence[Sized], owner: Hashable = None) -> list[Any]:
        """Return the answers, in order. If cancelled, remove the items whose computation has not started.

        Calls of one owner are served in order of arrival; between owners, the queue is fair.

        Raises:
            QueueFullError: the queue has no room for all of these items, or gave their room to an owner of fewer.
            CallTooLongError: the items have more than `limits.call_tokens` tokens together.
            RequestTimeoutError: no answer within `limits.timeout_s`.
            BatcherClosedError: the batcher is shutting down.
            BatchFailedError: the computation raised an error.
        """
        if self.closing:
            raise BatcherClosedError("the server is shutting down")
        self._make_room(owner, len(given))
        start = asyncio.get_running_loop().time()
        call = _Call(owner, len(given), start + self.limits.timeout_s)
        self._calls[call] = None
        outcome = "refused"  # by `read`, unless one of the outcomes below applies
        try:
            answers = await self._read_and_wait(call, given)
            outcome = ""
            self.tally.count_answer(asyncio.get_running_loop().time() - start)
            return answers
        except QueueFullError:
            outcome = "full"
            raise
        except RequestTimeoutError:
            outcome = "late"
            raise
        except BatchFailedError:
            outcome = "failed"
            raise
        except (asyncio.CancelledError, BatcherClosedError):
            outcome = "left"
            raise
        finally:
            if outcome:
                self.tally.outcomes[outcome] += 1
            self._remove_waiting(call)
            self._calls.pop(call, None)
            if self.closing:
                self._changed.set()

    async def _read_and_wait(self, call: _Call, given: Sequence[Sized]) -> list[Any]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(call.deadline):
                for part in _pieces(given, self.limits.piece):
                    call.pieces.append(_Piece(call.owner, sum(map(len, part)), part, loop.create_future()))
                self._unread.add(call.pieces)
                self._read_more()
                read = await asyncio.gather(*(piece.items for piece in call.pieces))
                items = [item for part in read for item in part]
                tokens, allowed = sum(map(len, items)), self.limits.call_tokens
                if allowed is not None and tokens > allowed:
                    raise CallTooLongError(tokens, allowed)
                now = loop.time()
                call.entries = [
                    _Entry(call.owner, len(item), item, now, call.deadline, loop.create_future()) for item in items
                ]
                self._queue.add(call.entries)
                self._changed.set()
                return await asyncio.gather(*(entry.answer for entry in call.entries))
        except TimeoutError as error:
            raise RequestTimeoutError(f"no answer within {self.limits.timeout_s:g} s") from error

    # -- room ------------------------------------------------------------------------------------------

    def _make_room(self, owner: Hashable, count: int) -> None:
        """Let calls of an owner who holds more than this one would give way until `count` items fit in the queue.

        Raises:
            QueueFullError: nobody holds more.
        """
        while self.waiting + count > self.limits.queue:
            held: Counter[Hashable] = Counter()
            queued = set(self._queue)
            for call in self._calls:
                # before a call is read, all of it waits
                held[call.owner] += sum(entry in queued for entry in call.entries) if call.entries else call.size
            most = max(held, key=held.__getitem__, default=None)
            # the error is made here, where it says what there was no room for
            full = QueueFullError(
                self.waiting, count, self.limits.queue, max(1, math.ceil(self.waiting * self._pace.item_s))
            )
            if most == owner or held[most] <= held[owner] + count:
                self.tally.outcomes["full"] += 1
                raise full
            self._drop(next(call for call in reversed(self._calls) if call.owner == most), full)

    def _drop(self, call: _Call, error: Exception) -> None:
        """Answer a call with an error, and remove what of it is waiting."""
        call.fail(error)
        self._remove_waiting(call)
        self._calls.pop(call, None)

    def _remove_waiting(self, call: _Call) -> None:
        for entry in call.entries:
            entry.answer.cancel()
            self._queue.remove(entry)
        for piece in call.pieces:
            piece.items.cancel()
            self._unread.remove(piece)

    # -- reading ---------------------------------------------------------------------------------------

    def _read_more(self) -> None:
        while len(self._unread) and len(self._readers) < self.limits.readers:
            piece = next(iter(self._unread))
            self._unread.serve(piece)
            task = asyncio.create_task(self._read(piece))
            self._readers.add(task)
            task.add_done_callback(self._reader_is_free)

    def _reader_is_free(self, task: asyncio.Task[None]) -> None:
        self._readers.discard(task)
        self._read_more()

    async def _read(self, piece: _Piece) -> None:
        try:
            items = await asyncio.get_running_loop().run_in_executor(self._reader, self.read, piece.given)
            if not piece.items.done():
                piece.items.set_result(items)
        except Exception as error:
            if not piece.items.done():
                piece.items.set_exception(error)

    # -- batches ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not (self.closing and not self._calls):
            if len(self._queue) and len(self._batches) < self.limits.lanes:
                await self._wait_for_more()
                batch = self._take_batch()
                if batch:
                    task = asyncio.create_task(self._compute(batch))
                    self._batches.add(task)
                    task.add_done_callback(self._lane_is_free)
            else:
                await self._wait_for_change()

    def _lane_is_free(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._changed.set()

    async def _wait_for_change(self, seconds: float | None = None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def _wait_for_more(self) -> None:
        """Wait until the batch is full or its first item has waited `wait_s`; return at once when shutting down."""
        loop = asyncio.get_running_loop()
        while len(self._queue) and not self.closing and not self._next_batch()[1]:
            left = min(entry.arrived for entry in self._queue) + self.limits.wait_s - loop.time()
            if left <= 0:
                return
            await self._wait_for_change(left)

    def _next_batch(self) -> tuple[list[_Entry], bool]:
        """Return the entries that would be computed now, and whether they fill the batch."""
        batch: list[_Entry] = []
        tokens, most = 0, self._pace.most_tokens(self.limits)
        for entry in self._queue:
            tokens += entry.cost
            if batch and (len(batch) == self.limits.texts or tokens > most):
                return batch, True
            batch.append(entry)
        return batch, len(batch) == self.limits.texts or tokens >= most

    def _take_batch(self) -> list[_Entry]:
        """Remove the next batch from the queue, after discarding entries that nobody is waiting for any more."""
        now = asyncio.get_running_loop().time()
        for entry in [entry for entry in self._queue if entry.answer.done() or entry.deadline <= now]:
            self._queue.remove(entry)
        batch, _ = self._next_batch()
        for entry in batch:
            self._queue.serve(entry)
        return batch

    async def _compute(self, batch: Sequence[_Entry]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        items = [entry.item for entry in batch]
        for entry, answer in zip(batch, await self._answers(items), strict=True):
            if entry.answer.done():
                continue
            if isinstance(answer, Exception):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result(answer)
        spent, tokens = loop.time() - start, sum(entry.cost for entry in batch)
        self._pace.update(spent, len(batch), tokens, self.limits)
        self.tally.batches += 1
        self.tally.texts += len(batch)
        self.tally.tokens += tokens
        self.tally.computing_s += spent

    async def _answers(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the answers to a batch; if it fails, those of its items alone, so that only the culprit fails."""
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._computer, self.compute, items)
            if len(answers) != len(items):
                raise ValueError(f"{len(answers)} answers to {len(items)} items")
            return answers
        except Exception as error:
            if len(items) > 1:
                return [answer for item in items for answer in await self._answers([item])]
            failed = BatchFailedError(f"{type(error).__name__}: {error}")
            failed.__cause__ = error
            return [failed]


def _pieces(given: Sequence[Sized], size: int) -> Iterator[Sequence[Sized]]:
    """Divide a list into parts of at most this size together, or of one item."""
    first, so_far = 0, 0
    for place, item in enumerate(given):
        if place > first and so_far + len(item) > size:
            yield given[first:place]
            first, so_far = place, 0
        so_far += len(item)
    yield given[first:]
