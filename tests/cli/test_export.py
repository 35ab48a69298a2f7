"""`prunekit export`: what is written runs elsewhere and is held to the model, text by text; on tiny random models."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil

import pytest
import torch
from support.exported import PRUNERS, stored_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import prunekit
from prunekit.cli.export import main
from prunekit.config.errors import ConfigError
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import RandomOrder

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install 'prunekit[export]'"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return stored_run(tmp_path_factory.mktemp("original"), "topk", PRUNERS["topk"]())


@pytest.fixture
def run(original, tmp_path):
    """A run of its own for each test."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "top" else pytest.mark.slow) for m in PRUNERS])
def test_a_run_is_exported_and_held_to_its_model(method, tmp_path, capsys):
    run = stored_run(tmp_path, method, PRUNERS[method]())
    assert main([f"run={run}"]) == 0
    report = json.loads((run / "model" / "onnx" / "parity.json").read_text())
    exact = report["variants"]["onnx fp32"]
    assert (exact["rows"], exact["labels_agree"], exact["kept_equal"]) == (12, 1.0, 1.0)
    assert exact["max_difference"] < 1e-4
    assert exact["score"]["model"] == exact["score"]["export"]
    packed = report["packed"]
    assert (packed["rows"], packed["labels_agree"], packed["kept_equal"]) == (12, 1.0, 1.0)
    assert packed["max_difference"] < 1e-4
    rounded = report["variants"]["onnx int8"]
    assert 1e-4 < rounded["max_difference"] < 1
    printed = capsys.readouterr().out
    assert f"{method} on synthetic, validation" in printed
    assert "onnx fp32  12    100.00 %" in printed
    assert "the packed engine: 100.00 % of labels agree, 100.00 % the same tokens kept" in printed


@pytest.mark.slow
def test_the_graph_is_the_second_runtime(run):
    """engine="onnx" reads what was exported, or makes it; a batch is run text by text."""
    made = prunekit.load(run / "model", engine="onnx", threads=1)
    main([f"run={run}", "int8=false", "rows=2"])
    read = prunekit.load(run / "model", engine="onnx", threads=1)
    stock = prunekit.load(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    texts = ["a bright film", "the story was very dull and the end was bad"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = stock(**batch).logits
    for engine in (made, read):
        found = engine(texts)
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(engine(batch).logits, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(engine.logits(tokenizer(texts).input_ids), expected, atol=1e-4, rtol=0)
        assert found.labels == [stock.config.id2label[best] for best in expected.argmax(-1).tolist()]
        assert found.kept[0][0] == list(range(int(batch["attention_mask"][0].sum())))
        assert all(places[0] == 0 for layer in found.kept for places in layer)


def test_a_graph_of_other_weights_is_refused(run):
    main([f"run={run}", "int8=false", "rows=2"])
    about = run / "model" / "onnx" / "prunekit_onnx.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"weights_sha256 differs.*export again: prunekit export run="):
        prunekit.load(run / "model", engine="onnx")


def test_an_unknown_precision_is_refused(run):
    with pytest.raises(ValueError, match="engine='onnx' has no dtype='int4'; choose one of fp32, int8"):
        prunekit.load(run / "model", engine="onnx", dtype="int4")


def test_hugging_face_gets_an_ordinary_folder(run, tmp_path, capsys):
    out = tmp_path / "upload"
    assert main([f"run={run}", "format=hf", f"out={out}"]) == 0
    stock = AutoModelForSequenceClassification.from_pretrained(out)
    assert stock.config.model_type == "bert"
    assert prunekit.load(out).config.num_labels == 2
    assert 'prunekit.load("this/folder")' in (out / "README.md").read_text()
    assert json.loads((out / "parity.json").read_text())["variants"]["hf pruned"]["max_difference"] == 0
    assert main([f"run={run}", "format=hf", "prune=false", "rows=3"]) == 0
    assert not (run / "hf_dense" / "prunekit.json").exists()


@needs_openvino
def test_openvino_runs_the_same_graph(run):
    assert main([f"run={run}", "format=openvino"]) == 0
    folder = run / "model" / "openvino"
    assert {"openvino_model.xml", "openvino_model.bin"} <= {path.name for path in folder.iterdir()}
    found = json.loads((folder / "parity.json").read_text())["variants"]
    assert (found["openvino fp32"]["labels_agree"], found["openvino fp32"]["kept_equal"]) == (1.0, 1.0)
    assert 1e-4 < found["openvino int8"]["max_difference"] < 1


def test_a_dense_graph_never_lies_where_the_pruned_one_is_looked_for(run):
    assert main([f"run={run}", "prune=false", "int8=false", "rows=3"]) == 0
    assert (run / "model" / "onnx_dense" / "model.onnx").is_file()
    assert not (run / "model" / "onnx").exists()


def test_a_file_that_is_another_function_ends_with_3(run, monkeypatch, capsys):
    from prunekit.bench import parity

    real = parity.engine_runtime

    def wrong(call):
        def off(batch):
            found = call(batch)
            found.logits[:] = found.logits.flip(-1)
            return found

        return real(off)

    monkeypatch.setattr(parity, "engine_runtime", wrong)
    assert main([f"run={run}", "int8=false", "rows=4"]) == 3
    assert "NOT the same function" in capsys.readouterr().out


def test_a_packed_engine_that_is_another_function_ends_with_3(run, monkeypatch, capsys):
    from prunekit.runtime import forward

    right = forward.ForwardPass.restore
    monkeypatch.setattr(forward.ForwardPass, "restore", lambda self: right(self) * 0.9)
    assert main([f"run={run}", "format=hf", "rows=4"]) == 3
    assert "NOT the same function" in capsys.readouterr().out


def test_what_a_graph_cannot_say_is_an_error_of_three_lines_at_most(tmp_path):
    run = stored_run(tmp_path, "random", TokenPruner(RandomOrder(1), KeepRatio({1: 0.5}), [1]))
    with pytest.raises(ConfigError, match="RandomOrder orders tokens by a 64-bit hash"):
        main([f"run={run}"])


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "openvino"])
def test_a_missing_package_says_what_to_install(missing, run, monkeypatch):
    from prunekit.runtime import extras

    original = importlib.import_module

    def without(name):
        if name == missing:
            raise ImportError(f"No module named '{name}'")
        return json if name in extras.EXTRA else original(name)

    monkeypatch.setattr(extras.importlib, "import_module", without)
    form = "openvino" if missing == "openvino" else "onnx"
    with pytest.raises(ConfigError) as refused:
        main([f"run={run}", f"format={form}"])
    assert f"needs the package {missing}, which is not installed" in str(refused.value)
    assert f"pip install 'prunekit[export]'   (or pip install {missing})" in str(refused.value)
    assert not (run / "model" / "onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no run is given"),
        (["run=nowhere"], "run=nowhere is no run: nowhere/config.yaml does not exist"),
        (["run=x", "format=tflite"], "format=tflite is not one of the choices"),
        (["run=x", "rows=0"], "rows=0 is out of range"),
        (["run=x", "formats=onnx"], "Did you mean format=...?"),
        (["--all"], "Unknown setting of export: --all."),
        (["--format", "hf"], "Type: prunekit export format=hf"),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments, said):
    with pytest.raises(ConfigError) as refused:
        main(arguments)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3


def test_a_run_that_is_not_finished(run):
    (run / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"is not finished .*no result\.json"):
        main([f"run={run}"])


def test_help_is_the_commented_file(capsys):
    assert main(["--help"]) == 0
    assert "format: onnx    # one of onnx|openvino|hf" in capsys.readouterr().out
