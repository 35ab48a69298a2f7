"""`prunekit bench` from end to end on tiny models: what is measured and stored; no time is asserted."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from support.exported import PRUNERS, stored_run
from support.models import tiny_model
from support.run_result import CONTENT
from transformers import AutoTokenizer, PretrainedConfig

from prunekit.bench import peers
from prunekit.bench.machine import gemm_peak
from prunekit.bench.peers import Peer
from prunekit.bench.subject import _accuracy, _micro_f1, _usable_rows
from prunekit.cli.bench import main
from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.tables import Table
from prunekit.models.sources import find_backbone
from prunekit.runtime.kernels.linears import choose


@pytest.fixture
def run(tmp_path):
    return stored_run(tmp_path, "topk", PRUNERS["topk"]())


@pytest.fixture
def model(tmp_path):
    """A dense classifier with a tokenizer, and a file of texts."""
    folder = tmp_path / "my_model"
    backbone = find_backbone({"name": "tiny", "family": "bert", "seed": 0})
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    dense = tiny_model(layers=2)
    dense.resize_token_embeddings(len(tokenizer))
    dense.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [f"the film was {('good', 'very bad and dull')[n % 2]},{n % 3}" for n in range(12)]
    (tmp_path / "tickets.csv").write_text("body,queue\n" + "\n".join(rows) + "\n")
    return folder


def test_only_texts_are_timed(model, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(model)
    table = Table({"body": ["ba", None, float("nan"), " ", "\u200b", "de"], "n": [1] * 6}, "t.jsonl")
    assert _usable_rows(table, "body", tokenizer) == [0, 5]
    assert "4 of 6 rows of t.jsonl have no text and are left out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"t.jsonl, row 1: column 'n' holds 1, which is not text \(6 such rows"):
        _usable_rows(table, "n", tokenizer)
    with pytest.raises(ConfigError, match=r"t: no row of column 'a' has a text"):
        _usable_rows(Table({"a": [None, ""]}, "t"), "a", tokenizer)


CLASSES = {"id2label": {0: "no", 1: "yes"}, "num_labels": 2}


@pytest.mark.parametrize(
    ("labels", "names", "accuracy"),
    [
        (["yes", "no", "yes"], {}, 1.0),
        (["1", "0", "1"], {}, 1.0),
        ([1.0, 0.0, 1.0], {}, 1.0),
        ([1, 0, 1], {"label": ("yes", "no")}, 0.0),  # the names that the file has for its numbers count
    ],
)
def test_labels_are_read_as_in_a_run(labels, names, accuracy):
    table = Table({"label": labels}, "t.parquet", classes=names)
    logits = np.array([[0, 1], [1, 0], [0, 1]])
    assert _accuracy(table, "label", [0, 1, 2], PretrainedConfig(**CLASSES))(logits) == {"accuracy": accuracy}


def test_all_rows_with_a_label_that_the_model_does_not_know_are_counted():
    config = PretrainedConfig(**CLASSES)
    with pytest.raises(ConfigError, match=r"t, row 2: label 'Yes' \(2 such rows, also row 3: label None\) is none of"):
        _accuracy(Table({"label": ["yes", "Yes", None]}, "t"), "label", [0, 1, 2], config)
    with pytest.raises(ConfigError, match="row 1: label '01' is none of the model's"):
        _accuracy(Table({"label": ["01", "1"]}, "t"), "label", [0, 1], config)
    config.problem_type = "multi_label_classification"
    with pytest.raises(ConfigError, match="t, row 2: label 'a' is none of the model's"):
        _micro_f1(Table({"label": [["yes"], ["a", "yes"]]}, "t"), "label", [0, 1], config)
    with pytest.raises(ConfigError, match=r"row 1: label 'yes' is no list \(2 such rows, also row 2: label 3 is"):
        _micro_f1(Table({"label": ["yes", 3]}, "t"), "label", [0, 1], config)


def broken(folder, threads, scratch):
    raise RuntimeError("no such instruction\nand a long story")


@pytest.mark.slow
def test_a_run_is_measured_beside_its_dense_self_and_a_peer(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", (*peers.PEERS, Peer("broken fp32", "fp32", "torch", broken)))
    out = tmp_path / "timings.json"
    assert main([f"run={run}", "examples=4", "batch_sizes=[1,2]", "rounds=3", "peers=hf,broken", f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["workload"]["texts"] == 4
    assert found["flops_ratio"] > 1.2
    assert found["budget"] == "3x"
    (block,) = found["blocks"]
    assert (block["threads"], block["clock"]) == (1, "cpu")
    single, pairs = block["sizes"]
    names = [row["name"] for row in single["candidates"]]
    assert names == [
        "prunekit packed fp32, unpruned",
        "control",
        "prunekit packed fp32, pruned",
        "prunekit onnx fp32, unpruned",
        "prunekit onnx fp32, pruned",
        "hf sdpa fp32",
        f"hf eager fp32, padded to {found['workload']['padded_to']}",
    ]
    assert "hf sdpa fp32, sorted" in [row["name"] for row in pairs["candidates"]]
    assert "prunekit onnx fp32, pruned" not in [row["name"] for row in pairs["candidates"]]
    assert {"p50", "p95", "p99"} == set(single["candidates"][0]["latency_ms"])
    assert all(len(row["rounds"]) == 3 for size in block["sizes"] for row in size["candidates"])
    scores = {row["name"]: row["score"]["accuracy"] for row in pairs["candidates"]}
    assert scores["prunekit packed fp32, unpruned"] == scores["hf sdpa fp32"] == scores["control"]
    assert block["engines"]["prunekit packed fp32"].keys() == {"peak_mb", "linears", "attention"}
    pruned = next(row for row in pairs["ratios"] if row["role"] == "pruned")
    assert pruned["vs_unpruned"]["flops_ratio"] == found["flops_ratio_executed"]
    # the last layer is for [CLS] alone in both, of which the pruned model has less to lose
    assert 1 < found["flops_ratio_executed"] < found["flops_ratio"]
    twins = {row["own"]: row["vs_unpruned"]["against"] for row in single["ratios"] if row["role"] == "pruned"}
    assert twins == {
        "prunekit packed fp32, pruned": "prunekit packed fp32, unpruned",
        "prunekit onnx fp32, pruned": "prunekit onnx fp32, unpruned",
    }
    assert found["absent"]["openvino fp32"] == "not asked for (peers=hf,broken)"
    assert found["absent"]["broken fp32"] == "fails here: no such instruction"
    printed = capsys.readouterr().out
    assert "topk on synthetic\n 4 texts of validation" in printed
    assert "the same again: prunekit bench from=" in printed


@pytest.mark.slow  # the README's test runs it too
def test_a_dense_model_of_ones_own_needs_no_training(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["model=my_model", "data=tickets.csv", "label=queue", "batch_sizes=[4]", "rounds=3", "attention=torch"]
    assert main(given) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = {row["name"]: row for row in found["blocks"][0]["sizes"][0]["candidates"]}
    assert {"prunekit packed fp32, unpruned", "hf sdpa fp32", "hf sdpa fp32, sorted"} <= set(rows)
    assert not any(row["role"] == "pruned" for row in rows.values())
    assert all(row["agrees"] == 1.0 for row in rows.values())
    assert found["blocks"][0]["engines"]["prunekit packed fp32"]["attention"] == "torch"
    assert "column body" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "bench needs a run, or a model and its data"),
        (["model=my_model"], "bench needs a run, or a model and its data"),
        (["run=a", "model=b", "data=c"], "bench needs a run, or a model and its data"),
        (["model=nowhere", "data=tickets.csv"], "model=nowhere is no model: it has no config.json"),
        (["model=my_model", "data=nothing.csv"], "data=nothing.csv does not exist"),
        (["model=my_model", "data=tickets.csv", "text=subject"], "has no column 'subject'"),
        (["model=my_model", "data=tickets.csv", "label=body"], "is none of the model's"),
        (["model=my_model", "data=tickets.csv", "peers=tensorrt"], "no peer is called tensorrt"),
        (["model=my_model", "data=tickets.csv", "batch_sizes=[0]"], "holds 0, which is out of range"),
        (["run=x", "rounds=2"], "rounds=2 is out of range"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments, said, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        main(arguments)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("task", "does"),
    [("squad2", "finds answers in texts, which it reads in windows"), ("wmt16_en_de", "translates")],
)
def test_runs_whose_texts_are_not_read_one_by_one_are_refused_before_anything_slow(task, does, tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")  # no weights: none are looked at
    cfg, _ = compose(["method=topk", f"task={task}", "backbone=tiny"])
    (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(cfg))))
    result = CONTENT | {"hash": "1a2b3c4d", "method": "topk", "task": task}
    (run / "result.json").write_text(json.dumps(result))
    for slow in ("torch", "prunekit.models.pretrained", "prunekit.bench.protocol"):
        monkeypatch.setitem(sys.modules, slow, None)  # importing it now is an ImportError
    with pytest.raises(ConfigError) as refused:
        main([f"run={run}"])
    assert str(refused.value).splitlines() == [
        f"run={run} {does}; bench does not measure that.",
        "Allowed: a run of classification, regression or multilabel.",
        "What the run measured itself is in its result.json.",
    ]


def test_help_is_the_commented_file(capsys):
    assert main(["--help"]) == 0
    assert "rounds: 7          # int 3..; counted passes" in capsys.readouterr().out


def test_the_peak_is_that_of_a_matrix_product():
    assert gemm_peak("fp32", "cpu", repeats=1) > 1e8


def test_the_peak_of_int8_is_that_of_the_product_that_the_engine_takes(monkeypatch):
    """Another may be a hundredth of it, as torch's own is under AVX2."""
    shapes = []
    monkeypatch.setattr(choose("int8"), "product", lambda self, rows: shapes.append((rows.shape, rows.dtype)))
    assert gemm_peak("int8", "cpu", repeats=2) > 0
    assert shapes == [((1024, 1024), torch.int8)] * 2
