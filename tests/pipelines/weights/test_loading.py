"""Blocks are left on disk where they can be read one at a time and it is asked for or necessary."""

import pytest
import torch
from support.folders import edit_json, edit_tensors

from prunekit.config.composition import compose
from prunekit.config.errors import ConfigError
from prunekit.data.encoding import load_tokenizer
from prunekit.models.tiny import build_tiny_backbone
from prunekit.pipelines.weights import loading
from prunekit.pipelines.weights.loading import check_family, load_model, weights_digest
from prunekit.pipelines.weights.pipeline import build_method


def load(tmp_path, stream):
    folder = tmp_path / "tiny"
    if not folder.is_dir():
        build_tiny_backbone(folder, "llama")
    options = build_method(compose(["task=domain_legal", "method=magnitude", f"method.stream={stream}"])[0]).options
    return load_model(folder, options, torch.device("cpu"), tmp_path / "scratch")


@pytest.mark.parametrize(("stream", "free", "streamed"), [
    ("false", 1, False), ("true", 10**12, True), ("auto", 1, True), ("auto", 10**12, False),
])  # fmt: skip
def test_automatic_streaming_depends_on_the_free_memory(stream, free, streamed, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda device: free)
    loaded = load(tmp_path, stream)
    assert loaded.streamed is streamed
    assert loaded.identity == weights_digest(tmp_path / "tiny")


def test_a_checkpoint_that_cannot_be_streamed_is_loaded_whole_unless_streaming_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda device: 1)
    model = load(tmp_path, "false").model
    torch.save(model.state_dict(), tmp_path / "tiny" / "pytorch_model.bin")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    assert not load(tmp_path, "auto").streamed
    with pytest.raises(ValueError, match=r"has no model\.safetensors, so its blocks cannot be read one at a time"):
        load(tmp_path, "true")


def test_the_digest_of_shards_is_one_of_all(tmp_path):
    assert weights_digest(tmp_path) is None
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"a")
    one = weights_digest(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"b")
    both = weights_digest(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"c")
    assert len({one, both, weights_digest(tmp_path)}) == 3


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    build_tiny_backbone(tmp_path / "mute", "llama")
    for file in (tmp_path / "mute").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="mute has no tokenizer"):
        check_family(tmp_path / "mute", "mute")


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    build_tiny_backbone(tmp_path / "short", "opt")
    tokenizer = load_tokenizer(tmp_path / "short")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(ConfigError, match="short has a tokenizer with"):
        check_family(tmp_path / "short", "short")


@pytest.mark.parametrize(("said", "longest"), [(10**30, 514), (100, 100)])
def test_the_longest_text_is_the_smaller_of_tokenizer_and_model(tmp_path, said, longest):
    build_tiny_backbone(tmp_path / "tiny", "llama")
    edit_json(tmp_path / "tiny" / "tokenizer_config.json", model_max_length=said)
    assert load(tmp_path, "false").max_tokens == longest


def test_a_layer_that_is_missing_is_named(tmp_path):
    build_tiny_backbone(tmp_path / "tiny", "llama")
    edit_json(tmp_path / "tiny" / "config.json", num_hidden_layers=5)
    with pytest.raises(ConfigError, match=r"lacks 9 tensors: model\.layers\.4\."):
        load(tmp_path, "false")


@pytest.mark.parametrize("stream", ["false", "true"])
def test_weights_are_numbers_in_memory_and_on_disk(tmp_path, stream):
    name = "model.embed_tokens.weight"
    build_tiny_backbone(tmp_path / "tiny", "llama")
    edit_tensors(tmp_path / "tiny" / "model.safetensors", lambda found: found | {name: found[name] * float("nan")})
    with pytest.raises(ValueError, match=rf"holds NaN in {name}"):
        load(tmp_path, stream)
