"""What a run stores about its test texts: who stayed how long, with which score, and what was predicted."""

import json

import numpy as np
import pytest
import torch
from support.models import sentences, tiny_model

from prunekit.evaluation.evaluate import kept_tokens
from prunekit.results import examples
from prunekit.tokens.encoder import install
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace


def pruned_model():
    return install(tiny_model(), TokenPruner(AttentionReceived(), KeepRatio({1: 0.6, 2: 0.4}), layers=[1, 2]), "pack")


def test_depth_counts_the_layers_that_a_token_passed_and_agrees_with_what_was_executed():
    model, batch = pruned_model(), sentences([8, 5])
    depth, _ = kept_tokens(model, batch)
    trace = Trace()
    with torch.no_grad():
        model(**batch, execution="pack", trace=trace)
    for layer in range(4):
        assert (depth > layer).sum(1).tolist() == trace.tokens_out[layer].tolist()
    assert depth[:, 0].tolist() == [4, 4]  # [CLS] stays
    assert depth[1, 5:].tolist() == [0, 0, 0]  # padding was never there


def test_scores_have_mean_one_over_those_who_are_there_and_are_0_for_the_others():
    model, batch = pruned_model(), sentences([8, 5])
    depth, scores = kept_tokens(model, batch)
    there = torch.stack([depth >= layer for layer in range(4)]) & (batch["attention_mask"] > 0)
    assert (scores[~there] == 0).all()
    for layer in range(4):
        for row in (0, 1):
            assert scores[layer, row][there[layer, row]].mean() == pytest.approx(1, abs=1e-4)


def test_scores_are_stored_within_5_percent():
    scores = np.array([0.001, 0.3, 1.0, 7.7, 100.0], np.float32)
    found = examples.decode_scores(examples.encode_scores(scores, np.ones(5, bool)))
    assert np.abs(found / scores - 1).max() < 0.045
    assert examples.decode_scores(examples.encode_scores(np.array([3.0]), np.array([False]))).tolist() == [0.0]


def test_as_many_first_texts_as_the_bound_on_tokens_allows(monkeypatch):
    monkeypatch.setattr(examples, "TOKENS", 20)
    assert examples.rows_within([8, 8, 4, 1], 1000) == 3
    assert examples.rows_within([8, 8, 4, 1], 2) == 2
    assert examples.rows_within([21], 1000) == 0


def test_a_file_that_is_no_archive_is_named(tmp_path):
    assert examples.load(tmp_path) is None
    (tmp_path / "examples.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(ValueError, match=r"examples\.npz cannot be read"):
        examples.load(tmp_path)


def test_a_file_of_another_version_is_named(tmp_path):
    about = json.dumps({"schema": 9, "classes": []})
    np.savez_compressed(tmp_path / "examples.npz", classes=np.array(about))
    with pytest.raises(ValueError, match=r"examples\.npz has schema 9, this prunekit reads 1"):
        examples.load(tmp_path)
