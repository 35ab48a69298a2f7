"""Dropout as torch defines it, with a mask that is drawn differently."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.tokens.dropout import Dropout, dropout, dropout_mask, replace_dropout


def test_the_share_of_kept_elements_and_their_scale_are_torchs() -> None:
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(1000, 1001), 0.1)
    # three standard deviations of a million draws are 0.0009
    assert (mask > 0).float().mean() == pytest.approx(0.9, abs=0.0009)
    assert dropout(torch.full((8, 5), 9.0), 0.1).unique().tolist() == pytest.approx([0.0, 10.0], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    out = dropout(torch.full((3, 7), 4.0, dtype=dtype), 0.5)
    assert out.dtype == dtype
    assert set(out.flatten().tolist()) == {0.0, 8.0}


def test_elements_of_a_mask_are_independent() -> None:
    """Four elements share one draw: neighbours must not be correlated, nor rows repeat."""
    torch.manual_seed(1)
    keep = dropout_mask(torch.empty(250_000, 4), 0.5)
    apart = torch.corrcoef(keep.T) - torch.eye(4)
    assert apart.abs().max() < 0.01
    later = torch.corrcoef(torch.stack([keep[:-1].flatten(), keep[1:].flatten()]))[0, 1]
    assert abs(later) < 0.01


def test_the_gradient_passes_where_the_value_does() -> None:
    x = torch.ones(64, 3, requires_grad=True)
    out = dropout(x, 0.25)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_p_0_keeps_and_p_1_drops_everything(p: float) -> None:
    assert dropout(torch.ones(7), p).tolist() == [1.0 - p] * 7


def test_nothing_is_dropped_outside_training() -> None:
    layer = Dropout(0.5).eval()
    assert layer(torch.ones(9)).tolist() == [1.0] * 9


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_p_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        dropout(torch.ones(3), p)


def test_the_same_seed_gives_the_same_mask() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(dropout(torch.ones(5, 13), 0.5, True))
    assert torch.equal(*draws)


def test_every_dropout_of_a_model_is_replaced_and_no_parameter_is_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3)), nn.Dropout(0.1)).eval()
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    replace_dropout(model)
    found = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert [(type(m), m.p, m.training) for m in found] == [(Dropout, 0.3, False), (Dropout, 0.1, False)]
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
