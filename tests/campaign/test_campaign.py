"""The campaign in its short form: no attack ends in a silent wrong result, a dead end, executed code or a traceback.

The short form takes the runs that cost least. PRUNEKIT_CAMPAIGN=500 tries so many cases of each attack over all runs;
the numbers of docs/reliability.md come from `python benchmarks/campaign.py`.
"""

from __future__ import annotations

import json
import os
import random
import time
from itertools import islice

import pytest
from support.models import benchmark_script

from campaign import attack_config, attack_damage, attack_disk, attack_folder, attack_kill, attack_kinds, attack_server
from campaign.config_values import REFUSED, draw
from campaign.frame import (
    DEAD_END,
    EXECUTED,
    HANGS,
    SAME,
    SILENT,
    TRACEBACK,
    UNTRIED,
    Case,
    Row,
    Verdict,
    attacks,
    judged,
    numbered,
    run_attack,
)
from campaign.frame import REFUSED as SAID_NO
from campaign.isolated import Told, isolated
from prunekit.config.domains import check_of

CASES, SEED = os.environ.get("PRUNEKIT_CAMPAIGN"), int(os.environ.get("PRUNEKIT_CAMPAIGN_SEED", "0"))
# what the short form leaves out
SHORT = {
    attack_kill: {"JOBS": {"wanda": attack_kill.JOBS["wanda"]}},
    attack_kinds: {"OTHER_KINDS": {"questions": attack_kinds.OTHER_KINDS["questions"]}},
    attack_damage: {"METHODS": {"wanda": ("cached",)}},
    attack_disk: {"METHODS": ("wanda",)},
}
campaign = benchmark_script("campaign")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder in which attacks find the runs of others."""
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, module in attacks().items() if module.SHORT or CASES])
def test_every_attack_is_survived(name, shared, monkeypatch):
    module = attacks()[name]
    if CASES is None:
        for part, value in SHORT.get(module, {}).items():
            monkeypatch.setattr(module, part, value)
    rows = list(run_attack(module, int(CASES or module.SHORT), SEED, shared, say=print))
    assert [failure for row in rows[-1:] for failure in row.failures] == []


# -- the frame -------------------------------------------------------------------------------------------


class Scripted:
    """Six outcomes in a random order, again and again."""

    TITLE, LONG, PIECE = "scripted", 12, 6

    @staticmethod
    def cases(count, rng, folder):
        def fail():
            raise RuntimeError("the roof is on fire")

        outcomes = [SAME, SAID_NO, SILENT, f"{DEAD_END}: no way on", UNTRIED]
        found = [
            Case("a crash", fail),
            *(Case(one, lambda one=one: Verdict(*one.split(": "), counts={"a": 1})) for one in outcomes),
        ]
        yield from rng.sample(found, count)


def tried(count, folder, row=None):
    return list(run_attack(Scripted, count, 0, folder, row))[-1]


def test_outcomes_are_counted_and_failures_named(tmp_path):
    row = tried(6, tmp_path).to_json()
    assert (row["attack"], row["cases"], row["tried"], row["survived"], row["failed"]) == ("scripted", 6, 5, 2, 3)
    wanted = {
        "dead end": 1,
        "not attacked": 1,
        "refused": 1,
        "same result": 1,
        "silent wrong result": 1,
        "traceback": 1,
    }
    assert (row["outcomes"], row["counts"]) == (wanted, {"a": 5})
    failures = {failure["case"]: failure for failure in row["failures"]}
    assert sorted(failures) == ["a crash", "dead end: no way on", "silent wrong result"]
    assert "the roof is on fire" in failures["a crash"]["reason"]
    assert failures["dead end: no way on"]["reason"] == "no way on"


def test_a_campaign_that_was_interrupted_goes_on_with_the_same_cases(tmp_path):
    whole = tried(14, tmp_path)
    part = tried(5, tmp_path)
    stored = Row.from_json(json.loads(json.dumps(part.to_json())))
    assert tried(14, tmp_path, stored).to_json() | {"seconds": 0} == whole.to_json() | {"seconds": 0}
    names = [[case.name for case in islice(numbered(Scripted, seed, 0, tmp_path), 14)] for seed in (0, 1)]
    assert names[0] != names[1]
    assert names[0][:6] != names[0][6:12]  # a piece has a generator of its own


def test_a_case_that_does_not_end_is_a_failure(monkeypatch):
    monkeypatch.setattr("campaign.frame.PATIENCE_S", 0.05)
    assert judged(Case("for ever", lambda: time.sleep(5))).outcome == HANGS


def test_the_script_goes_on_and_tries_failures_once_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("campaign.frame.attacks", lambda: {"scripted": Scripted})
    results = tmp_path / "campaign.json"
    given = [f"results={results}", f"folder={tmp_path}"]
    assert campaign.main([*given, "cases=4"]) == 3
    assert campaign.main(given) == 3  # on to LONG
    row = json.loads(results.read_text())["rows"]["scripted"]
    assert (row["cases"], row["failed"], row["seed"]) == (12, 6, 0)
    assert "| scripted | 10 | 4 | 6 | 2, 0, 2 |" in capsys.readouterr().out
    monkeypatch.setattr("campaign.frame.judged", lambda case: Verdict(SAME))
    assert campaign.main([*given, "retry=true"]) == 0
    row = json.loads(results.read_text())["rows"]["scripted"]
    assert row["counts"]["survived only when it was tried again"] == 6
    assert (row["cases"], row["outcomes"], row["failures"]) == (
        12,
        {"not attacked": 2, "refused": 2, "same result": 8},
        [],
    )


# -- what attacks would see ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "domain", ["int 1..9", "float (0..1]", "bool", "one of a|b", "list of float 0..1", "budget", "band", "layers 1.."]
)
def test_drawn_values_are_those_that_a_comment_allows(domain):
    """Those of numbers are typed as they are compared."""
    rng = random.Random(0)
    wanted = {drawn.value is REFUSED for drawn in (draw(domain, False, rng) for _ in range(100))}
    assert wanted == {True, False}
    for drawn in (draw(domain, False, rng) for _ in range(200)):
        if isinstance(drawn.value, int | float | str | list):
            assert check_of(domain)(drawn.value) is None, drawn


@pytest.mark.slow
def test_a_setting_that_is_taken_for_another_is_a_silent_failure():
    words = attack_config.words_of(("topk", "synthetic", "tiny"))
    (key,) = [key for key in attack_config.keys_of(("topk", "synthetic", "tiny")) if key.path == "seed"]
    assert attack_config.attack(words, key, "7", 7).outcome == SAME
    assert attack_config.attack(words, key, "7", 8).outcome == SILENT
    assert attack_config.attack(words, key, "7", REFUSED).outcome == SILENT
    assert attack_config.attack(words, key, "x", REFUSED).outcome == SAID_NO
    assert attack_config.ill_said("it is wrong", "seed", "x").outcome == "ill said"


def imports(folder):
    (folder / "evil_code.py").write_text("")
    import sys

    sys.path.insert(0, str(folder))
    __import__("evil_code")


@pytest.mark.slow
def test_code_that_is_executed_is_noticed(tmp_path):
    told = isolated(lambda: imports(tmp_path), "evil_code")
    assert told.executed == ["import ('evil_code',)"]
    assert isolated(lambda: os.system("true"), "evil_code").executed[0].startswith("os.system")
    assert isolated(lambda: 7, "evil_code") == Told("returned", "7")
    assert isolated(lambda: bytearray(2**40), "evil_code").kind == "raised"  # for want of memory
    assert isolated(lambda: os.kill(os.getpid(), 9), "evil_code") == Told("ended", "SIGKILL")


def test_what_a_folder_computes_decides():
    truth = Told("returned", "a", ["subprocess.Popen ('c++',)"])

    def outcome(told, has_run=False):
        return attack_folder.verdict(told, truth, has_run).outcome

    assert outcome(Told("returned", "a", truth.executed)) == SAME
    assert outcome(Told("returned", "b")) == SILENT
    assert outcome(Told("returned", "a", ["os.system ('x',)"])) == EXECUTED
    assert outcome(Told("refused", "no"), has_run=True) == EXECUTED
    assert outcome(Told("refused", "no.\nAllowed.\nDo.")) == SAID_NO
    assert outcome(Told("raised", "Traceback")) == TRACEBACK
    assert outcome(Told("ended", "SIGKILL")) == HANGS


def test_answers_are_judged_by_what_the_model_says_alone():
    class Model:
        def read(self, texts):
            return [text.parts[0] for text in texts]

        def compute(self, batch):
            return [{"scores": {"red": len(text) / 10}, "tokens": len(text)} for text in batch]

    models = {"one": attack_server.Served("one", Model(), {})}
    request = b'POST /predict HTTP/1.1\r\nContent-Length: 17\r\n\r\n{"texts": ["ab"]}'

    def outcome(status, **answer):
        body = json.dumps({"predictions": [answer]}).encode()
        return attack_server.judged(models, request, status, body).outcome

    assert outcome(200, scores={"red": 0.2}, tokens=2) == SAME
    assert outcome(200, scores={"red": 0.3}, tokens=2) == SILENT
    assert outcome(422) == SAID_NO
    assert outcome(500) == TRACEBACK
    assert outcome(0) == DEAD_END
    assert attack_server.judged(models, b"nonsense", 0, b"").outcome == SAID_NO
