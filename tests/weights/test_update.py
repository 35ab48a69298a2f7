import itertools

import pytest
import torch

from prunekit.weights.importance import inverse_factor
from prunekit.weights.masks import Groups, is_nm
from prunekit.weights.update import obs_sweep

HESSIAN = torch.tensor([[12.0, 2, 6], [2, 6, 0], [6, 0, 12]])
DAMPED = HESSIAN + 0.1 * torch.eye(3)
W = torch.tensor([[0.05, 0.3, -0.4], [0.6, 0.02, 0.3]])


def error(found):
    change = found - W
    return float((change @ DAMPED @ change.T).trace() / 2)


@pytest.mark.parametrize("block", [3, 128])
def test_a_sweep_by_hand(block):
    found = obs_sweep(W, inverse_factor(HESSIAN), sparsity=0.5, block=block)
    assert (~found.keep).int().tolist() == [[1, 1, 0], [0, 1, 0]]
    expected = torch.tensor([[0, 0, -0.375207], [0.6, 0, 0.3]])
    torch.testing.assert_close(found.weight, expected, atol=1e-6, rtol=0)
    assert found.error == pytest.approx(0.317126, abs=1e-5)
    assert found.error == pytest.approx(error(found.weight), abs=1e-5)  # the errors of its steps add up to the whole


def test_a_sweep_is_between_the_best_weights_and_the_mask_alone_in_this_example():
    found = obs_sweep(W, inverse_factor(HESSIAN), sparsity=0.5)
    best = torch.zeros_like(W)
    for row, keep in enumerate(found.keep):
        inside = DAMPED[keep][:, keep]
        best[row, keep] = torch.linalg.solve(inside, DAMPED[keep] @ W[row])
    assert error(best) == pytest.approx(0.317038, abs=1e-5)
    assert error(W * found.keep) == pytest.approx(0.320845, abs=1e-5)
    assert error(best) <= found.error <= error(W * found.keep)


def test_with_the_mask_given_the_block_size_changes_nothing():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 8), torch.randn(8, 40)
    factor = inverse_factor(2 * x @ x.T)
    keep = torch.rand(5, 8) > 0.5
    found = [obs_sweep(weight, factor, keep=keep, block=size).weight for size in (1, 2, 3, 8)]
    for one, other in itertools.pairwise(found):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert bool((found[0][~keep] == 0).all())


def test_sparsity_0_changes_nothing():
    found = obs_sweep(W, inverse_factor(HESSIAN), sparsity=0.0)
    assert found.weight.equal(W)
    assert found.error == 0


def test_the_repair_lowers_the_error_on_average():
    torch.manual_seed(0)
    repaired = left = 0.0
    for _ in range(20):
        x, weight = torch.randn(16, 30), torch.randn(4, 16)
        hessian = 2 * (x @ x.T + 20 * x[:, :1] @ x[:, :1].T)
        keep = torch.rand(4, 16) > 0.5
        swept = obs_sweep(weight, inverse_factor(hessian), keep=keep).weight

        def lost(found, weight=weight, hessian=hessian):
            return float(((found - weight) @ hessian @ (found - weight).T).trace())

        repaired, left = repaired + lost(swept), left + lost(weight * keep)
    assert repaired < 0.8 * left


def test_n_of_m_keeps_exactly_n_of_every_m():
    torch.manual_seed(0)
    x = torch.randn(16, 40)
    found = obs_sweep(torch.randn(3, 16), inverse_factor(2 * x @ x.T), groups=Groups("nm"), block=8)
    assert is_nm(found.keep)
    assert int(found.keep.sum()) == 24
    assert int((found.weight != 0).sum()) == 24


def test_the_weight_passed_in_is_not_changed():
    before = W.clone()
    obs_sweep(W, inverse_factor(HESSIAN), sparsity=0.5)
    assert before.equal(W)
