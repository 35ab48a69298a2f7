"""Cost of a forward pass: constants of top.md (T11-T13, T19-T21, T23) and ltp.md (4.2, 10.8), and torch's counts."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import sentences, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit.cost import (
    BERT_BASE,
    CostMeter,
    Shape,
    bin_occupancy,
    dense_macs,
    encoder_macs,
    expected_counts,
    expected_keep,
    layer_macs,
    max_sparsity,
    nominal_counts,
    reference_macs_sparsity,
    sparsity,
)
from prunekit.tokens.encoder import install
from prunekit.tokens.gates import LOGA_BOUND, open_probability
from prunekit.tokens.policies import KeepRatio
from prunekit.tokens.pruner import TokenPruner
from prunekit.tokens.rank_gates import RankGate
from prunekit.tokens.scorers import AttentionReceived
from prunekit.tokens.state import Trace

steady = settings(deadline=None, derandomize=True)
EVERY = list(range(1, 11))  # prune locations 2..11: decisions of layers 1..10


def row(*values):
    return torch.tensor(values)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def nominal_sparsity(keep, length, layers, convention="top"):
    tokens_in, tokens_out = nominal_counts(doubles(keep), row(length), layers, 12)
    return float(sparsity(BERT_BASE, tokens_in, tokens_out, row(length), convention))


def macs_with_one_location(location, ratio, length=128):
    tokens_in, tokens_out = nominal_counts(doubles([ratio]), row(length), [location - 1], 12)
    return float(encoder_macs(BERT_BASE, tokens_in, tokens_out, "top") / dense_macs(BERT_BASE, row(length), "top"))


# -- the formula -------------------------------------------------------------------------------------------


def test_a_layer_small_enough_to_count_by_hand():
    # d=4, m=16: 4*16*3 + 2*4*9 + 2*4*16*2 = 192 + 72 + 256
    assert layer_macs(Shape(1, 4, 16, 2), row(3), row(2)).tolist() == [520]
    # softmax: 2 heads * 9
    assert layer_macs(Shape(1, 4, 16, 2), row(3), row(2), "top").tolist() == [538]


def test_ltp_tiny_example():
    """ltp.md 10.8: D=4, two layers, three tokens."""
    shape = Shape(layers=2, hidden=4, ffn=16, heads=1)
    assert 2 * dense_macs(shape, row(3)).tolist()[0] == 2592
    assert 2 * encoder_macs(shape, torch.tensor([[3], [2]]), torch.tensor([[2], [1]])).tolist()[0] == 1616


def test_a_last_layer_for_the_first_token_only_counted_by_hand():
    """d=4, m=16. All of the first layer: 192 + 72 + 256; of the last one keys and values of 2 tokens, 2*16*2, query and
    output of one, 2*16, attention of one over 2, 2*4*2, feed-forward of one, 2*4*16."""
    shape = Shape(layers=2, hidden=4, ffn=16, heads=1)
    macs = encoder_macs(shape, torch.tensor([[3], [2]]), torch.tensor([[2], [1]]), first_only=True)
    assert macs.tolist() == [520 + 64 + 32 + 16 + 128]


@pytest.mark.parametrize(
    ("length", "gflops"),
    [
        (1, 0.169906176),
        (26, 4.441522176),
        (54, 9.280438272),
        (128, 22.347251712),
        (384, 70.665633792),
        (512, 96.63676416),
    ],
)
def test_dense_bert_base_costs_what_ltp_reports(length, gflops):
    assert 2e-9 * float(dense_macs(BERT_BASE, row(length))) == pytest.approx(gflops, rel=1e-12)


def test_another_profiler_agrees_within_a_tenth_of_a_percent():
    """torchprofile on BERT-base at 384 tokens with a QA head: 35,340,779,904 MACs (ltp.md 4.2)."""
    assert float(dense_macs(BERT_BASE, row(384))) == 35_332_816_896
    assert float(dense_macs(BERT_BASE, row(384))) == pytest.approx(35_340_779_904, rel=1e-3)


@pytest.mark.parametrize(
    ("length", "macs"),
    [
        (11, 936_528_912),
        (16, 1_363_709_952),
        (25, 2_134_976_400),
        (32, 2_736_930_816),
        (64, 5_511_905_280),
        (128, 11_175_985_152),
        (256, 22_960_668_672),
        (384, 35_354_050_560),
        (512, 48_356_130_816),
    ],
)
def test_dense_bert_base_costs_what_top_reports(length, macs):
    assert dense_macs(BERT_BASE, row(length), "top").tolist() == [macs]


def test_one_layer_in_the_convention_of_top():
    assert layer_macs(BERT_BASE, row(128, 1), row(128, 1), "top").tolist() == [931_332_096, 7_079_436]
    assert layer_macs(BERT_BASE, row(1), row(1)).tolist() == [7_079_424]  # TR-BERT's table, without softmax


def test_conventions_differ_by_less_than_half_a_percent():
    for length in (1, 11, 64, 128, 512):
        house, top = (float(dense_macs(BERT_BASE, row(length), name)) for name in ("house", "top"))
        assert 1 < top / house < 1.005


def test_the_saving_depends_on_where_tokens_are_dropped():
    """top.md T11: half at the last location, half at the first, everything at the first."""
    assert macs_with_one_location(11, 0.5) == pytest.approx(0.931281, abs=1e-6)
    assert macs_with_one_location(2, 0.5) == pytest.approx(0.554105, abs=1e-6)
    assert macs_with_one_location(2, 0.0) == pytest.approx(0.119381, abs=1e-6)


def test_ltp_floor_when_all_but_cls_is_dropped():
    """ltp.md 4.2, n=26: at layer 1, and at layer 0."""
    assert 1 - max_sparsity(BERT_BASE, row(26), 1) == pytest.approx(0.145426, abs=1e-6)
    assert 1 - max_sparsity(BERT_BASE, row(26), 0) == pytest.approx(0.065, abs=5e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_every_family_names_its_sizes(family):
    config = tiny_model(family, layers=3, hidden=16).config
    assert Shape.from_config(config) == Shape(layers=3, hidden=16, ffn=32, heads=4)


def test_the_old_size_names_of_distilbert_suffice():
    config = SimpleNamespace(n_layers=6, dim=768, hidden_dim=3072, n_heads=12)
    assert Shape.from_config(config) == Shape(layers=6, hidden=768, ffn=3072, heads=12)


def test_a_config_without_sizes_is_refused_by_name():
    with pytest.raises(ValueError, match="SimpleNamespace has neither hidden_size nor dim"):
        Shape.from_config(SimpleNamespace(num_hidden_layers=2))


# -- against a profiler ------------------------------------------------------------------------------------


def counted_and_measured(family, lengths, pruner, execution):
    model = install(tiny_model(family, hidden=64), pruner)
    trace = Trace()
    # torch counts no FLOPs for its fused attention on CPU, so attention runs unfused here
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**sentences(lengths), execution=execution, trace=trace)
    encoder = f"{type(model).__name__}.{model.base_model_prefix}"
    found = counter.get_flop_counts()
    measured = sum(found.get(f"{encoder}.encoder", found.get(f"{encoder}.transformer", {})).values())
    macs = encoder_macs(Shape.from_config(model.config), trace.tokens_in, trace.tokens_out).sum()
    return 2 * float(macs), measured


def halving():
    return TokenPruner(AttentionReceived(), KeepRatio({1: 0.6, 2: 0.3}), [1, 2])


def test_flops_of_equal_sentences_are_exactly_what_torch_counts(family):
    for pruner in (None, halving()):
        counted, measured = counted_and_measured(family, [20, 20, 20], pruner, "pack")
        assert counted == measured


@pytest.mark.parametrize("lengths", [[20, 19, 19, 7, 6], [20, 13, 7, 1, 2], [40, 3, 3, 3], [1]])
def test_flops_of_packed_ragged_sentences_are_within_a_percent_of_what_torch_counts(lengths):
    for pruner in (None, halving()):
        counted, measured = counted_and_measured("bert", lengths, pruner, "pack")
        assert measured == pytest.approx(counted, rel=0.01)


def test_masking_saves_no_flops_in_the_profiler():
    counted, measured = counted_and_measured("bert", [20, 20, 20], halving(), "mask")
    assert measured > 1.4 * counted


# -- nominal: all bins with equal weight ------------------------------------------------------------------


def test_keep_ratios_multiply_over_layers_and_cls_always_counts():
    """top.md T12: 0.9 at every location, 128 tokens."""
    tokens_in, tokens_out = nominal_counts(doubles([0.9] * 10), row(128), EVERY, 12)
    lengths = [128, 128, 115.3, 103.87, 93.583, 84.325, 75.992, 68.493, 61.744, 55.669, 50.202, 45.282]
    assert tokens_in[:, 0].tolist() == pytest.approx(lengths, abs=1e-3)
    assert torch.equal(tokens_out[:-1], tokens_in[1:])
    assert torch.equal(tokens_out[-1], tokens_in[-1])


@pytest.mark.parametrize(("length", "expected"), [(11, 0.346727), (32, 0.370099), (128, 0.381875)])
def test_sparsity_of_nine_tenths_at_every_location(length, expected):
    assert nominal_sparsity([0.9] * 10, length, EVERY) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("length", "expected"), [(11, 4.4496e-4), (32, 4.7584e-4), (128, 4.9506e-4)])
def test_sparsity_of_freshly_initialised_gates(length, expected):
    """top.md T13: bins at +ln 100, switches at -ln 100."""
    fine = open_probability(torch.full((10, 50), LOGA_BOUND, dtype=torch.float64))
    coarse = open_probability(torch.full((10,), -LOGA_BOUND, dtype=torch.float64))
    keep = expected_keep(fine, coarse)
    assert keep.tolist() == pytest.approx([0.999905] * 10, abs=1e-6)
    assert nominal_sparsity(keep.tolist(), length, EVERY) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("keep", "length", "expected"),
    [
        ([1, 1, 1, 70 / 150, 0.64, 1, 1, 1, 1, 0.48], 152, 0.4550),
        ([1, 0.73, 0.71, 0.66, 0.57, 0.81, 0.77, 0.65, 0.69, 0.73], 64, 0.6079),
    ],
)
def test_sparsity_of_the_masks_in_the_reference(keep, length, expected):
    """top.md T20, from the kept share per location: only that enters the nominal count."""
    assert nominal_sparsity(keep, length, EVERY) == pytest.approx(expected, abs=5e-5)


def test_reductions_of_the_reference_mask_under_both_baselines():
    keep = doubles([1, 1, 1, 70 / 150, 0.64, 1, 1, 1, 1, 0.48])
    pruned = encoder_macs(BERT_BASE, *nominal_counts(keep, row(152), EVERY, 12), "top")
    assert float(dense_macs(BERT_BASE, row(152), "top") / pruned) == pytest.approx(1.835, abs=5e-4)
    assert float(dense_macs(BERT_BASE, row(384), "top") / pruned) == pytest.approx(4.863, abs=5e-4)


@pytest.mark.parametrize(
    ("first_location", "length", "expected"),
    [(2, 11, 0.8081), (2, 32, 0.8609), (2, 128, 0.8806), (3, 11, 0.7324), (3, 32, 0.7802), (3, 128, 0.7979)],
)
def test_no_decision_saves_more_than_dropping_all_but_cls_at_the_first_location(first_location, length, expected):
    """top.md T23."""
    assert max_sparsity(BERT_BASE, row(length), first_location - 1, "top") == pytest.approx(expected, abs=5.1e-5)


def test_the_maximum_sparsity_is_an_average_over_sentences():
    both = max_sparsity(BERT_BASE, row(11, 128), 1, "top")
    assert both == pytest.approx((0.808125 + 0.880619) / 2, abs=1e-6)


@pytest.mark.parametrize(("average", "expected"), [(11, 0.3842), (53, 0.3832)])
def test_the_number_that_the_reference_prints(average, expected):
    """top.md T21: lengths 11,11,10,9,8,7,6,6,5,5,4,4 for an average of 11."""
    assert reference_macs_sparsity([1.0, 1.0] + [0.9] * 10, average) == pytest.approx(expected, abs=5e-5)


def test_the_number_that_the_reference_prints_rounds_the_share_before_the_length():
    # shares .9, .81, .729 -> .73: lengths 91, 82, 74
    shape = Shape(layers=3, hidden=8, ffn=16, heads=2)
    left = layer_macs(shape, row(91, 82, 74), row(82, 74, 74), "top").sum() / dense_macs(shape, row(101), "top")
    assert reference_macs_sparsity([0.9, 0.9, 0.9], 101, shape) == pytest.approx(1 - float(left))


def test_the_number_that_the_reference_prints_rounds_the_product_and_not_each_step():
    # .85^6 = .37715 -> .38; rounded at each layer .85 .72 .61 .52 .44 it would be .44 * .85 -> .37
    shape = Shape(layers=6, hidden=8, ffn=16, heads=2)
    counts = row(86, 73, 62, 53, 45, 39)
    left = layer_macs(shape, counts, row(73, 62, 53, 45, 39, 39), "top").sum() / dense_macs(shape, row(101), "top")
    assert reference_macs_sparsity([0.85] * 6, 101, shape) == pytest.approx(1 - float(left))


# -- measured: bins as full as they are --------------------------------------------------------------------


def test_occupancy_counts_the_tokens_in_each_bin():
    assert bin_occupancy(doubles([8, 3, 0]), 4).tolist() == [[2, 2, 2, 2], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert bin_occupancy(doubles([2]), 4).tolist() == [[1, 0, 1, 0]]


def test_between_whole_counts_the_bins_interpolate():
    # 2 -> [1, 0, 1, 0], 3 -> [1, 1, 1, 0]
    assert bin_occupancy(doubles([2.25]), 4).tolist() == [[1, 0.25, 1, 0]]


@steady
@given(st.integers(0, 600), st.integers(1, 300))
def test_occupancy_follows_the_integer_rule(count, bins):
    ranks = torch.arange(count)
    expected = torch.bincount((ranks * bins) // max(1, count), minlength=bins).double()
    assert torch.equal(bin_occupancy(doubles([count]), bins)[0], expected)


@steady
@given(st.floats(0, 600), st.integers(1, 300))
def test_occupancy_adds_up_to_the_count(count, bins):
    held = bin_occupancy(doubles([count]), bins)
    assert float(held.sum()) == pytest.approx(count, abs=1e-6)
    assert float(held.min()) >= 0


def test_closing_a_bin_that_no_token_addresses_saves_nothing():
    """top.md 5.5: two ranked tokens address bins 0 and 2 of 4; the nominal count would be half."""
    fine, coarse = doubles([[1, 0, 1, 0]]), doubles([1])
    assert expected_counts(fine, coarse, row(3), [0], 1)[1].tolist() == [[3]]
    assert nominal_counts(expected_keep(fine, coarse), row(3), [0], 1)[1].tolist() == [[2]]


def test_a_switch_scales_what_its_bins_would_drop():
    # 4 ranked, half kept, half a chance that the layer prunes at all: 4 * (1 - 0.5 * 0.5) + [CLS]
    tokens_in, tokens_out = expected_counts(doubles([[1, 0]]), doubles([0.5]), row(5), [0], 2)
    assert tokens_in.tolist() == [[5], [4]]
    assert tokens_out.tolist() == [[4], [4]]


def test_measured_equals_nominal_when_bins_are_full_and_even():
    fine, coarse = torch.rand(2, 5, dtype=torch.float64), doubles([1, 1])
    measured = expected_counts(fine[:1], coarse[:1], row(21), [1], 3)
    nominal = nominal_counts(expected_keep(fine[:1], coarse[:1]), row(21), [1], 3)
    for found, expected in zip(measured, nominal, strict=True):
        torch.testing.assert_close(found, expected)


@steady
@given(
    st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_with_binary_gates_the_expectation_is_what_the_policy_executes(fine, coarse, lengths):
    policy = RankGate([1, 2, 4], 7)
    policy.hard_gates = lambda shift=None: (torch.tensor(fine).float(), torch.tensor(coarse).float())
    executed = policy.counts(torch.tensor(lengths), 6)
    expected = expected_counts(doubles(fine), doubles(coarse), torch.tensor(lengths), [1, 2, 4], 6)
    for one, other in zip(executed, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=0)


def test_the_constraint_moves_bins_and_switches_from_the_first_step():
    """top.md T22: the Lagrangian alone reaches gates that no draw opens."""
    for count in (expected_counts, lambda f, c, *rest: nominal_counts(expected_keep(f, c), *rest)):
        fine = torch.full((10, 20), LOGA_BOUND, requires_grad=True)
        coarse = torch.full((10,), -LOGA_BOUND, requires_grad=True)
        lengths = row(40, 90)
        tokens_in, tokens_out = count(open_probability(fine), open_probability(coarse), lengths, EVERY, 12)
        sparsity(BERT_BASE, tokens_in, tokens_out, lengths).backward()
        assert bool((fine.grad < 0).all())  # opening a bin keeps more
        assert bool((coarse.grad > 0).all())  # opening a switch prunes more


def test_a_bin_without_tokens_gets_no_gradient_from_the_measured_constraint():
    fine = torch.full((1, 4), 0.5, requires_grad=True)
    lengths = row(3)
    tokens_in, tokens_out = expected_counts(fine, torch.ones(1), lengths, [1], 12)
    sparsity(BERT_BASE, tokens_in, tokens_out, lengths).backward()
    assert (fine.grad != 0).tolist() == [[True, False, True, False]]


# -- the meter ---------------------------------------------------------------------------------------------


def padded_only(average, padded_to):
    return float(dense_macs(BERT_BASE, row(padded_to), "top") / dense_macs(BERT_BASE, row(average), "top"))


@pytest.mark.parametrize(
    ("task", "average", "padded_to", "target", "by_padding", "both"),
    [
        ("cola", 11, 64, 0.43, 5.885, 10.33),
        ("rte", 64, 256, 0.59, 4.166, 10.16),
        ("qqp", 30, 128, 0.65, 4.358, 12.45),
        ("mrpc", 53, 128, 0.67, 2.454, 7.44),
        ("sst2", 25, 64, 0.40, 2.582, 4.30),
        ("mnli", 39, 128, 0.50, 3.345, 6.69),
        ("qnli", 51, 128, 0.58, 2.552, 6.08),
        ("stsb", 31, 64, 0.70, 2.079, 6.93),
    ],
)
def test_most_of_the_published_reduction_is_padding(task, average, padded_to, target, by_padding, both):
    """top.md 5.3 and T19: lengths are the reference's constants, the sparsity is met exactly."""
    assert padded_only(average, padded_to) == pytest.approx(by_padding, abs=5e-4)
    assert padded_only(average, padded_to) / (1 - target) == pytest.approx(both, abs=5e-3)
    meter = CostMeter(BERT_BASE, padded_to)
    dense = dense_macs(BERT_BASE, row(average))
    meter.update(*dense_batch(average), extra_macs=-target * dense)  # the target, met exactly
    assert float(meter.compute()["flops_vs_unpadded"]) == pytest.approx(1 / (1 - target))
    assert float(meter.compute()["flops_vs_padded"]) == pytest.approx(both, rel=3e-3)  # ours leaves out softmax


def meter_of(*batches, padded_to=64):
    meter = CostMeter(BERT_BASE, padded_to)
    for tokens_in, tokens_out, lengths in batches:
        meter.update(tokens_in, tokens_out, lengths)
    return meter


def dense_batch(*lengths):
    counts = torch.tensor(lengths).float().expand(12, -1)
    return counts, counts, torch.tensor(lengths)


def test_a_model_with_half_of_the_layers_saves_the_others():
    counts = torch.tensor([10.0, 20.0]).expand(6, -1)
    spent = meter_of((counts, counts, torch.tensor([10, 20]))).compute()
    assert float(spent["flops_vs_unpadded"]) == 2
    assert spent["tokens_out_mean"].tolist() == [15.0] * 6 + [0.0] * 6


def test_a_dense_model_saves_only_padding():
    found = meter_of(dense_batch(26, 26), padded_to=54).compute()
    assert float(found["dense_unpadded_g"]) == pytest.approx(4.441522176)
    assert float(found["dense_padded_g"]) == pytest.approx(9.280438272)
    assert float(found["pruned_g"]) == pytest.approx(4.441522176)
    assert float(found["flops_vs_unpadded"]) == 1.0
    assert float(found["flops_vs_padded"]) == pytest.approx(9.280438272 / 4.441522176)
    assert found["tokens_out_mean"].tolist() == [26] * 12


def test_the_reduction_is_a_ratio_of_sums_and_the_mean_of_ratios_is_reported_too():
    # one sentence of 1 token untouched, one of 512 pruned to [CLS] after layer 0
    tokens_in = torch.tensor([[1.0, 512], *[[1, 1]] * 11])
    tokens_out = torch.ones(12, 2)
    found = meter_of((tokens_in, tokens_out, row(1, 512))).compute()
    left = encoder_macs(BERT_BASE, tokens_in, tokens_out)
    dense = dense_macs(BERT_BASE, row(1, 512))
    assert float(found["flops_vs_unpadded"]) == pytest.approx(float(dense.sum() / left.sum()))
    assert float(found["mean_of_ratios"]) == pytest.approx(float((left / dense).mean()))
    assert float(found["flops_vs_unpadded"]) > 20
    assert float(found["mean_of_ratios"]) > 0.5
    assert found["tokens_out_mean"].tolist() == [1] * 12


def test_a_sentence_longer_than_the_padded_length_keeps_the_constant_baseline():
    """top.md 5.4: texts are cut at 256 tokens there, the baseline is padded to 64."""
    found = meter_of(dense_batch(128), padded_to=64).compute()
    assert float(found["flops_vs_padded"]) == pytest.approx(5_511_905_280 / 11_175_985_152, rel=1e-3)
    assert float(found["flops_vs_padded"]) < 1


def test_a_scorers_work_is_added_to_the_cost():
    free, paid = CostMeter(BERT_BASE, 64), CostMeter(BERT_BASE, 64)
    free.update(*dense_batch(10, 20))
    paid.update(*dense_batch(10, 20), extra_macs=doubles([1e9, 3e9]))
    assert float(paid.compute()["pruned_g"] - free.compute()["pruned_g"]) == pytest.approx(4.0)  # 2 FLOPs * mean 2e9
    assert float(paid.compute()["dense_unpadded_g"]) == float(free.compute()["dense_unpadded_g"])
    assert float(paid.compute()["flops_vs_unpadded"]) < 1


@steady
@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(1, 5))
def test_batching_changes_no_number(lengths, size):
    keep = doubles([0.7] * 10)
    parts = [torch.tensor(lengths[i : i + size]) for i in range(0, len(lengths), size)]

    def pruned(part):
        return *(count.float() for count in nominal_counts(keep, part, EVERY, 12)), part

    whole, split = meter_of(pruned(torch.tensor(lengths))).compute(), meter_of(*map(pruned, parts)).compute()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-9, atol=0)


def test_sums_stay_exact_over_a_large_evaluation():
    meter = CostMeter(BERT_BASE, 128)
    for _ in range(1000):
        meter.update(*dense_batch(*[128] * 40))
    assert float(meter.compute()["dense_unpadded_g"]) == pytest.approx(22.347251712, rel=1e-12)


def test_costs_of_several_processes_add_up():
    first, second = meter_of(dense_batch(10)), meter_of(dense_batch(90, 30))
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), meter_of(dense_batch(10, 90, 30)).compute())
