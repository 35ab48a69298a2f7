"""The queue in front of the computing thread: who is computed together, who is turned away, who is forgotten."""

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
    milliseconds,
)

ROOMY = Limits(texts=8, tokens=100, wait_s=0.02, queue=100, timeout_s=20)


class Desk:
    """Answers a text with its length; remembers batches, and can be held up."""

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

    async def held(self, batcher):
        """A request that is being computed until `go` is set."""
        self.go.clear()
        first = asyncio.create_task(batcher.submit(["held"]))
        assert await asyncio.to_thread(self.busy.wait, 20)
        return first


@pytest.fixture
def desk():
    return Desk()


def run(desk, scene, **changes):
    """Plays a scene with a batcher; returns what it returns, with the batcher."""

    async def play():
        async with Batcher(desk.read, desk.compute, Limits(**{**vars(ROOMY), **changes})) as batcher:
            try:
                return await scene(batcher), batcher
            finally:
                desk.go.set()

    return asyncio.run(play())


def test_requests_that_arrive_together_are_one_batch_and_each_gets_its_own_answers(desk):
    async def scene(batcher):
        return await asyncio.gather(batcher.submit(["a"]), batcher.submit(["bb", "ccc"]), batcher.submit(["dddd"]))

    answers, batcher = run(desk, scene)
    assert answers == [[1], [2, 3], [4]]
    assert desk.batches == [["a", "bb", "ccc", "dddd"]]
    assert batcher.tally.summary()["mean_batch_texts"] == 4
    assert batcher.tally.outcomes == {"ok": 3}


def test_a_full_batch_does_not_wait_for_company(desk):
    async def scene(batcher):
        return await batcher.submit(["a"] * 8)

    answers, _ = run(desk, scene, wait_s=15)
    assert answers == [1] * 8
    assert len(desk.batches) == 1


def test_a_lone_text_waits_for_company_and_is_computed_when_none_comes(desk):
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
        ({"tokens": 4}, [["aa", "bb"], ["cc"], ["dddddd"], ["e"]]),  # what is longer alone is computed alone
        ({"tokens": 8}, [["aa", "bb", "cc"], ["dddddd", "e"]]),
    ],
)
def test_batches_have_so_many_texts_and_tokens_and_who_came_first_comes_first(limits, batches, desk):
    async def scene(batcher):
        return await batcher.submit(["aa", "bb", "cc", "dddddd", "e"])

    answers, _ = run(desk, scene, **limits)
    assert answers == [2, 2, 2, 6, 1]
    assert desk.batches == batches


def test_who_comes_while_a_batch_is_computed_is_in_the_next_one(desk):
    async def scene(batcher):
        first = await desk.held(batcher)
        others = [asyncio.create_task(batcher.submit([text])) for text in ("a", "bb", "ccc")]
        await asyncio.sleep(0.05)
        assert (desk.batches, batcher.waiting) == ([["held"]], 3)
        desk.go.set()
        return [await first, *[await other for other in others]]

    answers, _ = run(desk, scene)
    assert answers == [[4], [1], [2], [3]]
    assert desk.batches == [["held"], ["a", "bb", "ccc"]]


def test_a_full_queue_turns_away_the_whole_request_and_says_when_to_come_again(desk):
    async def scene(batcher):
        first = await desk.held(batcher)
        second = asyncio.create_task(batcher.submit(["a", "bb"]))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError, match="2 texts are waiting, and 2 more are over the limit of 3") as refused:
            await batcher.submit(["c", "d"])
        assert refused.value.retry_s >= 1
        third = asyncio.create_task(batcher.submit(["e"]))  # for whom there is room
        await asyncio.sleep(0)
        desk.go.set()
        return [await first, await second, await third]

    answers, batcher = run(desk, scene, queue=3)
    assert answers == [[4], [1, 2], [1]]
    assert ["c", "d"] not in desk.batches
    assert batcher.tally.outcomes == {"ok": 3, "full": 1}


def test_texts_that_are_being_read_have_their_places_in_the_queue(desk):
    async def scene(batcher):
        reading = asyncio.create_task(batcher.submit(["a", "bb"]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(["c"])
        return await reading

    assert run(desk, scene, queue=2)[0] == [1, 2]


def test_an_answer_that_takes_too_long_is_given_up_and_what_was_not_started_never_is(desk):
    async def scene(batcher):
        first = await desk.held(batcher)
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


def test_who_leaves_is_taken_out_of_the_queue_and_others_are_answered(desk):
    async def scene(batcher):
        first = await desk.held(batcher)
        leaving, protected_count = (asyncio.create_task(batcher.submit([text])) for text in ("gone", "stays"))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        first.cancel()  # its batch is being computed: the answer is thrown away
        desk.go.set()
        return await protected_count

    answers, batcher = run(desk, scene)
    assert answers == [5]
    assert desk.batches == [["held"], ["stays"]]
    assert batcher.tally.outcomes == {"left": 2, "ok": 1}


def test_an_error_of_a_batch_is_told_to_its_requests_and_ends_nothing(desk):
    async def scene(batcher):
        with pytest.raises(BatchFailedError, match="ValueError: cannot compute bad") as failed:
            await batcher.submit(["bad"])
        assert isinstance(failed.value.__cause__, ValueError)
        return await batcher.submit(["good"])

    answers, batcher = run(desk, scene)
    assert answers == [4]
    assert batcher.tally.outcomes == {"failed": 1, "ok": 1}


def test_what_reading_refuses_is_the_callers(desk):
    def read(texts):
        raise KeyError("unreadable")

    desk.read = read

    async def scene(batcher):
        with pytest.raises(KeyError, match="unreadable"):
            await batcher.submit(["a"])
        return batcher.waiting

    assert run(desk, scene)[0] == 0


def test_leaving_finishes_what_was_taken_and_takes_nothing_more(desk):
    async def play():
        batcher = Batcher(desk.read, desk.compute, ROOMY)
        async with batcher:
            first = await desk.held(batcher)
            second = asyncio.create_task(batcher.submit(["second"]))
            await asyncio.sleep(0.05)
            asyncio.get_running_loop().call_later(0.1, desk.go.set)
        assert not batcher.alive
        with pytest.raises(BatcherClosedError):
            await batcher.submit(["too late"])
        return [await first, await second]

    assert asyncio.run(play()) == [[4], [6]]
    assert desk.batches == [["held"], ["second"]]


def test_percentiles_are_times_that_happened():
    ordered = [number / 1000 for number in range(1, 101)]
    assert [milliseconds(ordered, percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert milliseconds([0.004], 50) == 4
    assert milliseconds([], 50) is None
