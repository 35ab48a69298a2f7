"""Tensors that hold numbers alone."""

from __future__ import annotations

import pytest
import torch

from prunekit.weights.finite import is_finite, not_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_no_number_is_found_and_named(dtype, value):
    whole, broken = torch.ones(3, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    broken[2, 1] = value
    assert (is_finite(whole), is_finite(broken), is_finite(broken.T)) == (True, False, False)
    what = "NaN" if value != value else "an infinity"
    assert not_finite([("a", whole), ("b", broken), ("c", broken)]) == f"{what} in b"
    assert not_finite([("a", whole)]) is None


def test_tensors_without_values_and_whole_numbers_are_finite():
    assert is_finite(torch.zeros(0))
    assert not_finite([("none", torch.zeros(0)), ("ids", torch.arange(3))]) is None
