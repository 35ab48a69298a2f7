"""Embedders: the vectors are those of sentence-transformers, and so is the folder that is saved."""

import json

import numpy as np
import pytest
import torch
from support.folders import edit_json, embedder_folder

from prunekit.config.errors import ConfigError
from prunekit.models import pretrained
from prunekit.models.embedder import Pool, SentenceEmbedder, VectorHead
from prunekit.models.heads import EMBEDDER, TAGGER, head_of, stored_head
from prunekit.models.loading import load_stock
from prunekit.models.reading import read_model
from prunekit.runtime.loading import load
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived

pytest.importorskip("sentence_transformers")

TEXTS = ["the film was good", "a bad one", "the film was good and the music was good too"]
HIDDEN = torch.tensor([[[1.0, 8.0], [3.0, 2.0], [9.0, -9.0]]])


def pruner():
    return TokenPruner(AttentionReceived(), KeepRatio({1: 0.6, 2: 0.4, 3: 0.4}), [1, 2, 3])


def theirs(folder, texts=TEXTS):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts)


@pytest.mark.parametrize(
    ("modes", "weights", "vector"),
    [
        (["mean"], [1, 1, 0], [2, 5]),
        (["mean"], [1, 0, 0], [1, 8]),
        (["mean"], [0.5, 0.25, 0.25], [3.5, 2.25]),
        (["mean_sqrt_len_tokens"], [1, 1, 0], [4 / 2**0.5, 10 / 2**0.5]),
        (["max"], [1, 1, 0], [3, 8]),
        (["cls"], [1, 1, 0], [1, 8]),
        (["cls", "mean"], [1, 1, 0], [1, 8, 2, 5]),
        (["mean"], [0, 0, 0], [0, 0]),
    ],
)
def test_tokens_of_weight_0_are_not_pooled(modes, weights, vector):
    found = Pool(modes)(HIDDEN, torch.tensor([weights], dtype=torch.float32))
    torch.testing.assert_close(found, torch.tensor([vector], dtype=torch.float32))


def test_without_weights_all_tokens_are_pooled():
    torch.testing.assert_close(Pool(["mean"])(HIDDEN), torch.tensor([[13 / 3, 1 / 3]]))


@pytest.mark.parametrize(
    ("family", "modes", "dense", "unit"),
    [
        ("bert", ("mean",), None, True),
        ("bert", ("cls",), 7, False),
        ("roberta", ("max", "mean"), 5, True),
        ("distilbert", ("mean_sqrt_len_tokens",), None, False),
    ],
)
def test_the_vectors_are_those_of_sentence_transformers(family, modes, dense, unit, tmp_path):
    folder = embedder_folder(tmp_path / "own", family=family, modes=modes, dense=dense, unit=unit)
    found = load(folder, engine="packed").encode(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (3, dense or 32 * len(modes))
    np.testing.assert_allclose(found, theirs(folder), atol=1e-5)


def test_a_saved_embedder_is_a_sentence_transformer_with_the_same_dense_vectors(tmp_path):
    folder = embedder_folder(tmp_path / "own", dense=6)
    model = install(load_stock(folder), pruner(), "pack")
    from transformers import AutoTokenizer

    pretrained.save(model, AutoTokenizer.from_pretrained(folder), tmp_path / "saved", max_length=60)
    np.testing.assert_allclose(theirs(tmp_path / "saved"), theirs(folder), atol=1e-6)
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(tmp_path / "saved"), device="cpu").max_seq_length == 60
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == ["BertModel"]


@pytest.mark.parametrize("tokens", ["kept", "all"])
def test_what_is_pooled_is_saved_and_all_executions_and_engines_agree(tokens, tmp_path):
    from transformers import AutoTokenizer

    folder = embedder_folder(tmp_path / "own")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = install(load_stock(folder), pruner(), "pack").eval()
    model.pool(tokens)
    pretrained.save(model, tokenizer, tmp_path / "saved", max_length=64)
    loaded = load(tmp_path / "saved")
    assert loaded.pools_kept == (tokens == "kept")
    found = loaded.encode(TEXTS)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    for execution in ("mask", "drop", "pack"):
        with torch.no_grad():
            np.testing.assert_allclose(loaded(**batch, execution=execution).logits, found, atol=1e-5)
    np.testing.assert_allclose(load(tmp_path / "saved", engine="packed").encode(TEXTS), found, atol=1e-5)
    assert np.abs(found - theirs(tmp_path / "saved")).max() > 1e-3  # tokens were dropped


def test_kept_tokens_are_those_of_the_last_layer(tmp_path):
    from transformers import AutoTokenizer

    from prunekit.tokens.state import Trace

    folder = embedder_folder(tmp_path / "own", unit=False)
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS[:1], return_tensors="pt")
    model, trace = install(load_stock(folder), pruner(), "mask").eval(), Trace()
    with torch.no_grad():
        found = model(**batch, trace=trace).logits
        hidden = model.body(**batch, execution="mask").last_hidden_state[0]
    kept = trace.layers[-1].keep[0] > 0
    assert 0 < int(kept.sum()) < len(kept)
    torch.testing.assert_close(found[0], hidden[kept].mean(0))


def test_the_head_of_an_engine_reads_what_is_pooled(tmp_path):
    model = load_stock(embedder_folder(tmp_path / "own"))
    assert head_of(model).reads == "kept"
    model.pool("all")
    assert head_of(model).reads == "all"
    first = load_stock(embedder_folder(tmp_path / "first", modes=("cls",)))
    assert head_of(first).first_only


def test_for_other_tasks_it_is_an_encoder_without_a_head(tmp_path):
    folder = embedder_folder(tmp_path / "own")
    assert stored_head(folder) is EMBEDDER
    assert stored_head(folder, TAGGER) is None


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([], "has the modules none after its Transformer"),
        ([("Dense", {}), ("Pooling", {})], "has the modules Dense, Pooling"),
        ([("Pooling", {"pooling_mode": ("weightedmean",)})], "pools its tokens by weightedmean"),
        ([("Pooling", {"pooling_mode": ("mean",), "include_prompt": False})], "leaves the prompt out"),
        (
            [("Pooling", {"pooling_mode": ("mean",)}), ("Normalize", {"module_input_name": "token_embeddings"})],
            "has a Normalize for token_embeddings",
        ),
        (
            [
                ("Pooling", {"pooling_mode": ("mean",)}),
                ("Dense", {"in_features": 9, "out_features": 2, "bias": True, "activation_function": "torch.nn.Tanh"}),
            ],
            "it takes 9 numbers and is given 8",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(modules, said):
    with pytest.raises(ConfigError, match=said) as found:
        VectorHead(modules, 8, "own")
    assert len(str(found.value).splitlines()) == 3


def test_a_prompt_before_every_text_is_refused(tmp_path):
    folder = embedder_folder(tmp_path / "own")
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "query: "}, default_prompt_name="query")
    with pytest.raises(ConfigError, match=r"puts query: +before every text \(default_prompt_name\)"):
        read_model(SentenceEmbedder, folder)


def test_a_folder_without_modules_is_refused(tmp_path):
    folder = embedder_folder(tmp_path / "own")
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match="is no folder of a SentenceTransformer"):
        SentenceEmbedder.from_pretrained(folder)


def test_a_module_of_other_weights_is_refused(tmp_path):
    folder = embedder_folder(tmp_path / "own", dense=6)
    edit_json(folder / "2_Dense" / "config.json", out_features=7)
    with pytest.raises(ConfigError, match="has a Dense that does not fit it"):
        load_stock(folder)
