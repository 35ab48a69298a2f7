"""Folders of sentence-transformers: modules.json, read without running anything that it names."""

import json

import pytest
import torch
from safetensors.torch import save_file

from prunekit.config.errors import ConfigError
from prunekit.models.sentence_folder import activation_name, read_sentence_folder, read_weights

NEW = "sentence_transformers.base.modules"


def write(folder, modules, settings=None, **files):
    """A folder with these modules, as (type, path), and JSON files by their place."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"idx": place, "name": str(place), "path": path, "type": kind} for place, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    for name, content in files.items():
        place = folder / name.replace("__", "/")
        place.parent.mkdir(exist_ok=True)
        place.with_suffix(".json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_modules_is_none_of_them(tmp_path):
    assert read_sentence_folder(tmp_path) is None


def test_an_old_embedder_is_read_under_the_names_of_today(tmp_path):
    folder = write(
        tmp_path,
        [("sentence_transformers.models.Transformer", ""), ("sentence_transformers.models.Pooling", "1_Pooling")],
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": False},
        **{"1_Pooling__config": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}},
    )
    found = read_sentence_folder(folder)
    assert found.model_type == "SentenceTransformer"
    assert [module.kind for module in found.modules] == ["Transformer", "Pooling"]
    assert found.transformer.settings["max_seq_length"] == 256
    assert found.transformer.folder == folder
    assert found.head[0].settings == {
        "include_prompt": True,
        "embedding_dimension": 384,
        "pooling_mode": ("mean",),
    }


def test_a_modular_reranker_has_the_settings_of_its_head(tmp_path):
    folder = write(
        tmp_path,
        [(f"{NEW}.transformer.Transformer", ""), (f"{NEW}.dense.Dense", "1_Dense")],
        {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"},
        **{"1_Dense__config": {"in_features": 8, "out_features": 1, "module_output_name": "scores"}},
    )
    found = read_sentence_folder(folder)
    assert (found.model_type, found.settings["activation_fn"]) == ("CrossEncoder", "torch.nn.modules.linear.Identity")
    assert found.head[0].settings == {
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
        "module_input_name": "sentence_embedding",
        "module_output_name": "scores",
        "use_residual": False,
        "in_features": 8,
        "out_features": 1,
    }


def test_a_prompt_counts_where_it_is_the_default(tmp_path):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    assert read_sentence_folder(write(tmp_path, [(f"{NEW}.Transformer", "")], prompts)).default_prompt == ""
    prompts["default_prompt_name"] = "query"
    assert read_sentence_folder(write(tmp_path, [(f"{NEW}.Transformer", "")], prompts)).default_prompt == "query: "


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([(f"{NEW}.Transformer", ""), ("custom_st.Router", "1")], "lists the module 'custom_st.Router'"),
        ([(f"{NEW}.Transformer", ""), ("sentence_transformers.x.LogitScore", "1")], "x.LogitScore'"),
        ([("os.Transformer", "")], "lists the module 'os.Transformer'"),
        ([(f"{NEW}.Transformer", "../other")], "names the folder '../other' for its Transformer"),
        ([(f"{NEW}.Dense", "1_Dense")], "lists Dense"),
        ([], "no list of modules"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, modules, message):
    with pytest.raises(ConfigError, match=r".*\nAllowed: .*\n") as raised:
        read_sentence_folder(write(tmp_path, modules))
    assert message in str(raised.value)


def test_capitals_that_only_sentence_transformers_removes_are_refused(tmp_path):
    folder = write(
        tmp_path,
        [(f"{NEW}.Transformer", "")],
        sentence_bert_config={"do_lower_case": True},
        tokenizer={"normalizer": {"type": "BertNormalizer", "lowercase": False}},
    )
    with pytest.raises(ConfigError, match="its tokenizer keeps capitals"):
        read_sentence_folder(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"normalizer": {"type": "BertNormalizer", "lowercase": True}}))
    assert read_sentence_folder(folder) is not None


def test_weights_are_read_from_either_file(tmp_path):
    folder = write(tmp_path, [(f"{NEW}.Transformer", ""), (f"{NEW}.Dense", "1_Dense")], **{"1_Dense__config": {}})
    dense = read_sentence_folder(folder).head[0]
    with pytest.raises(ConfigError, match="no weights of its Dense"):
        read_weights(dense)
    torch.save({"linear.weight": torch.ones(1, 2)}, folder / "1_Dense" / "pytorch_model.bin")
    assert read_weights(dense)["linear.weight"].tolist() == [[1.0, 1.0]]
    save_file({"linear.weight": torch.zeros(1, 2)}, folder / "1_Dense" / "model.safetensors")
    assert read_weights(dense)["linear.weight"].tolist() == [[0.0, 0.0]]


def test_an_activation_is_named_and_never_imported():
    assert activation_name("torch.nn.modules.linear.Identity", "here") == "Identity"
    assert activation_name("torch.nn.Sigmoid", "here") == "Sigmoid"
    for given in ("os.system", "torch.nn.modules.activation.Softplus", "mine.Tanh", None):
        with pytest.raises(ConfigError, match="here names the activation"):
            activation_name(given, "here")
