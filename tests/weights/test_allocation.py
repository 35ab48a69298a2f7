import pytest
import torch

from prunekit.weights.allocation import (
    allocate_by_outliers,
    allocate_by_rank,
    outlier_share,
    prunable_sparsity,
    shift_to_total,
)

FOUR = {"a": 100, "b": 100, "c": 100, "d": 100}


def test_densities_rise_with_the_rank_of_sensitivity():
    found = allocate_by_rank({"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0}, FOUR, 0.5, 0.1)
    assert [1 - s for s in found.values()] == pytest.approx([0.4, 0.466667, 0.533333, 0.6], abs=1e-6)


def test_matrices_of_different_sizes_still_reach_the_total():
    sizes = {"a": 1000, "b": 100, "c": 100, "d": 100}
    found = allocate_by_rank({"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0}, sizes, 0.5, 0.1)
    assert sum(found[n] * sizes[n] for n in sizes) / 1300 == pytest.approx(0.5, abs=1e-9)
    assert found["a"] > found["b"] > found["c"] > found["d"]


def test_a_single_matrix_gets_the_sparsity_asked_for():
    assert allocate_by_rank({"a": 3.0}, FOUR, 0.5) == {"a": 0.5}


def test_blocks_with_outliers_lose_less():
    found = allocate_by_outliers({"a": 1, "b": 3, "c": 2}, FOUR, 0.5, 0.08)
    assert list(found.values()) == pytest.approx([0.58, 0.42, 0.50])
    assert allocate_by_outliers({"a": 1, "b": 1}, FOUR, 0.5) == {"a": 0.5, "b": 0.5}


def test_outliers_are_scores_far_above_the_mean_of_the_block():
    assert outlier_share([torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[1.0, 1, 1, 33]])], times=5) == 1 / 8


def test_shifted_sparsities_stay_between_0_and_1():
    assert shift_to_total({"a": 1.2, "b": 0.0}, {"a": 1, "b": 1}, 0.75) == pytest.approx({"a": 1.0, "b": 0.5})


def test_a_share_of_the_model_is_a_larger_share_of_its_prunable_weights():
    # 7B: 6476 M of 6738 M are prunable
    assert prunable_sparsity(0.5, "model", 6_476_005_376, 6_738_415_616) == pytest.approx(0.52026, abs=1e-5)
    assert prunable_sparsity(0.5, "prunable", 6, 10) == 0.5
    # 13B: 12,688 M of 13,016 M
    assert prunable_sparsity(0.5, "model", 12_687_769_600, 13_015_864_320) == pytest.approx(0.51293, abs=1e-5)
    assert prunable_sparsity(0.506892, "model", 12_687_769_600, 13_015_864_320) == pytest.approx(0.52, abs=1e-5)
    assert prunable_sparsity(0.49975, "model", 6_476_005_376, 6_738_415_616) == pytest.approx(0.52, abs=1e-4)


def test_more_than_is_prunable_is_refused():
    with pytest.raises(ValueError, match=r"would remove 1\.2 of its prunable weights") as refused:
        prunable_sparsity(0.6, "model", 50, 100)
    assert "up to 0.5 with method.sparsity_of=model" in str(refused.value)
