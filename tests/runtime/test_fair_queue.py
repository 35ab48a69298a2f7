"""The fair queue: an owner of much waits behind owners of little."""

from __future__ import annotations

from prunekit.runtime.fair_queue import FairQueue, Waiting


def added(queue, owner, *costs):
    """The entries of a call."""
    call = [Waiting(owner, cost) for cost in costs]
    queue.add(call)
    return call


def served(queue, count=None):
    """The owners of what is served, in order."""
    order = []
    while len(queue) and len(order) != count:
        entry = next(iter(queue))
        queue.serve(entry)
        order.append(entry.owner)
    return "".join(order)


def test_entries_of_one_owner_are_served_in_order_of_arrival():
    queue = FairQueue()
    entries = added(queue, "a", 5, 1, 3) + added(queue, "a", 1)
    assert list(queue) == entries


def test_the_call_that_would_end_first_is_served_first():
    queue = FairQueue()
    added(queue, "a", *[10] * 6)
    added(queue, "b", 10, 10)
    added(queue, "c", 20)
    added(queue, "b", 10)
    assert served(queue) == "bbcb" + "a" * 6


def test_a_short_call_passes_long_ones_that_are_not_about_to_end():
    for already in range(11):  # of twelve
        queue = FairQueue()
        for owner in "abc":
            added(queue, owner, *[10] * 4)
        served(queue, already)
        added(queue, "x", 10)
        assert served(queue, 1) == "x"


def test_a_long_call_is_not_passed_for_ever():
    queue = FairQueue()
    added(queue, "a", *[10] * 4)
    order = ""
    for owner in "bcdefghijklmnopqrstuvwxyz":  # each asks for one text when the one before is answered
        added(queue, owner, 10)
        order += served(queue, 1)
    assert "".join(sorted(order)) == "aaaa" + order.replace("a", "")
    assert order.index("a") == 12  # the clock is at 60 then; a's call ranks at 80, a new one at 60 + 20


def test_who_asks_again_at_once_takes_turns_with_others():
    queue = FairQueue()
    for owner in "ab":
        added(queue, owner, 10, 10)
    order = ""
    while len(order) < 12:
        order += served(queue, 2)
        added(queue, order[-1], 10, 10)
    assert order == "aabb" * 3


def test_nobody_saves_up_turns():
    queue = FairQueue()
    added(queue, "b", 1)
    added(queue, "a", *[10] * 4)
    assert served(queue, 3) == "baa"
    for _ in range(3):
        added(queue, "b", 20)
    assert served(queue) == "baabb"


def test_entries_can_leave_unserved():
    queue = FairQueue()
    first, second = added(queue, "a", 10, 10)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert list(queue) == [second]


def test_owners_with_nothing_to_catch_up_on_are_forgotten():
    queue = FairQueue()
    added(queue, "slow", *[1] * 1000)
    for number in range(1000):
        added(queue, number, 1)
        queue.serve(next(iter(queue)))
    assert len(queue._last) < 2100
    served(queue)
    assert queue._last == {}
