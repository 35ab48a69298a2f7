"""The queue in front of the compute thread: which items share a batch, which are refused, and which are cancelled."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from prunekit.runtime.batching import (
    Batcher,
    BatcherClosedError,
    BatchFailedError,
    Limits,
    QueueFullError,
    RequestTimeoutError,
    percentile_ms,
)

ROOMY = Limits(texts=8, tokens=100, wait_s=0.02, queue=100, timeout_s=20)


class Desk:
    """A stand-in for the model: answers a text with its length, records batches, and can be made to wait."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()

    def read(self, texts):
        return list(texts)

    def compute(self, batch):
        self.batches.append(list(batch))
        self.busy.set()
        assert self.go.wait(20)
        if "bad" in batch:
            raise ValueError("cannot compute bad")
        return [len(text) for text in batch]

    async def hold(self, batcher):
        """Submit a request that is being computed until `go` is set."""
        self.go.clear()
        first = asyncio.create_task(batcher.submit(["held"]))
        assert await asyncio.to_thread(self.busy.wait, 20)
        return first


@pytest.fixture
def desk():
    return Desk()


def run(desk, scene, **changes):
    """Run a scene with a batcher; return its result and the batcher."""

    async def play():
        async with Batcher(desk.read, desk.compute, Limits(**{**vars(ROOMY), **changes})) as batcher:
            try:
                return await scene(batcher), batcher
            finally:
                desk.go.set()

    return asyncio.run(play())


def test_requests_that_arrive_together_share_a_batch_and_each_gets_its_own_answers(desk):
    async def scene(batcher):
        return await asyncio.gather(batcher.submit(["a"]), batcher.submit(["bb", "ccc"]), batcher.submit(["dddd"]))

    answers, batcher = run(desk, scene)
    assert answers == [[1], [2, 3], [4]]
    assert desk.batches == [["a", "bb", "ccc", "dddd"]]
    assert batcher.tally.summary()["mean_batch_texts"] == 4
    assert batcher.tally.outcomes == {"ok": 3}


def test_a_full_batch_does_not_wait_for_more(desk):
    async def scene(batcher):
        return await batcher.submit(["a"] * 8)

    answers, _ = run(desk, scene, wait_s=15)
    assert answers == [1] * 8
    assert len(desk.batches) == 1


def test_a_single_text_waits_for_others_and_is_computed_when_none_arrive(desk):
    async def scene(batcher):
        start = time.monotonic()
        await batcher.submit(["a"])
        return time.monotonic() - start

    spent, _ = run(desk, scene, wait_s=0.05)
    assert spent >= 0.05


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({"texts": 2}, [["aa", "bb"], ["cc", "dddddd"], ["e"]]),
        ({"tokens": 4}, [["aa", "bb"], ["cc"], ["dddddd"], ["e"]]),  # a text over the limit is computed alone
        ({"tokens": 8}, [["aa", "bb", "cc"], ["dddddd", "e"]]),
    ],
)
def test_batches_respect_the_limits_on_texts_and_tokens_and_the_order_of_arrival(limits, batches, desk):
    async def scene(batcher):
        return await batcher.submit(["aa", "bb", "cc", "dddddd", "e"])

    answers, _ = run(desk, scene, **limits)
    assert answers == [2, 2, 2, 6, 1]
    assert desk.batches == batches


def test_texts_that_arrive_during_a_computation_are_in_the_next_batch(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        others = [asyncio.create_task(batcher.submit([text])) for text in ("a", "bb", "ccc")]
        await asyncio.sleep(0.05)
        assert (desk.batches, batcher.waiting) == ([["held"]], 3)
        desk.go.set()
        return [await first, *[await other for other in others]]

    answers, _ = run(desk, scene)
    assert answers == [[4], [1], [2], [3]]
    assert desk.batches == [["held"], ["a", "bb", "ccc"]]


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_retry(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        second = asyncio.create_task(batcher.submit(["a", "bb"]))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError, match="2 texts are waiting, and 2 more would exceed the limit of 3") as full:
            await batcher.submit(["c", "d"])
        assert full.value.retry_s >= 1
        third = asyncio.create_task(batcher.submit(["e"]))  # for which there is room
        await asyncio.sleep(0)
        desk.go.set()
        return [await first, await second, await third]

    answers, batcher = run(desk, scene, queue=3)
    assert answers == [[4], [1, 2], [1]]
    assert ["c", "d"] not in desk.batches
    assert batcher.tally.outcomes == {"ok": 3, "full": 1}


def test_texts_that_are_being_read_count_as_queued(desk):
    async def scene(batcher):
        reading = asyncio.create_task(batcher.submit(["a", "bb"]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(["c"])
        return await reading

    assert run(desk, scene, queue=2)[0] == [1, 2]


def test_a_request_that_takes_too_long_times_out_and_is_never_started(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        with pytest.raises(RequestTimeoutError, match=r"no answer within 0\.8 s"):
            await batcher.submit(["late"])
        assert batcher.waiting == 0
        desk.go.set()
        with pytest.raises(RequestTimeoutError):
            await first
        return await batcher.submit(["next"])

    answers, batcher = run(desk, scene, timeout_s=0.8)
    assert answers == [4]
    assert desk.batches == [["held"], ["next"]]
    assert batcher.tally.outcomes == {"late": 2, "ok": 1}


def test_a_cancelled_request_leaves_the_queue_and_others_are_answered(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        cancelled, other = (asyncio.create_task(batcher.submit([text])) for text in ("cancelled", "other"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        first.cancel()  # its batch is already being computed, so its answer is discarded
        desk.go.set()
        return await other

    answers, batcher = run(desk, scene)
    assert answers == [5]
    assert desk.batches == [["held"], ["other"]]
    assert batcher.tally.outcomes == {"left": 2, "ok": 1}


def test_an_error_in_a_batch_reaches_its_requests_and_stops_nothing_else(desk):
    async def scene(batcher):
        with pytest.raises(BatchFailedError, match="ValueError: cannot compute bad") as failed:
            await batcher.submit(["bad"])
        assert isinstance(failed.value.__cause__, ValueError)
        return await batcher.submit(["good"])

    answers, batcher = run(desk, scene)
    assert answers == [4]
    assert batcher.tally.outcomes == {"failed": 1, "ok": 1}


def test_an_error_while_reading_reaches_the_caller(desk):
    def read(texts):
        raise KeyError("unreadable")

    desk.read = read

    async def scene(batcher):
        with pytest.raises(KeyError, match="unreadable"):
            await batcher.submit(["a"])
        return batcher.waiting

    assert run(desk, scene)[0] == 0


def test_closing_finishes_accepted_requests_and_accepts_no_more(desk):
    async def play():
        batcher = Batcher(desk.read, desk.compute, ROOMY)
        async with batcher:
            first = await desk.hold(batcher)
            second = asyncio.create_task(batcher.submit(["second"]))
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().call_later(0.1, desk.go.set)
        assert not batcher.is_alive
        with pytest.raises(BatcherClosedError):
            await batcher.submit(["too late"])
        return [await first, await second]

    assert asyncio.run(play()) == [[4], [6]]
    assert desk.batches == [["held"], ["second"]]


def test_percentiles_are_measured_times_without_interpolation():
    ordered = [number / 1000 for number in range(1, 101)]
    assert [percentile_ms(ordered, percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile_ms([0.004], 50) == 4
    assert percentile_ms([], 50) is None
