import logging

import pytest
import torch

from prunekit.weights.grams import Gram
from prunekit.weights.importance import (
    GradientSums,
    dual_score,
    gblm_score,
    general_importance,
    inverse_factor,
    loss_change,
    magnitude_score,
    normalise,
    regulariser,
    virtual_factor,
    wanda_score,
)

X = torch.tensor([[1.0, 2, 0, 1], [0, 1, 1, -1], [2, 0, 1, 1]])  # 3 inputs x 4 tokens, one sequence
W = torch.tensor([[0.5, -0.2, 0.1], [-0.3, 0.4, 0.05]])


def gram(*sequences):
    found = Gram(sequences[0].shape[-1])
    for sequence in sequences:
        found.add(sequence)
    return found


def test_the_hessian_of_one_sequence():
    assert gram(X.T).hessian.tolist() == [[12, 2, 6], [2, 6, 0], [6, 0, 12]]


def test_the_factor_holds_the_inverses_of_the_remaining_hessians():
    hessian = gram(X.T).hessian
    factor = inverse_factor(hessian)
    expected = [[0.343623, -0.112663, -0.170392], [0, 0.404888, 0], [0, 0, 0.287480]]
    torch.testing.assert_close(factor.upper, torch.tensor(expected), atol=1e-6, rtol=0)
    damped = hessian + 0.1 * torch.eye(3)
    inverse = torch.linalg.inv(damped)
    torch.testing.assert_close(inverse.diagonal(), torch.tensor([0.118077, 0.176627, 0.111678]), atol=1e-6, rtol=0)
    # not the diagonal of the inverse: only column 2 is re-fitted when column 1 is pruned
    rest = torch.stack([torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(3)])
    torch.testing.assert_close(factor.upper.diagonal().square(), rest, atol=1e-6, rtol=0)
    torch.testing.assert_close(rest, torch.tensor([0.118077, 0.163934, 0.082645]), atol=1e-6, rtol=0)


def test_general_importance_by_hand():
    found = general_importance(W, gram(X.T).hessian)
    expected = torch.tensor([[2.117264, 0.244, 0.121], [0.762215, 0.976, 0.03025]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_other_metrics_by_hand():
    hessian = gram(X.T).hessian
    inverse = torch.linalg.inv(hessian + 0.1 * torch.eye(3)).diagonal()
    torch.testing.assert_close(general_importance(W, hessian, "obs"), W**2 / (2 * inverse), atol=1e-5, rtol=0)
    torch.testing.assert_close(general_importance(W, hessian, "wanda2"), W**2 * torch.tensor([6.0, 3.0, 6.0]))


def test_wanda_by_hand():
    expected = torch.tensor([[1.224745, 0.346410, 0.244949], [0.734847, 0.692820, 0.122474]])
    torch.testing.assert_close(wanda_score(W, gram(X.T).norms), expected, atol=1e-6, rtol=0)


def test_norms_average_the_squares_over_sequences_of_any_length():
    norms = gram(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 1]])).norms
    torch.testing.assert_close(norms, torch.tensor([2.236068, 3.240370]), atol=1e-6, rtol=0)


def test_grams_of_two_processes_merge_into_that_of_one():
    one, other = torch.randn(5, 3), torch.randn(2, 3)
    torch.testing.assert_close(gram(one).merge(gram(other)).hessian, gram(one, other).hessian)


def test_removing_a_weight_changes_the_loss_by_minus_g_w_plus_half_h_w_squared():
    a, optimum, w = torch.tensor([[2, 0.5], [0.5, 1]]), torch.tensor([1.0, -1]), torch.tensor([0.8, -0.5])

    def loss(w):
        return (w - optimum) @ a @ (w - optimum) / 2

    gradient = a @ (w - optimum)
    torch.testing.assert_close(gradient, torch.tensor([-0.15, 0.4]))
    change = loss_change(w, gradient, a.diagonal())
    torch.testing.assert_close(change, torch.tensor([0.76, 0.325]))
    for place in range(2):
        without = w.clone()
        without[place] = 0
        torch.testing.assert_close(change[place], loss(without) - loss(w))


def logistic_gradients():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1]])
    y, w = torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.3, -0.4])
    return (torch.sigmoid(x @ w) - y)[:, None] * x, w


def test_per_sample_gradients_rank_weights_differently_from_their_signed_sum():
    gradients, w = logistic_gradients()
    sums = GradientSums(w[None], ("magnitude", "fisher", "signed"))
    for gradient in gradients:
        sums.add(gradient[None])
    n = sums.samples
    torch.testing.assert_close(sums.state["signed"] / n, torch.tensor([[0.127895, -0.213681]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sums.state["fisher"] / n, torch.tensor([[0.648622, 0.242775]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sums.state["magnitude"], torch.tensor([[0.723796, 0.662940]]), atol=1e-6, rtol=0)
    signed = dual_score(
        w[None], None, None, sums.state["fisher"], sums.state["signed"], samples=n, score="taylor2_signed"
    )
    torch.testing.assert_close(signed, torch.tensor([[0.036722, 0.264202]]), atol=1e-6, rtol=0)
    assert signed.argsort().tolist() != sums.state["magnitude"].argsort().tolist()
    # the square of the mean gradient is far below the mean of the squares
    assert ((sums.state["signed"] / n).square() < sums.state["fisher"] / n / 5).all()


def test_the_regulariser_of_the_paper_has_almost_no_effect_unless_its_factors_are_scaled():
    general, gradient, fisher = torch.tensor([4, 0.25]), torch.tensor([0.2, -0.1]), torch.tensor([0.06, 0.02])
    assert float(regulariser(general, gradient, 0.1, 0.03)) == pytest.approx(1.4625e-5)
    w = torch.zeros(2, requires_grad=True)
    moved = -0.03 * gradient
    (0.1 * (general * (w + moved).square()).sum()).backward()
    torch.testing.assert_close(w.grad, torch.tensor([-0.0048, 0.00015 * 1.0]), atol=1e-9, rtol=1e-4)
    torch.testing.assert_close(
        virtual_factor(general.double(), fisher.double(), 0.1, 0.03) - 1,
        torch.tensor([4.32e-5, 0.09e-5], dtype=torch.float64),
        atol=1e-9,
        rtol=0,
    )


A, G, F = torch.tensor([[1.0, 2, 3]]), torch.tensor([[2.0, 1, 0]]), torch.tensor([[1.0, 4, 1]])


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("dual_mul", [1.0, 1.5, 1.5]),  # A/2 (1 + G/2)
        ("domain_only", [0.5, 1.0, 1.5]),
        ("general_only", [2.0, 1.0, 0.0]),
        ("dual_virtual", [0.75, 2.0 * 0.75 + 0.0, 1.5]),  # F has mean 2
        ("dual_add", [1.5, 2.5, 0.5]),  # F w^2 / mean + G/2
        ("taylor2_signed", [0.5, 1.0, 2.5]),  # |M w - F w^2 / 2|
    ],
)
def test_scores_by_hand(score, expected):
    w, signed = torch.ones(1, 3), torch.tensor([[1.0, 1, -2]])
    fisher = F
    if score == "dual_virtual":
        expected[1] = 1.0 * (1 + 0.5 * 1 * 2)
    found = dual_score(w, G, A, fisher, signed, samples=2, score=score, lambda_=0.5)
    torch.testing.assert_close(found[0], torch.tensor(expected))


def test_lambda_0_leaves_the_domain_importance_alone():
    w = torch.ones(1, 3)
    dual = dual_score(w, G, A, samples=2, lambda_=0.0)
    assert dual.equal(dual_score(w, None, A, samples=2, score="domain_only"))


def test_a_score_without_its_sums_is_refused_with_what_it_needs():
    with pytest.raises(ValueError, match="score=dual_virtual needs squared gradients"):
        dual_score(torch.ones(1, 3), G, A, score="dual_virtual")


def test_baselines_by_hand():
    assert magnitude_score(torch.tensor([[-2.0, 1]])).tolist() == [[2, 1]]
    found = gblm_score(torch.tensor([[-2.0, 1]]), torch.tensor([3.0, 1]), torch.tensor([[8.0, 0]]), 2, scale=10.0)
    assert found.tolist() == [[46, 1]]  # 2 (3 + 10 * 2), 1 (1 + 0)


def test_a_general_importance_that_is_0_everywhere_stays_0():
    assert normalise(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
    assert normalise(torch.tensor([[1.0, 3]])).tolist() == [[0.5, 1.5]]


def test_an_input_that_is_always_0_makes_its_column_unimportant():
    hessian = gram(torch.tensor([[1.0, 0], [2, 0]])).hessian
    found = general_importance(torch.ones(1, 2), hessian)
    assert found[0, 1] == 0
    assert found[0, 0] > 0


def test_a_hessian_that_is_not_positive_definite_is_damped_more(caplog):
    hessian = torch.tensor([[1.0, 1.03], [1.03, 1.0]])
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(hessian, 0.01, "block 3")
    assert not factor.diagonal
    assert factor.damping == pytest.approx(0.1)
    assert "block 3: Hessian not positive definite; damping raised from 0.01 to 0.1" in caplog.text


def test_a_hopeless_hessian_falls_back_to_its_diagonal_with_a_warning(caplog):
    hessian = torch.tensor([[1.0, 90], [90, 1.0]])
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(hessian, 0.01, "block 3")
    assert factor.diagonal
    torch.testing.assert_close(factor.upper, torch.eye(2) * 1.01**-0.5)
    assert "its diagonal is used" in caplog.text
