"""Any folder may be named: nothing of it is run, and what is missing or broken is refused by name."""

import ast
import json
import os

import pytest
import torch
from support.folders import edit_json, edit_tensors
from support.models import tiny_model
from support.paths import ROOT
from transformers import AutoModelForSequenceClassification

from prunekit.config.errors import ConfigError
from prunekit.data.encoding import load_tokenizer
from prunekit.data.kinds.labelled import CLASSIFICATION
from prunekit.models.loading import load_model, load_stock
from prunekit.models.reading import read_config, read_model

NAMES = ["LABEL_0", "LABEL_1", "LABEL_2"]
EVIL = """open({place!r}, 'w').close()
from transformers import BertConfig as Evil, BertForSequenceClassification as Model
"""


@pytest.fixture
def folder(tmp_path):
    tiny_model(layers=2).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def loaded(folder):
    return read_model(AutoModelForSequenceClassification, folder)


@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_code_in_the_folder_is_never_run_and_never_asked_about(folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "evil.py").write_text(EVIL.format(place=str(tmp_path / "ran")))
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Model"}
    edit_json(folder / "config.json", auto_map=auto_map, model_type=kind)
    if kind == "bert":
        assert type(loaded(folder)).__module__.startswith("transformers.models.bert")
    else:
        with pytest.raises(ConfigError, match="has no configuration that can be read"):
            loaded(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main:forward"},
        {"text_config": {"attn_implementation": {"": "paged|evil/kernel"}}},
        {"experts_implementation": "evil/kernel"},
    ],
)
def test_a_kernel_of_the_hub_is_refused(folder, config):
    edit_json(folder / "config.json", **config)
    with pytest.raises(ConfigError, match=r"asks for the attention kernel .*evil/kernel"):
        loaded(folder)


def test_an_attention_of_transformers_is_fine(folder):
    edit_json(folder / "config.json", attn_implementation="eager")
    assert loaded(folder).config.num_hidden_layers == 2


@pytest.mark.parametrize("content", ["[]", "{", '{"model_type": 3}', "[" * 5000, "{}"])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="has no configuration that can be read"):
        read_config(folder)


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bert-base-uncased"}))
    with pytest.raises(ConfigError, match="holds an adapter"):
        loaded(folder)


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def named(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


MISSING = {
    "a layer": (without("layer.1."), r"lacks 16 tensors: bert\.encoder\.layer\.1\.\S+, .* and 12 more"),
    "the head": (without("classifier"), r"lacks 2 tensors: classifier\.bias, classifier\.weight\."),
    "another prefix": (named(lambda name: f"net.{name}"), r"lacks 41 tensors: bert\.embeddings\.LayerNorm\.bias"),
    "one name": (
        named(lambda name: name.replace("pooler.dense.bias", "pooler.dense.b")),
        r"lacks 1 tensor: bert\.pooler\.dense\.bias\.",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_missing_tensors_are_named(folder, what):
    change, message = MISSING[what]
    edit_tensors(folder / "model.safetensors", change)
    with pytest.raises(ConfigError, match=message):
        load_model(folder, CLASSIFICATION, NAMES, new_head=False)
    with pytest.raises(ConfigError, match=message):
        load_stock(folder)


def test_tensors_that_the_model_does_not_have_are_named(folder):
    edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"holds 16 tensors: bert\.encoder\.layer\.1\..* which its model does not"):
        load_stock(folder)


def test_a_tensor_of_another_size_is_refused(folder):
    edit_json(folder / "config.json", vocab_size=121)
    with pytest.raises(ConfigError, match="has weights that cannot be read"):
        load_stock(folder)


def test_weights_that_are_cut_off_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="has weights that cannot be read"):
        load_stock(folder)


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "NaN"), (float("inf"), "an inf"), (-float("inf"), "an inf")]
)
def test_weights_are_numbers(folder, value, what):
    def change(tensors):
        tensors["bert.encoder.layer.1.output.dense.bias"][3] = value
        return tensors

    edit_tensors(folder / "model.safetensors", change)
    with pytest.raises(ConfigError, match=rf"holds {what}.* in bert\.encoder\.layer\.1\.output\.dense\.bias"):
        load_stock(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ConfigError, match=rf"{name} is a pipe, a socket or a device"):
        load_stock(folder)
    with pytest.raises(ConfigError, match=rf"{name} is a pipe, a socket or a device"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("kind", "shown"), [(torch.bool, "BOOL"), (torch.int64, "I64")])
def test_weights_are_floating_numbers(folder, kind, shown):
    name = "bert.encoder.layer.1.output.dense.bias"
    edit_tensors(folder / "model.safetensors", lambda tensors: {**tensors, name: tensors[name].to(kind)})
    with pytest.raises(ConfigError, match=rf"holds {name} as {shown}, which are no weights"):
        load_stock(folder)


def test_weights_in_half_the_bytes_are_read_as_they_are(folder):
    edit_tensors(folder / "model.safetensors", lambda found: {name: one.bfloat16() for name, one in found.items()})
    weights = load_stock(folder).state_dict()
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}


# -- a head that is about to be trained ------------------------------------------------------------------


@pytest.mark.parametrize("head", ["MaskedLM", "base"])
def test_a_backbone_gets_a_new_head_only_where_it_is_trained(tmp_path, family, head):
    model = tiny_model(family, head="MaskedLM") if head == "MaskedLM" else tiny_model(family).base_model
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, CLASSIFICATION, ["a", "b"]).config.id2label == {0: "a", 1: "b"}
    with pytest.raises(ConfigError, match="has no head, but the task is text-classification"):
        load_model(tmp_path, CLASSIFICATION, ["a", "b"], new_head=False)
    with pytest.raises(ConfigError, match="has no head"):
        load_stock(tmp_path)


def test_a_new_head_does_not_hide_a_missing_layer(tmp_path):
    tiny_model(head="MaskedLM").save_pretrained(tmp_path)
    edit_tensors(tmp_path / "model.safetensors", without("layer.3."))
    with pytest.raises(ConfigError, match=r"lacks 16 tensors: bert\.encoder\.layer\.3"):
        load_model(tmp_path, CLASSIFICATION, ["a", "b"])


def test_a_new_head_does_not_hide_a_layer_too_many(tmp_path):
    tiny_model().base_model.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r"holds 16 tensors: encoder\.layer\.3\."):
        load_model(tmp_path, CLASSIFICATION, ["a", "b"])


def test_weights_load_as_they_were_saved(folder):
    before = tiny_model(layers=2).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded(folder).state_dict().items())


# -- every place that reads a model ----------------------------------------------------------------------


def calls():
    """Every call of transformers that may load code of a folder, as (place, names of its keyword arguments)."""
    for path in sorted((ROOT / "prunekit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in ("from_pretrained", "from_config") and owner.lower().startswith("auto"):
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", keywords


def test_no_place_trusts_code_of_a_folder():
    told = [(place, keywords) for place, keywords in calls() if "tiny.py" not in place]  # which reads nothing
    assert len(told) >= 5
    for place, keywords in told:
        assert keywords.get("trust_remote_code") == "False" or keywords.get(None) == "place", place
