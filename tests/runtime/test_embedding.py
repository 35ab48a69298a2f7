"""Vectors from every engine, and through the API of sentence-transformers."""

import numpy as np
import pytest
from support.folders import classifier_folder, embedder_folder

from prunekit.config.errors import ConfigError
from prunekit.models import pretrained
from prunekit.models.loading import load_stock
from prunekit.runtime.embedding import encode
from prunekit.runtime.loading import load
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived

pytest.importorskip("sentence_transformers")

TEXTS = ["the film was good", "a bad one", "the film was good and the music was good too", ""]


def saved(folder, *, tokens="kept", **made):
    """A pruned embedder."""
    from transformers import AutoTokenizer

    source = embedder_folder(folder / "own", **made)
    pruner = TokenPruner(AttentionReceived(), KeepRatio({1: 0.6, 2: 0.4, 3: 0.4}), [1, 2, 3])
    model = install(load_stock(source), pruner, "pack")
    model.pool(tokens)
    pretrained.save(model, AutoTokenizer.from_pretrained(source), folder / "pruned", max_length=64)
    return folder / "pruned"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models"))


def test_batches_are_of_texts_of_similar_length_and_the_order_is_that_given(pruned):
    engine, sizes = load(pruned, engine="packed"), []
    whole = engine(TEXTS).logits.numpy()

    def run(ids):
        sizes.append([len(row) for row in ids])
        return engine(ids).logits

    found = encode(run, engine.tokenizer, engine.config, 64, TEXTS, batch_size=2)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    lengths = [length for batch in sizes for length in batch]
    assert lengths == sorted(lengths)
    assert [len(batch) for batch in sizes] == [2, 2]


def test_one_text_has_one_vector_and_none_have_none(pruned):
    model = load(pruned)
    assert model.encode("a bad one").shape == (32,)
    np.testing.assert_allclose(model.encode("a bad one"), model.encode(TEXTS)[1], atol=1e-5)
    assert model.encode([]).shape == (0, 32)


def test_texts_are_cut_where_they_were_in_training(pruned):
    model = load(pruned, engine="packed")
    long = "the film was good " * 40
    np.testing.assert_allclose(model.encode(long), model.encode(long + "a bad one"), atol=1e-6)


@pytest.mark.parametrize("given", [3, ["a text", None], [("a", "pair")]])
def test_what_is_no_text_is_refused(pruned, given):
    with pytest.raises(TypeError, match="encode was given"):
        load(pruned, engine="packed").encode(given)


def test_a_classifier_gives_no_vectors(tmp_path):
    engine = load(classifier_folder(tmp_path / "own"), engine="packed")
    with pytest.raises(ValueError, match="this model gives no vectors"):
        engine.encode(["a text"])


def test_an_explanation_says_that_the_answer_is_a_vector(pruned):
    assert "a vector of 32 numbers" in str(load(pruned).explain(TEXTS[:1]))


@pytest.mark.parametrize(
    ("tokens", "made"), [("kept", {}), ("all", {}), ("kept", {"modes": ("cls",)}), ("kept", {"dense": 5})]
)
def test_a_graph_gives_the_same_vectors(tmp_path, tokens, made):
    pytest.importorskip("onnxruntime")
    folder = saved(tmp_path, tokens=tokens, **made)
    np.testing.assert_allclose(load(folder, engine="onnx").encode(TEXTS), load(folder).encode(TEXTS), atol=1e-4)


# -- sentence-transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["packed", "onnx"])
def test_a_module_of_sentence_transformers_removes_tokens(pruned, engine):
    from sentence_transformers import SentenceTransformer

    from prunekit.runtime.sentence_module import PrunedEmbedder

    model = SentenceTransformer(modules=[PrunedEmbedder(pruned, engine=engine)], device="cpu")
    expected = load(pruned).encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-4)
    assert model.get_embedding_dimension() == 32
    assert model.max_seq_length == 64
    assert np.abs(SentenceTransformer(str(pruned), device="cpu").encode(TEXTS) - expected).max() > 1e-3


def test_fewer_tokens_reach_the_last_layers_there(pruned):
    from sentence_transformers import SentenceTransformer

    from prunekit.runtime.sentence_module import PrunedEmbedder

    module, seen = PrunedEmbedder(pruned), []
    engine = module.engine
    module.engine = lambda batch: (seen.append(engine(batch)), seen[-1])[1]
    SentenceTransformer(modules=[module], device="cpu").encode(TEXTS[:1])
    counts = [len(layer[0]) for layer in seen[0].kept]
    assert counts[0] == module.preprocess(TEXTS[:1])["input_ids"].shape[1]
    assert counts[3] < counts[1] < counts[0]


def test_what_is_saved_there_loads_there_again(pruned, tmp_path):
    from sentence_transformers import SentenceTransformer

    from prunekit.runtime.sentence_module import PrunedEmbedder

    model = SentenceTransformer(modules=[PrunedEmbedder(pruned)], device="cpu")
    model.save(str(tmp_path / "theirs"))
    again = SentenceTransformer(str(tmp_path / "theirs"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_a_classifier_is_no_such_module(tmp_path):
    from prunekit.runtime.sentence_module import PrunedEmbedder

    with pytest.raises(ConfigError, match="gives no vectors"):
        PrunedEmbedder(classifier_folder(tmp_path / "own"))
