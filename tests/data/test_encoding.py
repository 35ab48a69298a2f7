"""Encoded splits: batches of each kind of task, as literal numbers, and the fingerprints that name them."""

import pytest
import torch

from prunekit.data import encoding
from prunekit.data.encoding import Encoder, encode_texts, load_tokenizer
from prunekit.data.rows import Rows
from prunekit.data.spans import Answer
from prunekit.data.translations import encode_translations
from prunekit.data.windows import encode_windows
from prunekit.models.tiny import build_tiny_backbone

CONTEXT = "bade bafi bago dede defi dego fiba fide figo goba"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in ("bert", "marian"):
        build_tiny_backbone(folder / family, family)
    return {family: load_tokenizer(folder / family) for family in ("bert", "marian")}


@pytest.fixture(params=["cached", "not cached"])
def encoder(tokenizers, tmp_path, monkeypatch, request):
    monkeypatch.setattr(encoding, "tokenizer_fingerprint", lambda tokenizer: "tokenizer")
    return lambda max_length, family="bert": Encoder(
        tokenizers[family], max_length, tmp_path if request.param == "cached" else None
    )


def all_rows(split):
    return {name: tensor.tolist() for name, tensor in split.batch(torch.arange(len(split))).items()}


def test_classes_and_pairs(encoder):
    rows = Rows(["bade bafi", "go " * 30, "fide"], ["bago", "dede", "fiba"], [1, 0, 1])
    split = encode_texts(rows, encoder(16), ("no", "yes"))
    assert split.fingerprint == "a9e7e646762d97a94b5b3cdb5586d1856210e581dc850a01a86775860a7a59fa"
    assert (split.truncated, split.judged, split.protected.tolist()) == (1, 3, [1, 1, 1])
    batch = split.batch(torch.tensor([0, 2]))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[2, 6, 7, 3, 8, 3], [2, 14, 3, 13, 3, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]],
        "labels": [1, 1],
        "index": [0, 2],
    }
    assert split.targets.names == ("no", "yes")


def test_values(encoder):
    split = encode_texts(Rows(["bade bafi", "fide"], None, [0.5, 2.25]), encoder(16))
    assert split.fingerprint == "2af7a4802d5e4abf58f84a69c45e1652004bd300c92131f15f7d4395e02ef0d6"
    assert all_rows(split) == {
        "input_ids": [[2, 6, 7, 3], [2, 14, 3, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0, 0]],
        "labels": [0.5, 2.25],
        "index": [0, 1],
    }
    assert split.targets.labels.dtype == torch.float32


def test_windows_of_questions(encoder):
    answers = [Answer(("fiba",), (CONTEXT.index("fiba"),)), Answer()]
    rows = Rows(["bade bafi", "dede"], [CONTEXT, "bago fiba"], answers, None, ["a", "b"])
    split = encode_windows(rows, encoder(11), 2, protect_question=True)
    assert split.fingerprint == "06b018d1f0bf512f1303b3304b8d7a0ab30ae06b79665da4ece0fc6112e2a3bf"
    assert (split.judged, len(split), split.protected.tolist()) == (2, 3, [4, 4, 3])
    batch = all_rows(split)
    assert batch["input_ids"] == [
        [2, 6, 7, 3, 6, 7, 8, 10, 11, 12, 3],
        [2, 6, 7, 3, 11, 12, 13, 14, 16, 17, 3],
        [2, 10, 3, 8, 13, 3, 0, 0, 0, 0, 0],
    ]
    assert batch["spans"][2] == [[-1, -1]] * 3 + [[0, 4], [5, 9]] + [[-1, -1]] * 6
    assert batch["protected"] == [[True] * 4 + [False] * 7] * 2 + [[True] * 3 + [False] * 8]
    assert (batch["labels"], batch["example"]) == ([[0, 0], [6, 6], [0, 0]], [0, 0, 1])
    assert split.targets.references == ["fiba", ""]


def test_sources_and_targets(encoder):
    rows = Rows(["bade bafi", "bade"], None, ["bago", "bafi bago bago bago"])
    split = encode_translations(rows, encoder(16, "marian"), 4, prefix=1)
    assert split.fingerprint == "dfdef01b0ffae3f85b5d7bceddb628877dee1e6baed670b46d0401f94a513a82"
    assert (split.truncated, split.judged, split.protected.tolist()) == (1, 2, [2, 2])
    assert all_rows(split) == {
        "input_ids": [[6, 7, 3], [6, 3, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "protected": [[True, False, True], [True, True, False]],
        "labels": [[8, 3, -100, -100], [7, 8, 8, 3]],
        "index": [0, 1],
    }
    assert split.targets.references == ["bago", "bafi bago bago bago"]
