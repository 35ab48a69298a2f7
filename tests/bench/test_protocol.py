"""The protocol on fake engines and a fake clock: who runs when, on what, and what follows from the times."""

import numpy as np
import pytest

from prunekit.bench import protocol
from prunekit.bench.protocol import (
    Candidate,
    Encoded,
    Timed,
    Workload,
    compare,
    ratio,
    rounds_within,
    summarise,
)
from prunekit.bench.result import LengthLatency, PruningRatio, Spread
from prunekit.models.answers import OneClass


class Clock:
    """CPU and wall time that only engines move; the wall runs twice as fast."""

    now = 0.0

    def __call__(self):
        return self.now, 2 * self.now


class Engine:
    """Spends `per_token` seconds for every token that it computes; class 1 where the first id is odd."""

    def __init__(self, name, clock, per_token, *, padded=False, first_call=0.0):
        self.name, self.clock, self.per_token, self.padded = name, clock, per_token, padded
        self.seen, self.extra = [], first_call

    def logits(self, batch):
        self.seen.append([list(ids) for ids in batch])
        widest = max(map(len, batch))
        self.clock.now += self.per_token * sum(widest if self.padded else len(ids) for ids in batch) + self.extra
        self.extra = 0.0
        return np.array([[0.0, 1.0] if ids[0] % 2 else [1.0, 0.0] for ids in batch])


LENGTHS = [2, 8, 2, 8]
TEXTS = [Encoded([number + 1] * length) for number, length in enumerate(LENGTHS)]
ANSWERS = OneClass(("no", "yes"))
WORK = Workload(TEXTS, 2000.0, ANSWERS)


def timed(candidates, size=2, rounds=4, work=WORK):
    clock = candidates[0].engine.clock
    return {
        found.candidate.name: found for found in protocol.time_candidates(candidates, work, size, range(rounds), clock)
    }


def study(**peers):
    """Ourselves: 1 s per token unpruned, half of it pruned; peers as given."""
    clock = Clock()
    dense = Engine("packed", clock, 1.0)
    own = [
        Candidate("unpruned", dense, "unpruned"),
        Candidate("control", dense, "control"),
        Candidate("pruned", Engine("packed", clock, 0.5), "pruned", weight=0.4, twin="unpruned"),
    ]
    return own, clock


def test_every_text_is_read_once_per_round_whatever_the_order():
    batches = WORK.batches(2, "random")
    assert sorted(place for batch in batches for place in batch) == [0, 1, 2, 3]
    assert WORK.batches(2, "random") == batches
    assert Workload(TEXTS, 1.0, ANSWERS, seed=3).batches(1, "random") != WORK.batches(1, "random")
    assert sorted(sorted(LENGTHS[place] for place in batch) for batch in WORK.batches(2, "sorted")) == [[2, 2], [8, 8]]


def test_logits_come_back_in_the_order_of_the_texts():
    clock = Clock()
    engine = Engine("any", clock, 1.0)
    candidates = [Candidate("random", engine, "peer"), Candidate("sorted", engine, "peer", order="sorted")]
    for found in timed(candidates).values():
        assert found.logits.argmax(-1).tolist() == [1, 0, 1, 0]


def test_candidates_take_turns_on_each_batch_forwards_and_backwards():
    order = []
    clock = Clock()

    class Noted(Engine):
        def logits(self, batch):
            order.append(self.name)
            return super().logits(batch)

    candidates = [Candidate(name, Noted(name, clock, 1.0), "peer") for name in "ab"]
    protocol.time_candidates(candidates, WORK, 2, range(2), clock)
    assert order == ["a", "b", "b", "a", "b", "a", "a", "b"]


def test_times_are_kept_by_round_and_batch_on_both_clocks():
    clock = Clock()
    found = timed([Candidate("any", Engine("any", clock, 1.0, first_call=5.0), "peer")], size=4, rounds=3)["any"]
    assert found.cpu == [[25.0], [20.0], [20.0]]
    assert found.wall == [[50.0], [40.0], [40.0]]


def test_two_candidates_of_one_name_are_refused():
    clock = Clock()
    twice = [Candidate("same", Engine("x", clock, 1.0), "peer")] * 2
    with pytest.raises(ValueError, match="two candidates have one name: same, same"):
        timed(twice)


def test_the_first_pass_is_apart_and_the_rest_are_medians():
    """20 tokens at 1 s each, 5 s more at first sight; half of the peak of 200 FLOP/s."""
    clock = Clock()
    found = timed([Candidate("any", Engine("any", clock, 1.0, first_call=5.0), "peer")])["any"]
    numbers = summarise(found, WORK, 2, "cpu", 200.0, found.logits)
    assert numbers.seconds_per_pass == Spread(median=20.0, q25=20.0, q75=20.0)
    assert (numbers.first_pass, numbers.first_over_steady) == (25.0, 1.25)
    assert (numbers.ms, numbers.examples_per_s, numbers.tokens_per_s) == (10000.0, 0.2, 1.0)
    assert numbers.share_of_peak == 0.5
    assert "latency_ms" not in numbers.to_json()


def test_a_pruned_engine_is_credited_with_what_it_executes():
    own, _ = study()
    found = timed(own)
    pruned = found["pruned"]
    assert summarise(pruned, WORK, 2, "cpu", 200.0, pruned.logits).share_of_peak == 0.4


def test_requests_of_batch_1_have_percentiles_and_bins_of_length():
    clock = Clock()
    found = timed([Candidate("any", Engine("any", clock, 1.0), "peer")], size=1)["any"]
    numbers = summarise(found, WORK, 1, "cpu", None, found.logits)
    assert numbers.latency_ms["p50"] == 5000.0
    assert numbers.latency_ms["p99"] == pytest.approx(8000.0)
    (by_length,) = numbers.latency_ms_by_length.items()
    assert by_length == ("0-15", LengthLatency(texts=4, p50=5000.0, p95=by_length[1].p95))
    assert by_length[1].p95 == pytest.approx(8000.0)
    assert numbers.share_of_peak is None


def test_ratios_are_medians_over_rounds():
    who = Candidate("any", Engine("any", Clock(), 1.0), "peer")
    one = Timed(who, [[9.0], [4.0], [6.0], [8.0]], [], np.zeros(1))
    other = Timed(who, [[1.0], [2.0], [2.0], [1.0]], [], np.zeros(1))
    assert ratio(one, other, "cpu") == Spread(median=3.0, q25=2.5, q75=5.5)


def test_the_four_ratios():
    """FLOPs fall 2.5x, time 2x: 80 % realised. Padding doubles what some peers compute, unless batches are sorted."""
    own, clock = study()
    slow, quick = Engine("slow", clock, 2.0, padded=True), Engine("quick", clock, 0.8, padded=True)
    unpadded, eager = Engine("ct", clock, 1.2), Engine("eager", clock, 4.0)  # as if all were padded to one length
    peers = [
        *(Candidate(engine.name, engine, "peer", padded=True) for engine in (slow, quick)),
        *(Candidate(f"{engine.name}, sorted", engine, "peer", order="sorted", padded=True) for engine in (slow, quick)),
        Candidate("ct", unpadded, "peer"),
        Candidate("other precision", Engine("int8", clock, 0.1), "peer", dtype="int8"),
        Candidate("eager", eager, "padded", padded=True),
    ]
    found = list(timed([*own, *peers]).values())
    unpruned, pruned = compare(found, 2, "cpu")
    assert "vs_unpruned" not in unpruned.to_json()
    assert pruned.vs_unpruned == PruningRatio(
        median=2.0, q25=2.0, q75=2.0, against="unpruned", flops_ratio=2.5, efficiency=0.8
    )
    assert (pruned.vs_sorted.against, pruned.vs_sorted.median) == ("quick, sorted", pytest.approx(1.6))
    assert unpruned.vs_sorted.median == pytest.approx(0.8)  # the peer is faster, and that is what is reported
    assert (pruned.vs_unpadded.against, pruned.vs_unpadded.median) == ("ct", pytest.approx(2.4))
    assert pruned.vs_padded_eager.median == pytest.approx(8.0)
    assert set(pruned.vs_each) == {"slow", "quick", "slow, sorted", "quick, sorted", "ct"}
    assert pruned.vs_each["slow, sorted"].median == pytest.approx(4.0)


def test_at_batch_1_nobody_pads():
    own, clock = study()
    found = list(timed([*own, Candidate("hf", Engine("hf", clock, 3.0, padded=True), "peer", padded=True)], 1).values())
    row = compare(found, 1, "cpu")[0]
    assert row.vs_sorted.against == row.vs_unpadded.against == "hf"


def test_without_a_peer_there_is_no_ratio():
    own, _ = study()
    row = compare(list(timed(own).values()), 2, "cpu")[0]
    assert (row.vs_sorted, row.vs_unpadded, row.vs_padded_eager) == (None, None, None)


def test_the_control_says_whether_the_machine_was_quiet():
    own, clock = study()
    assert protocol.control_ratio(list(timed(own).values()), "cpu") == 1.0
    own[1] = Candidate("control", Engine("disturbed", clock, 1.03), "control")
    value = protocol.control_ratio(list(timed(own).values()), "cpu")
    assert value == pytest.approx(1.03)
    assert [protocol.is_trusted(v) for v in (value, 1.019, 0.985, None)] == [False, True, True, False]


def test_quality_stands_beside_time():
    """Labels 1 0 1 0 against a reference that says 1 1 1 0, and a score of the known labels."""
    own, _ = study()
    work = Workload(
        TEXTS, 1.0, ANSWERS, score=lambda logits: {"accuracy": float((logits.argmax(-1) == [1, 0, 1, 1]).mean())}
    )
    found = timed(own, work=work)["pruned"]
    reference = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    row = summarise(found, work, 2, "cpu", None, reference)
    assert (row.agrees, row.score) == (0.75, {"accuracy": 0.75})


@pytest.mark.parametrize(("seconds", "counted"), [(None, 7), (100.0, 7), (2.0, 4), (0.0, 3)])
def test_rounds_end_in_time_but_never_before_three(seconds, counted):
    """A clock on which each look costs a second; it is first looked at after the third counted round."""
    now = iter([float(second) for second in range(100)])
    found = list(rounds_within(7, seconds, lambda: next(now)))
    assert found == list(range(counted + 1))  # 0 is the first pass
