"""Rerankers: what a folder of a CrossEncoder says, ranking in every engine, and inside sentence-transformers."""

import json

import pytest
import torch
from support.folders import edit_json
from support.models import tiny_model

import prunekit
from prunekit.config.errors import ConfigError
from prunekit.models.loading import load_stock
from prunekit.models.reranker import activation_of, is_reranker
from prunekit.models.sources import find_backbone
from prunekit.runtime.ranking import rank
from prunekit.tokens.encoder import encoder_of, install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace

IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
QUERY = "was the film good"
DOCUMENTS = [
    "the film was very good and the actors were bright",
    "it was dull",
    "the story was very long and the end was bad but the film was good",
    "a bright story",
]
SEP = 3


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(find_backbone({"name": "tiny", "family": "bert"}))


def write(folder, **config):
    """A folder with one output, and further keys of its config.json."""
    words = tokenizer()
    model = tiny_model(classes=1)
    model.resize_token_embeddings(len(words))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    edit_json(folder / "config.json", **config)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain"), sentence_transformers={"activation_fn": SIGMOID})


def prune(given, folder, separator=SEP):
    model = install(load_stock(given), TokenPruner(AttentionReceived(), KeepRatio({1: 0.3}), [1]), separator=separator)
    prunekit.save(model, tokenizer(), folder, max_length=80)
    return folder


@pytest.fixture(scope="module")
def pruned(given, tmp_path_factory):
    return prune(given, tmp_path_factory.mktemp("pruned"))


# -- what a folder says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "about", "activation"),
    [
        ({}, None, None),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, None, IDENTITY),
        ({"sentence_transformers": {"version": "5.0"}}, None, SIGMOID),
        ({"sbert_ce_default_activation_function": IDENTITY}, None, IDENTITY),
        ({"sbert_ce_default_activation_function": None}, None, SIGMOID),
        ({}, {"model_type": "CrossEncoder", "activation_fn": IDENTITY}, IDENTITY),
        ({}, {"model_type": "SentenceTransformer"}, None),
    ],
)
def test_the_activation_is_that_of_crossencoder(tmp_path, config, about, activation):
    """One output: where no activation is named, CrossEncoder takes the logistic function."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0"}, **config}))
    if about is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(about))
    assert activation_of(tmp_path) == activation
    assert is_reranker(tmp_path) == (activation is not None)


def test_an_activation_from_elsewhere_is_refused_and_several_outputs_are_no_reranker(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"sentence_transformers": {"activation_fn": "os.system"}}))
    with pytest.raises(ConfigError, match=r"names the activation 'os.system'"):
        activation_of(tmp_path)
    assert not is_reranker(tmp_path)  # two outputs, where no names are written


# -- ranking -------------------------------------------------------------------------------------------


def test_the_best_document_is_first_and_of_equal_ones_the_earlier():
    scores = {"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}
    config = load_config(num_labels=1)

    def score(pairs):
        return torch.tensor([[scores[text]] for _, text in pairs])

    assert rank(score, None, config, "q", list("abcd"), top_k=3, return_documents=True) == [
        {"corpus_id": 1, "score": 3.0, "text": "b"},
        {"corpus_id": 2, "score": 3.0, "text": "c"},
        {"corpus_id": 3, "score": 2.0, "text": "d"},
    ]
    assert rank(score, None, config, "q", ["a"]) == [{"corpus_id": 0, "score": 1.0}]
    assert rank(score, None, config, "q", []) == []


def load_config(**keys):
    from transformers import BertConfig

    return BertConfig(**keys)


def test_every_engine_ranks_alike_and_removes_tokens_of_the_document_alone(pruned):
    model, packed = prunekit.load(pruned), prunekit.load(pruned, engine="packed")
    words = tokenizer()
    batch = dict(words([QUERY] * 4, DOCUMENTS, padding=True, return_tensors="pt"))
    trace = Trace()
    with torch.no_grad():
        logits = model(**batch, trace=trace).logits
    expected = sorted(range(4), key=lambda row: -float(logits[row, 0].sigmoid()))
    found = model.rank(QUERY, DOCUMENTS)
    assert [row["corpus_id"] for row in found] == expected
    assert [row["score"] for row in found] == pytest.approx([float(logits[row, 0].sigmoid()) for row in expected])
    for others in (packed.rank(QUERY, DOCUMENTS, batch_size=2), onnx(pruned).rank(QUERY, DOCUMENTS)):
        assert [row["corpus_id"] for row in others] == expected
        assert [row["score"] for row in others] == pytest.approx([row["score"] for row in found], abs=1e-5)
    first = words(QUERY, DOCUMENTS[2])["token_type_ids"].index(1)  # [CLS], the query and its [SEP]
    kept = packed([(QUERY, DOCUMENTS[2])]).kept[1][0]
    assert set(range(first)) <= set(kept)
    assert len(kept) < len(words(QUERY, DOCUMENTS[2])["input_ids"])
    assert trace.tokens_out[1].tolist() == [len(packed([(QUERY, text)]).kept[1][0]) for text in DOCUMENTS]


def onnx(folder):
    pytest.importorskip("onnxruntime")
    return prunekit.load(folder, engine="onnx")


def test_nothing_is_protected_where_the_folder_does_not_say_so(given, tmp_path):
    packed = prunekit.load(prune(given, tmp_path / "free", separator=None), engine="packed")
    kept = packed([(QUERY, DOCUMENTS[2])]).kept[1][0]
    assert not set(range(6)) <= set(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUERY, "a text"), "rank was given 'a text'"),
        ((QUERY, ["a text", 3]), "rank was given 3"),
        ((QUERY, ["a text"], 0), "top_k=0"),
        (("good " * 80, ["a text"]), "leaves no room for a document"),
    ],
)
def test_what_cannot_be_ranked_is_refused(pruned, arguments, message):
    query, documents, *top_k = arguments
    for engine in (prunekit.load(pruned), prunekit.load(pruned, engine="packed")):
        with pytest.raises(ConfigError, match=r".*\nAllowed: .*\n.*") as raised:
            engine.rank(query, documents, **({"top_k": top_k[0]} if top_k else {}))
        assert message in str(raised.value)


def test_a_model_with_classes_ranks_nothing():
    with pytest.raises(ConfigError, match="a model with 3 outputs"):
        rank(lambda pairs: None, None, load_config(num_labels=3), "q", ["a"])


# -- inside sentence-transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossencoder():
    return pytest.importorskip("sentence_transformers", reason="the extra sentence-transformers").CrossEncoder


def by_document(rows):
    return [row["score"] for row in sorted(rows, key=lambda row: row["corpus_id"])]


def test_the_given_and_the_saved_folder_are_a_plain_crossencoder(crossencoder, given, pruned):
    """Dense: the scores of `rank` without pruning, activation and all."""
    for folder in (given, pruned):
        theirs = crossencoder(str(folder), device="cpu").rank(QUERY, DOCUMENTS)
        ours = prunekit.load(given, engine="packed").rank(QUERY, DOCUMENTS)
        assert [row["corpus_id"] for row in theirs] == [row["corpus_id"] for row in ours]
        assert by_document(ours) == pytest.approx(by_document(theirs), abs=1e-6)


def test_tokens_are_removed_inside_their_rank(crossencoder, pruned, tmp_path):
    from prunekit.runtime.rerank_module import PrunedReranker

    model = crossencoder(modules=[PrunedReranker(pruned)], device="cpu")
    ours = prunekit.load(pruned, engine="packed").rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    theirs = model.rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    assert [(row["corpus_id"], row["text"]) for row in theirs] == [(row["corpus_id"], row["text"]) for row in ours]
    assert by_document(theirs) == pytest.approx(by_document(ours), abs=1e-6)
    dense = by_document(prunekit.load(pruned, "dense").rank(QUERY, DOCUMENTS))
    assert by_document(model.rank(QUERY, DOCUMENTS)) != pytest.approx(dense, abs=1e-3)
    model.save_pretrained(str(tmp_path))
    again = crossencoder(str(tmp_path), device="cpu", trust_remote_code=True)
    assert by_document(again.rank(QUERY, DOCUMENTS)) == pytest.approx(by_document(model.rank(QUERY, DOCUMENTS)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_modular_head_is_computed_pruned_and_saved(crossencoder, tmp_path, pooling):
    from sentence_transformers.cross_encoder.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    plain = write(tmp_path / "plain")
    modules = [Transformer(str(plain)), Pooling(32, pooling), Dense(32, 16), LayerNorm(16)]
    last = Dense(16, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    theirs = crossencoder(modules=[*modules, last], activation_fn=torch.nn.Identity(), device="cpu")
    theirs.save_pretrained(str(tmp_path / "modular"))
    expected = by_document(theirs.rank(QUERY, DOCUMENTS))
    assert is_reranker(tmp_path / "modular")
    dense = prunekit.load(tmp_path / "modular", engine="packed")
    assert by_document(dense.rank(QUERY, DOCUMENTS)) == pytest.approx(expected, abs=1e-5)
    folder = prune(tmp_path / "modular", tmp_path / "pruned")
    ours = [by_document(prunekit.load(folder).rank(QUERY, DOCUMENTS))]
    ours += [
        by_document(engine.rank(QUERY, DOCUMENTS)) for engine in (prunekit.load(folder, engine="packed"), onnx(folder))
    ]
    assert ours[0] == pytest.approx(ours[1], abs=1e-5)
    assert ours[0] == pytest.approx(ours[2], abs=1e-5)
    assert ours[0] != pytest.approx(expected, abs=1e-3)
    again = crossencoder(str(folder), device="cpu")  # dense, as plain sentence-transformers loads it
    assert by_document(again.rank(QUERY, DOCUMENTS)) == pytest.approx(expected, abs=1e-5)
    assert encoder_of(prunekit.load(folder)).separator == SEP


def test_a_modular_head_that_gives_no_scores_is_refused(crossencoder, tmp_path):
    from sentence_transformers.cross_encoder.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain = write(tmp_path / "plain")
    crossencoder(modules=[Transformer(str(plain)), Pooling(32, "cls")], device="cpu").save_pretrained(
        str(tmp_path / "x")
    )
    with pytest.raises(ConfigError, match="the last module of this CrossEncoder is a Pooling, which gives no scores"):
        is_reranker(tmp_path / "x")
