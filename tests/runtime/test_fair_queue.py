"""The fair queue: an owner of much waits behind owners of little."""

from __future__ import annotations

from prunekit.runtime.fair_queue import FairQueue, Waiting


def added(queue, owner, *costs):
    entries = [Waiting(owner, cost) for cost in costs]
    for entry in entries:
        queue.add(entry)
    return entries


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
    entries = added(queue, "a", 5, 1, 3)
    assert list(queue) == entries


def test_owners_take_turns_by_cost_whatever_each_has_waiting():
    queue = FairQueue()
    added(queue, "a", *[10] * 6)
    added(queue, "b", 10, 10)
    added(queue, "c", *[5] * 4)
    assert served(queue) == "abccabccaaaa"


def test_who_arrives_later_is_not_behind_all_that_waits():
    queue = FairQueue()
    added(queue, "a", *[10] * 9)
    assert served(queue, 4) == "aaaa"
    added(queue, "b", 10)
    assert served(queue, 2) == "ab" or served(queue, 0) == ""
    assert "b" not in served(queue)


def test_nobody_saves_up_turns():
    queue = FairQueue()
    added(queue, "b", 1)
    added(queue, "a", *[10] * 9)
    assert served(queue, 7) == "b" + "a" * 6
    added(queue, "b", *[10] * 3)
    assert served(queue, 6) in ("bababa", "ababab")


def test_an_entry_can_leave_unserved():
    queue = FairQueue()
    first, second = added(queue, "a", 10, 10)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert list(queue) == [second]
