"""Results as typed objects: nothing that result.json holds is lost, renamed, reordered or undeclared."""

import json

import pytest
from support.paths import ROOT, TESTS
from support.run_result import CONTENT, RESULT, changed
from support.stored_runs import result, weight_result

from prunekit.runs.folder import RunFolder
from prunekit.runs.json_object import OpenJsonObject
from prunekit.runs.result import Flops, RunResult, Score, Translation, WeightRunResult, parse_result

# result.json of small runs, as written before results were typed: what each kind of run leaves
STORED = sorted((TESTS / "fixtures" / "results").glob("*.json"))
COMMITTED = ROOT / "benchmarks" / "results"


def rewritten(text):
    """What a folder would hold after its result was read and written again."""
    return json.dumps(parse_result(json.loads(text)).to_json(), indent=2, ensure_ascii=False) + "\n"


def undeclared(value, path=""):
    """The keys in a typed result that no class declares."""
    if isinstance(value, OpenJsonObject):
        for key in value.other:
            yield f"{path}.{key}"
        for name, part in vars(value).items():
            yield from undeclared(part, f"{path}.{name}")
    elif isinstance(value, tuple):
        for part in value:
            yield from undeclared(part, path)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from undeclared(part, f"{path}.{name}")


def test_every_kind_of_run_has_a_stored_result():
    contents = [json.loads(path.read_text()) for path in STORED]
    assert {key for content in contents for key in content} >= {
        "bands", "translation", "search", "goal", "speed", "sparsity", "semi_structured",
    }  # fmt: skip
    assert any("knob" in content["budget"] for content in contents)
    assert any("null_threshold" in content["score"] for content in contents)
    assert any("rougeL" in content["pruned"] for content in contents if "prunes" in content)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_result_is_written_byte_for_byte_as_it_was_read_and_every_key_is_declared(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    assert rewritten(text) == text
    assert list(undeclared(parse_result(json.loads(text)))) == []
    folder = RunFolder(tmp_path, "")
    folder.write_result(parse_result(json.loads(text)))
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == text
    assert folder.result() == parse_result(json.loads(text))


def test_committed_results_are_written_byte_for_byte_with_the_keys_that_are_not_of_a_run():
    text = (COMMITTED / "main_job.json").read_text()
    assert rewritten(text) == text
    assert sorted(RunResult.from_json(json.loads(text)).other) == ["date", "hardware"]
    for run in json.loads((COMMITTED / "translation_trained.json").read_text()):  # results in extracts
        for kind, key in ((Score, "score"), (Flops, "flops"), (Translation, "translation")):
            assert json.dumps(kind.from_json(run[key]).to_json()) == json.dumps(run[key])


@pytest.mark.parametrize("content", [CONTENT, result("top", "2x", 1, 0.5), weight_result("wanda", 1, 30.0)])
def test_what_an_older_run_lacks_is_not_added(content):
    assert parse_result(content).to_json() == content


def test_the_key_prunes_tells_which_result_it_is():
    assert isinstance(parse_result(CONTENT), RunResult)
    found = parse_result(weight_result("wanda", 1, 30.0))
    assert isinstance(found, WeightRunResult)
    assert (found.pruned.domain_perplexity, found.pruned.rouge_l, found.semi_structured) == (30.0, None, None)


def test_parts_are_typed_and_lists_of_them_are_tuples():
    bands = [
        {"from": 0, "below": 9, "rows": 4, "dense": 0.5, "pruned": 0.5, "dense_all": {"f1": 0.5},
         "pruned_all": {"f1": 0.5}, "flops_vs_unpadded": 2.0, "mean_length": 7.5, "tokens_per_layer": [7.5, 4.0]},
    ]  # fmt: skip
    found = changed(bands=bands, truncated={"test": {"rows": 3, "of": 4}})
    assert (found.bands[0].low, found.bands[0].tokens_per_layer) == (0, (7.5, 4.0))
    assert (found.truncated["test"].rows, found.truncated["test"].max_length) == (3, None)
    assert found.to_json()["bands"] == bands
    assert found.score == RESULT.score
    assert found != RESULT


def test_none_is_null_where_a_key_is_required_and_left_out_where_it_is_not():
    found = changed(budget__asked=None).to_json()
    assert found["budget"]["asked"] is None
    assert "knob" not in found["budget"]
    assert "goal" not in found


def test_unknown_keys_stay_where_they_were_found():
    found = changed(note={"by": "hand"}, flops__watts=[3, 4])
    assert (found.other, found.flops.other) == ({"note": {"by": "hand"}}, {"watts": [3, 4]})
    assert found.to_json()["flops"]["watts"] == [3, 4]
    assert list(found.to_json())[-1] == "note"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {"metric": "f1"}}, "lacks 'split' in 'score'"),
        ({"flops": 3.0}, "has flops of type float"),
        ({"speed": {"batch_size": 1}}, "has speed of type dict"),
        ({"speed": [1]}, "has speed of type int"),
        ({"truncated": {"test": 7}}, "has truncated of type int"),
    ],
)
def test_what_is_no_result_is_refused_by_the_key(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_result(CONTENT | changes)


def test_a_method_that_prunes_nothing_is_dense():
    assert changed(method="dense").is_dense
    assert not RESULT.is_dense
