"""Peers are engines on the same weights: equal logits, or a reason why they are not there."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from support.models import tiny_model
from transformers import BertTokenizer

from prunekit.bench import peers
from prunekit.bench.inputs import BatchPadder
from prunekit.bench.peers import PeerUnavailableError, build_padded_eager, choose_peers
from prunekit.bench.protocol import Encoded
from prunekit.runtime.extras import MissingPackageError

BATCH = [[7, 8, 9, 10], [11, 12], [20, 30, 40, 50, 60, 70, 80]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with token types, as transformers saves it, with a tokenizer of as many words."""
    path = tmp_path_factory.mktemp("model")
    tiny_model(layers=2).save_pretrained(path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(115))]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def expected(batch):
    """Stock logits, text by text, so without any padding."""
    model = tiny_model(layers=2)
    rows = []
    for ids in batch:
        types = getattr(ids, "types", None) or [0] * len(ids)
        with torch.no_grad():
            rows.append(model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0].numpy())
    return np.stack(rows)


def test_a_batch_is_padded_to_its_longest_text():
    text = Encoded([5, 6])
    text.types = [0, 1]
    found = BatchPadder(pad_id=3, has_types=True).pad([text, [7, 8, 9]])
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "input_ids": [[5, 6, 3], [7, 8, 9]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "token_type_ids": [[0, 1, 0], [0, 0, 0]],
    }
    assert BatchPadder(0, False).pad([[1]], width=4)["input_ids"].tolist() == [[1, 0, 0, 0]]


def installed(package):
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize(
    "name",
    [
        "hf sdpa fp32",
        "onnxruntime fp32",
        *(
            pytest.param(
                f"{package} fp32",
                marks=pytest.mark.skipif(not installed(package), reason=f"pip install 'prunekit[{extra}]'"),
            )
            for package, extra in (("openvino", "export"), ("ctranslate2", "peers"))
        ),
    ],
)
def test_every_peer_computes_the_same_model(name, folder, scratch):
    (peer,) = choose_peers(name, ["fp32"])[0]
    engine = peer.build(folder, 1, scratch)
    pair = Encoded([7, 8, 9, 10, 11])
    pair.types = [0, 0, 0, 1, 1]
    for batch in (BATCH, [pair, [5, 6]]):
        np.testing.assert_allclose(np.asarray(engine.logits(batch)), expected(batch), atol=1e-4)


def test_who_is_padded_as_papers_pad_computes_the_same(folder):
    np.testing.assert_allclose(build_padded_eager(folder, 1, 32).logits(BATCH), expected(BATCH), atol=1e-4)


@pytest.mark.parametrize("name", ["hf sdpa bf16", "onnxruntime int8"])
def test_other_precisions_are_near(name, folder, scratch):
    (peer,) = choose_peers(name, ["bf16", "int8"])[0]
    found = np.asarray(torch.as_tensor(peer.build(folder, 1, scratch).logits(BATCH)).float())
    assert 0 < np.abs(found - expected(BATCH)).max() < 0.5


def test_a_package_that_is_missing_makes_a_peer_absent_with_the_reason(folder, scratch, monkeypatch):
    def need(package, what):
        raise MissingPackageError(f"{what} needs {package}.\nAllowed: it.\npip install 'prunekit[peers]'")

    monkeypatch.setattr(peers, "need", need)
    for name in ("openvino fp32", "ctranslate2 int8", "onnxruntime fp32"):
        (peer,) = choose_peers(name, ["fp32", "int8"])[0]
        with pytest.raises(PeerUnavailableError, match=r"not installed: pip install 'prunekit\[peers\]'"):
            peer.build(folder, 1, scratch)


def test_peers_that_are_not_asked_for_are_listed_with_the_reason():
    taken, left = choose_peers("hf,onnx", ["fp32"])
    assert [peer.name for peer in taken] == ["hf sdpa fp32", "onnxruntime fp32"]
    assert left["openvino fp32"] == "not asked for (peers=hf,onnx)"
    assert left["hf sdpa bf16"] == "not asked for (dtypes=fp32)"
    assert len(taken) + len(left) == len(peers.PEERS)
    assert choose_peers("none", ["fp32"])[0] == []
    assert {peer.dtype for peer in choose_peers("all", ["int8"])[0]} == {"int8"}


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="peers=tensorrt: no peer is called tensorrt"):
        choose_peers("tensorrt", ["fp32"])
