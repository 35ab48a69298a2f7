"""Generated data has the shape of the task it stands for, and something to learn; tiny models are all of a kind."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from prunekit.data.reading import read_task
from prunekit.data.sources import backbone_shape, find_backbone, find_task
from prunekit.data.spec import TaskSpec
from prunekit.data.synthetic import MARKERS, build_tiny_backbone

CONF = Path(__file__).parents[1] / "conf"
TASKS = sorted(file.stem for file in (CONF / "task").glob("*.yaml"))
FAMILIES = ["bert", "roberta", "electra", "distilbert"]


def generated(task, rows=64):
    config = yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text())
    spec = TaskSpec.from_config({**config, "synthetic_rows": rows})
    return spec, read_task(spec, find_task(spec, {}))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_generated_in_its_own_shape(task):
    spec, found = generated(task)
    assert len(found.splits["train"]) == 64
    assert len(found.splits["validation"]) == 32
    assert (found.splits["train"].pairs is not None) == (spec.text_pair is not None)
    if spec.kind == "regression":
        assert set(found.splits["train"].labels) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
        assert found.label_names is None
    elif spec.kind == "span":
        rows = found.splits["train"]
        for context, answer in zip(rows.pairs, rows.labels, strict=True):
            for text, start in zip(answer.texts, answer.starts, strict=True):
                assert context[start:].startswith(text)
        assert spec.unanswerable == any(not answer.texts for answer in rows.labels)
    else:
        assert set(found.splits["train"].labels) == set(range(len(found.label_names)))
        assert spec.labels in (None, found.label_names)


def test_mnli_has_both_validation_splits():
    assert list(generated("mnli")[1].splits) == ["train", "validation", "validation_mismatched"]


@pytest.mark.parametrize("task", ["synthetic", "mrpc", "newsgroups20", "stsb"])
def test_the_markers_alone_tell_the_label(task):
    found = generated(task, 400)[1]
    label_of = {}
    for name in ("train", "validation"):
        rows = found.splits[name]
        for text, label in zip(rows.pairs or rows.texts, rows.labels, strict=True):
            markers = [word for word in text.split() if word in MARKERS]
            assert 2 <= len(markers) <= 4
            assert {label_of.setdefault(marker, label) for marker in markers} == {label}


def test_splits_differ_and_never_change():
    first, again = generated("synthetic")[1], generated("synthetic")[1]
    assert first == again
    assert not set(first.splits["train"].texts) & set(first.splits["test"].texts)
    assert first.splits["train"].texts[0].startswith("pigo made rofi sugo banex sufi")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_backbone_is_an_ordinary_folder(tmp_path, family):
    found = find_backbone({"name": "tiny", "family": family, "seed": 0}, {"XDG_CACHE_HOME": str(tmp_path)})
    assert backbone_shape(found)["num_hidden_layers"] == 4
    assert backbone_shape(found)["hidden_size"] == 32
    model, tokenizer = AutoModel.from_pretrained(found).eval(), AutoTokenizer.from_pretrained(found)
    encoded = tokenizer(["bade bafi", "go"], ["real text"] * 2, padding=True, return_tensors="pt")
    assert ("token_type_ids" in encoded) == (family in ("bert", "electra"))
    assert tokenizer.unk_token_id not in encoded["input_ids"]
    assert model(**encoded).last_hidden_state.isfinite().all()
    assert tokenizer.model_max_length == 512


def test_the_same_seed_builds_the_same_folder_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        build_tiny_backbone(tmp_path / name, "bert", seed)
    assert torch.equal(torch.get_rng_state(), before)
    contents = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    build_tiny_backbone(tmp_path / "a", "bert", 0)
    build_tiny_backbone(tmp_path / "a", "bert", 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
