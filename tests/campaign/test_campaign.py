"""The campaign in its short form: no attack ends in a silent wrong result, a dead end or a traceback.

PRUNEKIT_CAMPAIGN=500 tries so many cases of each attack; the numbers of docs/reliability.md come from
`python benchmarks/campaign.py`.
"""

from __future__ import annotations

import os
import random

import pytest

from campaign.frame import DEAD_END, REFUSED, SAME, SILENT, Case, attacks, run_attack

CASES, SEED = int(os.environ.get("PRUNEKIT_CAMPAIGN", "6")), int(os.environ.get("PRUNEKIT_CAMPAIGN_SEED", "0"))


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks())
def test_every_attack_is_survived(name, tmp_path):
    row = run_attack(attacks()[name], CASES, SEED, tmp_path, print)
    assert row.failures == []


class Scripted:
    TITLE = "scripted"

    @staticmethod
    def cases(count, rng, folder):
        def fail():
            raise RuntimeError("the roof is on fire")

        outcomes = [SAME, REFUSED, SILENT, DEAD_END]
        yield Case("a crash", fail)
        for outcome in rng.sample(outcomes, count - 1):
            yield Case(outcome, lambda outcome=outcome: outcome)


def test_outcomes_are_counted_and_failures_named(tmp_path):
    row = run_attack(Scripted, 5, 0, tmp_path).to_json()
    assert (row["attack"], row["tried"], row["survived"], row["failed"]) == ("scripted", 5, 2, 3)
    wanted = {"dead end": 1, "refused": 1, "same result": 1, "silent wrong result": 1, "traceback": 1}
    assert row["outcomes"] == wanted
    assert sorted(failure["case"] for failure in row["failures"]) == ["a crash", "dead end", "silent wrong result"]
    assert "the roof is on fire" in row["failures"][0]["reason"]


def test_the_same_seed_tries_the_same_cases(tmp_path):
    names = [[case.name for case in Scripted.cases(4, random.Random(seed), tmp_path)] for seed in (1, 1, 2)]
    assert names[0] == names[1]
