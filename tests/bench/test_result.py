"""Stored results: the files in the repository are what their dataclasses write, to the byte."""

import json
from dataclasses import fields, replace

import pytest
from support.bench_result import RESULT, against, measurement
from support.paths import ROOT

from prunekit.bench.result import NO_BUDGET, BenchResult, Comparison, Measurement, ParityResult, PeerRatio, Spread

STORED = ROOT / "benchmarks" / "results"
BENCHES = [*sorted(STORED.glob("goals_*.json")), STORED / "own_model.json"]
PARITIES = sorted(STORED.glob("export_parity_*.json"))


@pytest.mark.parametrize(
    ("kind", "path"),
    [*((BenchResult, path) for path in BENCHES), *((ParityResult, path) for path in PARITIES)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_committed_file_is_read_and_written_unchanged(kind, path):
    text = path.read_text()
    assert json.dumps(kind.from_json(json.loads(text)).to_json(), indent=1) + "\n" == text


def test_there_are_files_of_every_kind():
    assert len(BENCHES) >= 15
    assert len(PARITIES) >= 4


def test_objects_are_read_as_their_classes_wherever_they_are():
    (block,) = BenchResult.from_json(json.loads((STORED / "goals_mrpc_4x.json").read_text())).blocks
    assert isinstance(block.sizes, tuple)
    assert isinstance(block.sizes[0].candidates[0], Measurement)
    assert isinstance(block.sizes[0].candidates[0].latency_ms_by_length["16-31"].texts, int)
    assert isinstance(block.sizes[0].ratios[0].vs_each["hf sdpa fp32"], Spread)
    assert isinstance(block.sizes[0].ratios[0].vs_sorted, PeerRatio)


def test_null_is_written_and_what_has_no_value_is_not():
    """Of the pruned engine alone there is a ratio to itself; where nobody sorts, there is no best one that does."""
    row = Comparison(
        own="packed", role="unpruned", dtype="fp32", batch_size=1, vs_sorted=None, vs_unpadded=against("ct", 2.0),
        vs_each={}, vs_padded_eager=None,
    )  # fmt: skip
    assert row.to_json() == {
        "own": "packed", "role": "unpruned", "dtype": "fp32", "batch_size": 1, "vs_sorted": None,
        "vs_unpadded": {"median": 2.0, "q25": 1.9, "q75": 2.1, "against": "ct"}, "vs_each": {}, "vs_padded_eager": None,
    }  # fmt: skip
    assert "score" not in measurement("packed", "unpruned", score=None).to_json()
    assert list(measurement("packed", "unpruned").to_json())[-2:] == ["agrees", "score"]


@pytest.mark.parametrize(("budget", "stored"), [("3x", True), (0.4, True), (None, True), (NO_BUDGET, False)])
def test_a_run_has_a_budget_even_if_it_is_null_and_a_model_has_none(budget, stored):
    result = replace(RESULT, budget=budget)
    assert ("budget" in result.to_json()) is stored
    assert BenchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("metric"), "^lacks 'metric'$"),
        (lambda content: content.update(colour="red"), "^has the unknown key 'colour'$"),
        (lambda content: content["workload"].pop("p90"), "^lacks 'p90' in 'workload'$"),
        (lambda content: content.update(workload=[1]), "^has workload of type list$"),
    ],
)
def test_other_keys_are_named(change, message):
    content = json.loads(json.dumps(RESULT.to_json()))
    change(content)
    with pytest.raises(ValueError, match=message):
        BenchResult.from_json(content)


def test_every_key_is_declared_once():
    names = [field.name for field in fields(BenchResult)]
    assert len(names) == len(set(names))
    assert names == list(replace(RESULT, budget="3x", run="1a2b3c4d", flops_ratio_executed=2.0).to_json())
