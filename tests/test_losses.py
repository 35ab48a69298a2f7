"""Terms of the losses: the numbers of top.md T14 to T17, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from prunekit.data.kinds.labelled import CLASSIFICATION, REGRESSION
from prunekit.data.kinds.multilabel import MULTILABEL
from prunekit.data.kinds.tokens import TOKENS
from prunekit.losses import (
    arp2_loss,
    balanced_weights,
    decisions_per_row,
    distillation_loss,
    imitation_loss,
    lagrangian,
    linear_warmup,
    rank_distillation_loss,
    rank_weight,
    task_loss,
    translation_loss,
    vector_distance,
)

steady = settings(deadline=None, derandomize=True)


def tensor(*rows):
    return torch.tensor(rows)


# -- task and distillation ---------------------------------------------------------------------------------


def test_classes_are_learned_by_cross_entropy():
    # ln(1 + e^-2), and ln 2
    loss = task_loss(tensor([1.0, -1.0], [0.0, 0.0]), tensor(0, 1), CLASSIFICATION)
    assert float(loss) == pytest.approx((0.126928 + 0.693147) / 2, abs=1e-6)


def test_a_smoothed_label_is_spread_over_all_classes():
    """0.2 of the label of two classes: 0.9 of it stays, 0.1 goes to the other."""
    logits = torch.tensor([[0.0, math.log(3.0)]])  # probabilities 1/4, 3/4
    expected = -0.9 * math.log(0.25) - 0.1 * math.log(0.75)
    assert task_loss(logits, torch.tensor([0]), CLASSIFICATION, 0.2).item() == pytest.approx(expected)


def test_a_class_of_twice_the_weight_counts_twice():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    expected = (-2 * math.log(0.25) - math.log(0.75)) / 3
    given = task_loss(logits, torch.tensor([0, 1]), CLASSIFICATION, weights=(2.0, 1.0))
    assert given.item() == pytest.approx(expected)


def test_balanced_weights_make_all_classes_weigh_the_same():
    assert balanced_weights([6, 2, 0]) == (8 / 18, 8 / 6, 1.0)


def test_scores_are_learned_by_squared_error():
    assert float(task_loss(tensor([2.0], [4.0]), tensor(1.0, 1.0), REGRESSION)) == 5.0  # (1 + 9) / 2


def test_a_loss_of_words_is_the_mean_over_those_with_a_label():
    labels = torch.tensor([[-100, 1, -100], [-100, 0, 1]])
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 100.0]])  # ln 2, ln 2 and 0
    loss = task_loss(logits, labels, TOKENS)
    assert float(loss) == pytest.approx(2 / 3 * 0.693147, abs=1e-5)
    assert decisions_per_row(labels).tolist() == [1, 2]
    sure = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    assert float(imitation_loss(logits, sure, TOKENS)) == pytest.approx(0.693147 / 3, abs=1e-5)


def test_distillation_is_kl_at_a_temperature_times_its_square():
    """top.md T17."""
    loss = distillation_loss(tensor([1.0, -1.0], [0.0, 0.0]), tensor([2.0, -2.0], [1.0, -1.0]), 2.0)
    assert float(loss) == pytest.approx(0.356150, abs=1e-6)


def test_a_student_that_agrees_has_nothing_to_learn():
    logits = tensor([3.0, -1.0, 0.5])
    assert float(distillation_loss(logits, logits + 7, 2.0)) == pytest.approx(0, abs=1e-6)


def test_only_the_student_learns_from_distillation_and_towards_the_teacher():
    student = tensor([0.0, 0.0]).requires_grad_()
    distillation_loss(student, tensor([1.0, -1.0]), 2.0).backward()
    assert float(student.grad[0, 0]) < 0 < float(student.grad[0, 1])


def test_several_labels_are_learned_by_binary_cross_entropy_each():
    # ln(1 + e^-2), ln 2, ln(1 + e^-1) and ln(1 + e^3)
    loss = task_loss(tensor([2.0, 0.0], [-1.0, 3.0]), tensor([True, False], [False, False]), MULTILABEL)
    assert float(loss) == pytest.approx((0.126928 + 0.693147 + 0.313262 + 3.048587) / 4, abs=1e-6)


def test_several_labels_are_distilled_as_a_choice_of_two_each():
    student, teacher = tensor([0.0, 1.0], [2.0, -1.0]), tensor([1.0, 1.0], [-2.0, 0.0])
    loss = imitation_loss(student, teacher, MULTILABEL, 2.0)
    pairs = [torch.stack([logits.flatten(), torch.zeros(4)], 1) for logits in (student, teacher)]
    assert float(loss) == pytest.approx(float(distillation_loss(*pairs, 2.0)), abs=1e-6)
    # p = 0.622459, q = 0.5 at T = 2: 4 * (0.622459 ln 1.244919 + 0.377541 ln 0.755081)
    one = imitation_loss(tensor([0.0]), tensor([1.0]), MULTILABEL, 2.0)
    assert float(one) == pytest.approx(4 * (0.622459 * 0.219070 + 0.377541 * -0.280930), abs=1e-5)


def test_sure_labels_are_distilled_without_infinities():
    student = tensor([200.0, -200.0]).requires_grad_()
    loss = imitation_loss(student, tensor([-200.0, 200.0]), MULTILABEL)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(200, abs=1e-3)
    assert torch.isfinite(student.grad).all()


# -- ranks -------------------------------------------------------------------------------------------------


def test_arp2_has_the_values_of_the_loss_library():
    """top.md T16; both rows are also in pytorchltr's own tests."""
    assert arp2_loss(tensor([0.5, 2.0, 1.0]), tensor([2.0, 0.0, 1.0])).tolist() == pytest.approx([8.209173], abs=1e-5)
    assert arp2_loss(tensor([0.9, -1.2]), tensor([0.0, 1.0])).tolist() == pytest.approx([3.196319], abs=1e-6)


def test_arp2_sees_differences_of_relevance_only():
    scores, relevance = torch.randn(2, 6), tensor([0.0, 5, 2, 2, 1, 9], [1.0, 0, 3, 7, 7, 2])
    assert_close(arp2_loss(scores, relevance), arp2_loss(scores, relevance + 4))


def test_arp2_counts_only_pairs_of_valid_items():
    whole = arp2_loss(tensor([0.5, 2.0, 1.0]), tensor([2.0, 0.0, 1.0]))
    longer = arp2_loss(tensor([0.5, 2.0, 1.0, 9.0]), tensor([2.0, 0.0, 1.0, 5.0]), tensor([True, True, True, False]))
    assert_close(longer, whole)


@pytest.mark.parametrize(("topk", "expected"), [(5, 0.8), (10, 1.65), (20, 3.325)])
def test_equal_scores_cost_k_squared_minus_one_by_six_k(topk, expected):
    """top.md T16: the scale that the loss stays near, because scores are small."""
    ranks = torch.cat([tensor([-1]), torch.randperm(30)[None]], dim=1)
    loss = rank_distillation_loss(torch.ones(1, 31), ranks, topk)
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_the_teachers_order_costs_less_than_its_reverse():
    """top.md 3.2: scores .30 .25 .20 .10 .08 .05 .02 in the reference's unit, seven tokens and [CLS]."""
    scores = tensor([0.0, 0.30, 0.25, 0.20, 0.10, 0.08, 0.05, 0.02]) * 8
    agreeing = tensor([-1, 0, 1, 2, 3, 4, 5, 6])
    reversed_order = tensor([-1, 6, 5, 4, 3, 2, 1, 0])
    assert float(rank_distillation_loss(scores, agreeing, 20)) == pytest.approx(1.00986, abs=1e-5)
    assert float(rank_distillation_loss(scores, reversed_order, 20)) == pytest.approx(1.29016, abs=1e-5)


def short_beside_long(width=11):
    """Five ranked tokens beside ten; all scores are 0.2 once divided."""
    ranks = tensor([-1, *range(5), *[-1] * (width - 6)], [-1, *range(10), *[-1] * (width - 11)])
    return ranks, (ranks >= 0).float()


def test_a_short_sentence_counts_only_its_own_pairs():
    ranks, ranked = short_beside_long()
    received = 0.2 * ranked * tensor([6.0], [11.0])
    # 20 = sum of rank differences of five tokens, over K^2 = 100; the long sentence costs 1.65
    assert float(rank_distillation_loss(received, ranks, 10)) == pytest.approx((0.20 + 1.65) / 2, abs=1e-6)


def test_compat_pairs_a_short_sentence_with_its_padding():
    """top.md T16: .847199 for five tokens of score .2 and K = 10."""
    ranks, ranked = short_beside_long()
    received = 0.2 * ranked * 11  # the reference divides by the padded length
    received[:, 0] = 5.0  # what [CLS] and padding receive counts as 0
    loss = rank_distillation_loss(received, ranks, 10, compat=True)
    assert float(loss) == pytest.approx((0.847199 + 1.65) / 2, abs=1e-6)


def test_only_the_teachers_best_take_part():
    ranks = tensor([-1, 3, 0, 2, 1])
    received = torch.rand(1, 5).requires_grad_()
    rank_distillation_loss(received, ranks, 2).backward()
    assert (received.grad != 0).tolist() == [[False, False, True, False, True]]
    assert float(received.grad[0, 2]) < 0 < float(received.grad[0, 4])  # the best is raised, the second lowered


@steady
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 20), st.integers(2, 15), st.integers(0, 999)
)
def test_padding_never_changes_the_rank_loss(counts, extra, topk, seed):
    generator = torch.Generator().manual_seed(seed)
    width = max(counts) + 1
    ranks = torch.full((len(counts), width), -1)
    for row, count in enumerate(counts):
        ranks[row, 1 : count + 1] = torch.randperm(count, generator=generator)
    received = torch.rand(len(counts), width, generator=generator) * 3
    padded = torch.nn.functional.pad(received, (0, extra), value=7.0)
    loss = rank_distillation_loss(received, ranks, topk)
    assert_close(rank_distillation_loss(padded, torch.nn.functional.pad(ranks, (0, extra), value=-1), topk), loss)


@steady
@given(st.integers(2, 12), st.integers(0, 999))
def test_the_order_of_tokens_in_a_sentence_does_not_matter(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ranks, received = torch.randperm(count, generator=generator)[None], torch.rand(1, count, generator=generator)
    order = torch.randperm(count, generator=generator)
    assert_close(
        rank_distillation_loss(received[:, order], ranks[:, order], 5), rank_distillation_loss(received, ranks, 5)
    )


def test_a_batch_of_nothing_but_cls_costs_nothing():
    received = torch.ones(2, 1, requires_grad=True)
    loss = rank_distillation_loss(received, tensor([-1], [-1]), 20)
    loss.backward()
    assert float(loss.detach()) == 0


def test_extreme_scores_stay_finite():
    received = tensor([0.0, 1e4, -1e4]).requires_grad_()
    loss = rank_distillation_loss(received, tensor([-1, 1, 0]), 20)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(received.grad).all())


# -- constraint and schedules ------------------------------------------------------------------------------


@pytest.mark.parametrize(("sparsity", "expected"), [(0.2, -0.0621), (0.5, 0.0399), (0.43, 0.0)])
def test_lagrangian_is_signed_and_squared(sparsity, expected):
    """top.md T14: target .43, multipliers .5 and 1."""
    value = lagrangian(torch.tensor(sparsity), 0.43, torch.tensor(0.5), torch.tensor(1.0))
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_gradients_of_the_multipliers_are_the_distance_and_its_square():
    first, second = torch.tensor(0.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    lagrangian(torch.tensor(0.2), 0.43, first, second).backward()
    assert float(first.grad) == pytest.approx(-0.23)
    assert float(second.grad) == pytest.approx(0.0529)


def test_multipliers_climb():
    """top.md T14: AdamW at .02, maximising; distances 5e-4, -1e-3, -2e-3."""
    multiplier = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([{"params": [multiplier], "maximize": True}], lr=0.02, weight_decay=0.0)
    path = []
    for distance in (5e-4, -1e-3, -2e-3):
        optimizer.zero_grad()
        lagrangian(torch.tensor(distance), 0.0, multiplier, torch.zeros(())).backward()
        optimizer.step()
        path.append(float(multiplier.detach()))
    assert path == pytest.approx([0.02, 0.012678, -0.001236], abs=2e-6)


@pytest.mark.parametrize(("step", "target"), [(0, 0.0), (6700, 0.215), (13400, 0.43), (20000, 0.43)])
def test_the_target_rises_linearly(step, target):
    """top.md T15: 13,400 warm-up steps to .43."""
    assert linear_warmup(step, 13400, 0.43) == pytest.approx(target)


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.01), (6700, 0.005), (13265, 1.00746e-4), (13266, 1e-4), (13400, 1e-4), (99999, 1e-4)]
)
def test_the_weight_of_rank_distillation_falls_to_one_percent(step, weight):
    assert rank_weight(step, 13400, 0.01) == pytest.approx(weight, rel=1e-4)


def test_without_warm_up_the_full_target_holds_from_the_first_step():
    assert linear_warmup(0, 0, 0.43) == 0.43
    assert rank_weight(0, 0, 0.01) == pytest.approx(1e-4)


def test_label_smoothing_by_hand_and_padding_apart():
    """Two words of four: .9 of the target's cross-entropy, .1 of the mean over all; the third is padding."""
    logits = torch.tensor([[[2.0, 0, 0, 0], [0, 1.0, 0, 0], [9.0, 9, 9, 9]]])
    targets = torch.tensor([[0, 3, -100]])
    surprise = -torch.log_softmax(logits[0, :2], dim=-1)
    expected = 0.9 * (surprise[0, 0] + surprise[1, 3]) / 2 + 0.1 * surprise.mean()
    assert translation_loss(logits, targets).item() == pytest.approx(expected.item())


def test_vectors_are_learned_by_direction_and_by_length():
    dense = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert float(vector_distance(dense, dense)) == pytest.approx(0)
    # at right angles: 1 - 0, and |s - t|^2 / |t|^2 = (25 + 25) / 25 and (4 + 4) / 4
    assert float(vector_distance(torch.tensor([[-4.0, 3.0], [2.0, 0.0]]), dense)) == pytest.approx(3)
    # twice as long: the direction is right, and the difference as long as the vector
    assert float(vector_distance(2 * dense, dense)) == pytest.approx(1)
