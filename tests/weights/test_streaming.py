import pytest
import torch
from support.tiny_decoders import FAMILIES, texts, tiny_decoder

from prunekit.weights.decoder import (
    all_matrices,
    decoder_blocks,
    parameter_count,
    prunable_matrices,
    set_weight,
    weight_of,
)
from prunekit.weights.gradients import next_token_loss, stream_gradients
from prunekit.weights.grams import CalibrationError, stream_grams
from prunekit.weights.streaming import Call, Sample, Streamer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_gives_the_logits_of_the_whole_model(family):
    model, sample = tiny_decoder(family), texts()[0]
    streamer = Streamer(model)
    with torch.no_grad():
        hidden, calls = streamer.enter(sample.inputs)
        for number in range(3):
            hidden = streamer.block(number, hidden, calls[number])
        assert streamer.logits(sample.inputs, hidden).equal(model(**sample.inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_gradients_are_those_of_autograd(family):
    model, samples = tiny_decoder(family), texts()
    blocks = prunable_matrices(model)
    found = {}
    losses = stream_gradients(model, samples, blocks, lambda name, g: found.setdefault(name, []).append(g), chunk=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    for place, sample in enumerate(samples):
        model.zero_grad()
        loss = next_token_loss(model(**sample.inputs, use_cache=False).logits, sample)
        loss.backward()
        assert losses[place] == float(loss.detach())
        for name, module in all_matrices(blocks).items():
            whole = module.weight.grad.T if family == "gpt2" else module.weight.grad
            assert (found[name][place] - whole).abs().max() == 0, name


def test_frozen_models_are_scored_and_stay_frozen():
    model = tiny_decoder().requires_grad_(False)
    seen = []
    stream_gradients(model, texts(), prunable_matrices(model), lambda name, gradient: seen.append(name))
    assert len(seen) == 3 * 3 * 7
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_cache_is_forced_off_wherever_it_is_passed():
    class Cache:
        def get_seq_length(self):
            return 0

    call = Call.without_cache((Cache(), None), {"past_key_values": Cache(), "use_cache": True, "position_ids": 1})
    assert call.args == (None, None)
    assert call.kwargs == {"past_key_values": None, "use_cache": False, "position_ids": 1}


def test_with_the_cache_left_on_the_gradients_would_be_wrong():
    model, sample = tiny_decoder(), texts()[0]
    streamer = Streamer(model)
    hidden, calls = streamer.enter(sample.inputs)
    once = streamer.block(0, hidden, calls[0])
    assert streamer.block(0, hidden, calls[0]).equal(once)
    from transformers import DynamicCache

    cache = DynamicCache()
    leaking = Call(calls[0].args, {**calls[0].kwargs, "past_key_values": cache, "attention_mask": None})
    streamer.block(0, hidden, leaking)
    again = streamer.block(0, hidden, leaking)
    assert (again - once).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_grams_are_those_of_the_whole_model(family):
    model, samples = tiny_decoder(family), texts()
    blocks = prunable_matrices(model)
    found = {}
    stream_grams(model, samples, blocks, lambda number, grams: found.update(grams) or False)
    inputs = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach())
        )
        for name, module in all_matrices(blocks).items()
    ]
    with torch.no_grad():
        for sample in samples:
            model(**sample.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    for name, rows in inputs.items():
        flat = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])
        torch.testing.assert_close(found[name].hessian, 2 / 3 * flat.T @ flat, atol=1e-5, rtol=1e-5)


def test_layers_that_read_the_same_tensor_share_a_gram():
    model = tiny_decoder()
    shared = []
    stream_grams(model, texts(), prunable_matrices(model), lambda number, grams: shared.append(grams) or False)
    ids = {name.rpartition(".")[2]: id(gram) for name, gram in shared[0].items()}
    assert ids["q_proj"] == ids["k_proj"] == ids["v_proj"]
    assert ids["gate_proj"] == ids["up_proj"]
    assert len(set(ids.values())) == 4


def test_later_blocks_see_the_output_of_a_changed_block():
    model, samples = tiny_decoder(), texts()
    blocks = prunable_matrices(model)
    dense, pruned = {}, {}

    def empty_the_first(number, grams):
        pruned.update(grams)
        if number == 0:
            for module in blocks[0].values():
                set_weight(module, torch.zeros_like(weight_of(module)))
        return number == 0

    stream_grams(model, samples, blocks, lambda number, grams: dense.update(grams) or False)
    stream_grams(model, samples, blocks, empty_the_first)
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    assert dense[first].total.equal(pruned[first].total)
    assert not torch.allclose(dense[second].total, pruned[second].total)


def test_chunks_and_the_order_of_samples_change_nothing():
    model, samples = tiny_decoder(), texts()

    def gradients(samples):
        sums = {}
        stream_gradients(
            model,
            samples,
            prunable_matrices(model),
            lambda name, g: sums.__setitem__(name, sums.get(name, 0) + g.abs()),
            chunk=2,
        )
        return sums

    one, other = gradients(samples), gradients(samples[::-1])
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-4)


def test_only_tokens_that_count_enter_the_loss():
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = 100.0  # sure of the last token
    ids = torch.tensor([0, 1, 2])
    assert float(next_token_loss(logits, Sample(ids, torch.tensor([0, 0, 1])))) == pytest.approx(0)
    assert float(next_token_loss(logits, Sample(ids))) == pytest.approx(torch.log(torch.tensor(4.0)).item() / 2)


# -- which weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "count"), [("llama", 21), ("qwen3", 21), ("gpt2", 12), ("opt", 18)])
def test_prunable_matrices_are_the_linear_layers_of_the_blocks(family, count):
    names = list(all_matrices(prunable_matrices(tiny_decoder(family))))
    assert len(names) == count
    assert not any("head" in name or "embed" in name or "norm" in name for name in names)


def test_a_scope_selects_some_of_them():
    assert len(all_matrices(prunable_matrices(tiny_decoder(), r"\.mlp\."))) == 9
    with pytest.raises(ValueError, match=r"method\.scope=nothing matches no linear layer"):
        prunable_matrices(tiny_decoder(), "nothing")


def test_conv1d_weights_are_returned_with_outputs_in_rows():
    module = all_matrices(prunable_matrices(tiny_decoder("gpt2")))["transformer.h.0.mlp.c_fc"]
    assert weight_of(module).shape == (64, 32)
    set_weight(module, torch.arange(64 * 32.0).reshape(64, 32))
    assert module.weight[1, 0] == 1


def test_a_tied_parameter_counts_once():
    tied, untied = (tiny_decoder(tie_word_embeddings=tie) for tie in (True, False))
    assert parameter_count(untied) - parameter_count(tied) == 64 * 32


def test_a_weight_that_two_layers_share_is_refused():
    model = tiny_decoder()
    one, two = (layer.mlp.up_proj for layer in decoder_blocks(model)[:2])
    two.weight = one.weight
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj shares its weight with .*layers\.1"):
        prunable_matrices(model)


def test_a_model_without_known_blocks_is_refused():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ValueError, match=r"family 'bert'.*\nAllowed: gpt2, llama"):
        decoder_blocks(BertForMaskedLM(config))


@pytest.mark.parametrize(
    ("samples", "words"),
    [([], "there are no calibration samples"), ([Sample(torch.tensor([3]))], "fewer than 2 tokens")],
)
def test_too_little_text_is_refused(samples, words):
    model = tiny_decoder()
    with pytest.raises(CalibrationError, match=words):
        stream_grams(model, samples, prunable_matrices(model), lambda number, grams: False)
    with pytest.raises(CalibrationError, match=words):
        stream_gradients(model, samples, prunable_matrices(model), lambda name, gradient: None)


def test_a_sample_without_counted_tokens_is_refused():
    with pytest.raises(CalibrationError, match="sample of 3 tokens has no token whose prediction counts"):
        next_token_loss(torch.zeros(1, 3, 4), Sample(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 0])))


def test_activations_that_are_not_finite_are_refused():
    model = tiny_decoder()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    sample = Sample(torch.tensor([5, 6, 7]))
    with pytest.raises(CalibrationError, match=r"enter model\.layers\.0\.self_attn\.q_proj are not finite"):
        stream_grams(model, [sample], prunable_matrices(model), lambda number, grams: False)
    with pytest.raises(CalibrationError, match="is not finite"):
        stream_gradients(model, [sample], prunable_matrices(model), lambda name, gradient: None)
