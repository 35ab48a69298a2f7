"""Blocks on disk: one is in memory at a time, and results are bit for bit those of the whole model in memory."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_decoders import FAMILIES, texts, tiny_decoder
from support.weight_runs import run_small
from transformers import AutoModelForCausalLM

from prunekit.config.errors import ConfigError
from prunekit.evaluation.language_model import perplexity
from prunekit.weights.decoder import STORE, hold_block, mark_changed, parameter_count, prunable_matrices
from prunekit.weights.disk import Checkpoint, StoredTensors, exceeds_memory, load_streamed, merge_files
from prunekit.weights.gradients import stream_gradients
from prunekit.weights.grams import stream_grams


def saved(folder, family="llama", shards=False, **changes):
    tiny_decoder(family, **changes).save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
    return folder


def both(folder, **options):
    """The same model in memory, and with its blocks on disk."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return whole, load_streamed(folder, folder / "scratch")


@pytest.mark.parametrize("family", FAMILIES)
def test_any_call_computes_what_the_whole_model_computes(family, tmp_path):
    whole, streamed = both(saved(tmp_path, family, shards=family == "qwen2"))
    assert parameter_count(streamed) == parameter_count(whole)
    ids = texts()[2].ids[None]
    with torch.no_grad():
        assert streamed(ids).logits.equal(whole(ids).logits)
        assert streamed.generate(ids, max_new_tokens=3, do_sample=False).equal(
            whole.generate(ids, max_new_tokens=3, do_sample=False)
        )
    # a window is 8 of 20 tokens: several sequences go through each block
    assert perplexity(streamed, ids[0], 8, 3) == perplexity(whole, ids[0], 8, 3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_grams_and_gradients_are_equal_bit_for_bit(family, tmp_path):
    whole, streamed = both(saved(tmp_path, family))
    found = []
    for model in (whole, streamed):
        grams, gradients = {}, {}
        stream_grams(
            model,
            texts(),
            prunable_matrices(model),
            lambda n, own, to=grams: to.update({k: g.total for k, g in own.items()}),
        )
        stream_gradients(
            model,
            texts(),
            prunable_matrices(model),
            lambda name, g, to=gradients: to.setdefault(name, []).append(g),
            chunk=2,
        )
        found.append((grams, gradients))
    (grams, gradients), (others, other_gradients) = found
    assert all(grams[name].equal(others[name]) for name in grams)
    assert all(a.equal(b) for name in gradients for a, b in zip(gradients[name], other_gradients[name], strict=True))
    assert not list((tmp_path / "scratch").glob("hidden-*"))


def test_one_block_is_in_memory_at_a_time(tmp_path):
    model = load_streamed(saved(tmp_path), tmp_path / "scratch")
    layers, most = model.model.layers, []

    def there():
        return [number for number, block in enumerate(layers) if block.mlp.up_proj.weight.device.type != "meta"]

    for block in layers:
        block.mlp.register_forward_hook(lambda *_: most.append(there()))
    stream_gradients(model, texts(), prunable_matrices(model), lambda *_: most.append(there()))
    perplexity(model, texts()[2].ids, 8, 3)
    assert {len(found) for found in most} == {1}
    assert there() == []


def test_a_changed_block_is_kept_and_saved_as_a_shard_of_an_ordinary_folder(tmp_path):
    model = load_streamed(saved(tmp_path / "from", tie_word_embeddings=True), tmp_path / "scratch")
    with hold_block(model, 1):
        model.model.layers[1].mlp.up_proj.weight.data.zero_()
        mark_changed(model, 1)
    with hold_block(model, 2):
        model.model.layers[2].mlp.up_proj.weight.data.zero_()  # not marked as changed
    with hold_block(model, 1):
        assert not model.model.layers[1].mlp.up_proj.weight.any()
    (tmp_path / "to").mkdir()
    getattr(model, STORE).save(tmp_path / "to")
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("from", "to"))
    different = {name for name in before if not before[name].equal(after[name])}
    assert different == {"model.layers.1.mlp.up_proj.weight"}
    assert len(list((tmp_path / "to").glob("model-*-of-00004.safetensors"))) == 4


def test_files_are_merged_byte_by_byte(tmp_path):
    parts = {"a": torch.rand(3), "b": torch.arange(5)}, {"c": torch.ones(2, 2).bfloat16()}
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"{number}", {"format": "pt"})
    merge_files([tmp_path / "0", tmp_path / "1"], tmp_path / "all", {"what": "test"})
    with safe_open(tmp_path / "all", "pt") as file:
        assert file.metadata() == {"what": "test"}
    whole = parts[0] | parts[1]
    assert {name: t.tolist() for name, t in load_file(tmp_path / "all").items()} == {
        name: t.tolist() for name, t in whole.items()
    }
    assert all(StoredTensors(tmp_path / "all")[name].equal(tensor) for name, tensor in whole.items())


def test_a_model_exceeds_memory_above_half_of_the_free_memory():
    # 7 B in float32 are 28 GB
    assert exceeds_memory(7_000_000_000, 50 * 10**9)
    assert not exceeds_memory(7_000_000_000, 60 * 10**9)


def test_a_folder_that_cannot_be_read_tensor_by_tensor_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        Checkpoint(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no tensor model\.embed_tokens\.weight"):
        load_streamed(tmp_path, tmp_path / "scratch")


# -- whole runs ----------------------------------------------------------------------------------------

EQUAL = [
    ["method=dpruner"],
    ["method=dpruner", "method.score=dual_virtual", "method.alloc=rank", "method.chunk=2", "method.compact=true"],
    ["method=dpruner", "method.weight_update=obs", "backbone.family=gpt2"],
    ["method=sparsegpt", "method.alloc=owl", "method.scope=mlp"],
]


@pytest.mark.slow
@pytest.mark.parametrize("given", EQUAL)
def test_a_streamed_run_equals_the_run_in_memory_bit_for_bit(given, tmp_path):
    found = []
    for how in ("false", "true"):
        result, path = run_small(tmp_path / how, *given, f"method.stream={how}")
        assert result.streamed == (how == "true")
        found.append((result, path))
        assert not (path / "scratch").exists()
    (one, whole), (other, streamed) = found
    assert one.pruned == other.pruned
    assert one.dense == other.dense
    assert one.hash == other.hash
    assert one.sparsity == other.sparsity
    files = ["masks.safetensors", *(["compact.safetensors"] if "method.compact=true" in given else [])]
    for file in files:
        first, second = load_file(whole / "model" / file), load_file(streamed / "model" / file)
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)
    weights = [AutoModelForCausalLM.from_pretrained(path / "model").state_dict() for path in (whole, streamed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].view(torch.int32).equal(weights[1][name].view(torch.int32)) for name in weights[0])
    configs = [json.loads((path / "model" / "config.json").read_text()) for path in (whole, streamed)]
    assert configs[0] == configs[1]


def test_groups_over_all_matrices_are_refused_with_blocks_on_disk(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.group=global compares all weights at once"):
        run_small(tmp_path, "method=magnitude", "method.group=global", "method.stream=true")
