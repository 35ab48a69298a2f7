"""Hard-concrete gates and rank bins: the parts of ToP's decision, as functions of tensors.

Source: Louizos et al., arXiv:1712.01312 (hard concrete); ToP, arXiv:2306.14393, with microsoft/Moonlit
ToP/models/l0_module.py:241-429 and modeling_bert.py:331-464 where the paper leaves details open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

LOGA_BOUND = math.log(100)


@dataclass(frozen=True)
class HardConcrete:
    """The stretched and clipped concrete distribution: temperature `beta`, stretched to (`gamma`, `zeta`)."""

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    eps: float = 1e-6


DEFAULT = HardConcrete()


def sample_gates(
    log_alpha: Float[Tensor, "*gates"], form: HardConcrete = DEFAULT, generator: torch.Generator | None = None
) -> Float[Tensor, "*gates"]:
    """Draw one value in [0, 1] per gate; differentiable where it is strictly between 0 and 1."""
    uniform = torch.empty_like(log_alpha).uniform_(form.eps, 1 - form.eps, generator=generator)
    return gates_at(uniform, log_alpha, form)


def gates_at(
    uniform: Float[Tensor, "*gates"], log_alpha: Float[Tensor, "*gates"], form: HardConcrete = DEFAULT
) -> Float[Tensor, "*gates"]:
    """Return the gate value for a uniform number in (0, 1); increases with the number and with `log_alpha`."""
    concrete = torch.sigmoid((uniform.log() - (1 - uniform).log() + log_alpha) / form.beta)
    return (concrete * (form.zeta - form.gamma) + form.gamma).clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "*gates"], form: HardConcrete = DEFAULT) -> Float[Tensor, "*gates"]:
    """Return P(gate > 0), which is sigmoid(log_alpha + 1.598597) for the default form."""
    zero_below = form.beta * math.log(-form.gamma / form.zeta)
    return 1 - torch.sigmoid(zero_below - log_alpha).clamp(form.eps, 1 - form.eps)


def deterministic_fine(
    log_alpha: Float[Tensor, "locations bins"], form: HardConcrete = DEFAULT
) -> Float[Tensor, "locations bins"]:
    """Return the binary gates of each location: the expected number of zeros, at the smallest log odds.

    The expected number is rounded half to even. Among equal log odds the lower bin stays open.
    """
    bins = log_alpha.shape[-1]
    zeros = (bins - open_probability(log_alpha, form).sum(-1)).round()
    # descending and stable: among equals the lower bin comes first and stays open
    order = log_alpha.sort(dim=-1, descending=True, stable=True).indices
    place = torch.empty_like(order).scatter(-1, order, torch.arange(bins, device=order.device).expand_as(order))
    return (place < (bins - zeros)[..., None]).to(log_alpha.dtype)


def deterministic_coarse(
    log_alpha: Float[Tensor, "locations"], form: HardConcrete = DEFAULT
) -> Float[Tensor, "locations"]:
    """Return the binary switch of each layer: 1 (the layer prunes) where P(gate = 0), rounded half to even, is 0."""
    return 1 - (1 - open_probability(log_alpha, form)).round()


def rank_bins(
    rank: Int[Tensor, "batch tokens"], count: Int[Tensor, "batch"], bins: int, *, compat: bool = False
) -> Int[Tensor, "batch tokens"]:
    """Return the bin of each rank among `count` ranked tokens, (rank * bins) // count, or `bins` for ranks beyond.

    `compat` computes in float32 with 1e-6 in the denominator, as the reference code does: below 32 tokens, exact
    multiples of the bin width then fall one bin lower.
    """
    total = count[:, None]
    if compat:
        relative = (rank.float() / (total.float() + 1e-6)).clamp(0, 1)
        return (relative * bins).long()
    return torch.where(rank < total, (rank * bins) // total.clamp(min=1), bins)


def keep_from_gates(
    fine: Float[Tensor, "batch tokens"], coarse: Float[Tensor, ""], alive: Shaped[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return each token's keep, from the gate of its bin and the layer's switch; 0 where the token is not alive.

    The switch is either on or off, and passes its gradient straight through.
    """
    switch = (coarse > 0).to(coarse.dtype) + (coarse - coarse.detach())
    return (1 - (1 - fine) * switch) * (alive > 0)
