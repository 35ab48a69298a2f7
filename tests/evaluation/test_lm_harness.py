"""lm-evaluation-harness gets the saved folder; it is not needed, and said to be missing. A stand-in takes its place."""

import sys
from types import ModuleType

import pytest
from support.tiny_decoders import tiny_decoder

from prunekit.config.errors import ConfigError
from prunekit.evaluation.lm_harness import evaluate_with_harness


@pytest.fixture
def folder(tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    return tmp_path


def test_it_is_called_with_the_folder_and_its_numbers_come_back(folder, monkeypatch):
    asked = {}

    def simple_evaluate(**given):
        asked.update(given)
        return {"results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.1}}}

    stand_in = ModuleType("lm_eval")
    stand_in.simple_evaluate = simple_evaluate
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    found = evaluate_with_harness(folder, ["arc_easy"], limit=4, few_shot=0, settings={"random_seed": 7})
    assert found == {"arc_easy": {"acc,none": 0.25, "acc_stderr,none": 0.1}}
    assert asked["model"] == "hf"
    assert asked["model_args"] == {"pretrained": str(folder), "dtype": "float32"}
    assert (asked["tasks"], asked["limit"], asked["num_fewshot"], asked["random_seed"]) == (["arc_easy"], 4, 0, 7)


def test_without_it_one_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"not installed\.\nAllowed: .*\npip install 'prunekit\[harness\]'"):
        evaluate_with_harness(folder, ["arc_easy"])


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no model with weights"):
        evaluate_with_harness(folder, ["arc_easy"])
