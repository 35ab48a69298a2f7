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
    CallTooLongError,
    Limits,
    QueueFullError,
    RequestTimeoutError,
)
from prunekit.runtime.tally import percentile_ms

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


def test_an_error_in_a_batch_fails_the_item_that_causes_it_alone(desk):
    async def scene(batcher):
        return await asyncio.gather(*(batcher.submit([text]) for text in ("a", "bad", "bb")), return_exceptions=True)

    (first, failed, last), batcher = run(desk, scene, texts=3, wait_s=20)
    assert (first, str(failed), last) == ([1], "ValueError: cannot compute bad", [2])
    assert desk.batches == [["a", "bad", "bb"], ["a"], ["bad"], ["bb"]]
    assert batcher.tally.outcomes == {"failed": 1, "ok": 2}


def test_a_result_that_is_an_exception_is_raised_in_its_caller_alone(desk):
    desk.compute = lambda batch: [OverflowError(text) if text == "huge" else len(text) for text in batch]

    async def scene(batcher):
        return await asyncio.gather(*(batcher.submit([text]) for text in ("a", "huge")), return_exceptions=True)

    (first, failed), _ = run(desk, scene)
    assert (first, type(failed)) == ([1], OverflowError)


# -- fairness ------------------------------------------------------------------------------------------------


async def submitted(batcher, owner, *texts):
    """A call that is read and waits in the queue."""
    task = asyncio.create_task(batcher.submit(texts, owner))
    async with asyncio.timeout(20):
        while not set(texts) <= {entry.item for entry in batcher._queue}:
            await asyncio.sleep(0.002)
    return task


def test_who_asks_for_much_waits_behind_who_asks_for_little(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        much = await submitted(batcher, "a", "a1", "a2", "a3", "a4")
        little = await submitted(batcher, "b", "b1")
        desk.go.set()
        return await asyncio.gather(first, much, little)

    answers, _ = run(desk, scene, texts=2)
    assert answers == [[4], [2, 2, 2, 2], [2]]
    assert desk.batches == [["held"], ["b1", "a1"], ["a2", "a3"], ["a4"]]


def test_a_short_call_is_in_the_next_batch_however_many_owners_of_long_ones_wait(desk):
    async def scene(batcher):
        calls = [await desk.hold(batcher)]
        for owner in "abcdefghijkl":
            calls.append(await submitted(batcher, owner, *(f"{owner}{number}" for number in range(4))))
        calls.append(await submitted(batcher, "x", "x0"))
        desk.go.set()
        return await asyncio.gather(*calls)

    run(desk, scene, texts=4)
    assert desk.batches[:3] == [["held"], ["x0", "a0", "a1", "a2"], ["a3", "b0", "b1", "b2"]]


def test_reading_is_fair_by_size_and_a_long_call_is_read_in_pieces(desk):
    reading = threading.Event()
    read = []

    def slow(texts):
        read.append(list(texts))
        assert reading.wait(20)
        return list(texts)

    desk.read = slow

    async def scene(batcher):
        much = asyncio.create_task(batcher.submit(["aaaaaaaa"] * 4 + ["aa", "aa"], "a"))
        await asyncio.sleep(0.05)
        little = asyncio.create_task(batcher.submit(["b"], "b"))
        await asyncio.sleep(0.05)
        reading.set()
        return await asyncio.gather(much, little)

    answers, _ = run(desk, scene, piece=16)
    assert answers == [[8, 8, 8, 8, 2, 2], [1]]
    assert read == [["aaaaaaaa"] * 2, ["b"], ["aaaaaaaa"] * 2, ["aa", "aa"]]


def test_several_readers_read_at_the_same_time(desk):
    together = threading.Barrier(2, timeout=20)

    def read(texts):
        together.wait()
        return list(texts)

    desk.read = read
    answers, _ = run(desk, lambda batcher: asyncio.gather(batcher.submit(["a"]), batcher.submit(["b"])), readers=2)
    assert answers == [[1], [1]]


def test_several_lanes_compute_at_the_same_time(desk):
    together = threading.Barrier(2, timeout=20)

    def compute(batch):
        together.wait()
        return [len(text) for text in batch]

    desk.compute = compute
    answers, _ = run(desk, lambda batcher: batcher.submit(["a", "bb"]), texts=1, lanes=2)
    assert answers == [1, 2]


def test_where_the_queue_is_full_the_owner_of_most_gives_way_to_one_of_less(desk):
    async def scene(batcher):
        first = await desk.hold(batcher)
        old, new = await submitted(batcher, "a", "a1", "a2"), await submitted(batcher, "a", "a3", "a4")
        less = await submitted(batcher, "b", "b1")
        with pytest.raises(QueueFullError, match="4 texts are waiting, and 1 more would exceed the limit of 4"):
            await asyncio.wait_for(new, 20)
        assert batcher.waiting == 3
        with pytest.raises(QueueFullError):  # nobody holds more than these would be
            await batcher.submit(["c1", "c2"], "c")
        desk.go.set()
        return [await first, await old, await less]

    answers, batcher = run(desk, scene, queue=4)
    assert answers == [[4], [2, 2], [2]]
    assert desk.batches == [["held"], ["b1", "a1", "a2"]]
    assert batcher.tally.outcomes == {"ok": 3, "full": 2}


def test_a_batch_takes_no_more_tokens_than_are_computed_in_its_time(desk):
    clock = 0.0

    def compute(batch):
        nonlocal clock
        desk.batches.append(batch)
        clock += 0.01 * sum(map(len, batch))
        return [len(text) for text in batch]

    desk.compute = compute

    async def scene(batcher):
        loop = asyncio.get_running_loop()
        started, real = loop.time(), loop.time
        loop.time = lambda: clock + (real() - started) * 1e-4  # what else runs on this machine does not count
        await batcher.submit(["aaaa"])
        return await batcher.submit(["bbb"] * 6 + ["b" * 9])

    answers, _ = run(desk, scene, batch_s=0.069, wait_s=0)
    assert answers == [3] * 6 + [9]
    assert [len(batch) for batch in desk.batches] == [1, 2, 2, 2, 1]


def test_a_call_has_a_limit_of_tokens_together(desk):
    async def scene(batcher):
        with pytest.raises(CallTooLongError, match="6 tokens together"):
            await batcher.submit(["abc", "def"])
        return await batcher.submit(["abc", "de"])

    answers, batcher = run(desk, scene, call_tokens=5)
    assert (answers, batcher.waiting) == ([3, 2], 0)


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


def test_giving_up_answers_everything_at_once(desk):
    async def play():
        async with Batcher(desk.read, desk.compute, ROOMY) as batcher:
            calls = [await desk.hold(batcher), await submitted(batcher, "b", "waits")]
            batcher.close()
            batcher.give_up()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            desk.go.set()
            return ends, batcher.tally.outcomes

    ends, outcomes = asyncio.run(play())
    assert [type(end) for end in ends] == [BatcherClosedError] * 2
    assert (desk.batches, outcomes) == ([["held"]], {"left": 2})


def test_percentiles_are_measured_times_without_interpolation():
    ordered = [number / 1000 for number in range(1, 101)]
    assert [percentile_ms(ordered, percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile_ms([0.004], 50) == 4
    assert percentile_ms([], 50) is None
