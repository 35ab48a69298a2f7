"""Importance of each weight: the layer's error when it is removed, and its effect on the loss.

Sources: D-Pruner, arXiv:2405.06275 (built from the published idea; its formulas restated where they fit);
Optimal Brain Surgeon (Hassibi and Stork, 1993); SparseGPT, arXiv:2301.00774; Wanda, arXiv:2306.11695;
GBLM-Pruner, arXiv:2311.04902.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.weights.finite import is_finite

LOG = logging.getLogger(__name__)
ATTEMPTS = 4  # at a factorisation, each with ten times the damping of the one before
Metric = Literal["obs_chol", "obs", "wanda2"]
Sum = Literal["magnitude", "fisher", "signed"]
Score = Literal["dual_mul", "dual_add", "dual_virtual", "taylor2_signed", "general_only", "domain_only"]


# -- general importance ------------------------------------------------------------------------------


@dataclass(frozen=True)
class InverseFactor:
    """Upper triangular U with inverse Hessian = U^T U; `dead` is 1 for inputs that are always 0.

    `damping` is the share of the mean diagonal that was added. `diagonal` is True where only the Hessian's diagonal
    was used, because no damping made it positive definite.
    """

    upper: Float[Tensor, "inputs inputs"]
    dead: Float[Tensor, "inputs"]
    damping: float
    diagonal: bool = False


def inverse_factor(
    hessian: Float[Tensor, "inputs inputs"], damping: float = 0.01, name: str = "a layer"
) -> InverseFactor:
    """Return the Cholesky factor of the damped inverse Hessian.

    A Hessian that is not positive definite is damped ten times more, up to 3 times; if that fails, only its diagonal
    is used. Both log a warning.
    """
    dead = hessian.diagonal() == 0
    mean = hessian.diagonal().mean()
    scale = float(mean) if float(mean) > 0 else 1.0
    added = damping
    for _ in range(ATTEMPTS):
        upper = _upper(hessian, dead, added * scale)
        if upper is not None:
            if added > damping:
                LOG.warning("%s: Hessian not positive definite; damping raised from %g to %g", name, damping, added)
            return InverseFactor(upper, dead.to(hessian), added)
        added *= 10
    LOG.warning("%s: Hessian not positive definite with damping up to %g; its diagonal is used", name, added / 10)
    diagonal = (hessian.diagonal() + dead.to(hessian)).clamp(min=0) + damping * scale
    return InverseFactor(torch.diag(diagonal.rsqrt()), dead.to(hessian), damping, diagonal=True)


def _upper(hessian: Tensor, dead: Tensor, damping: float) -> Tensor | None:
    damped = hessian.clone()
    damped.diagonal().add_(dead.to(hessian)).add_(damping)
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped  # of a wide layer these are the largest matrices there are
    if int(failed):
        return None
    inverse = torch.cholesky_inverse(lower)
    del lower
    both = (inverse + inverse.T).div_(2)
    del inverse
    upper, failed = torch.linalg.cholesky_ex(both, upper=True)
    del both
    return None if int(failed) or not is_finite(upper) else upper


def general_importance(
    weight: Float[Tensor, "outputs inputs"],
    hessian: Float[Tensor, "inputs inputs"],
    metric: Metric = "obs_chol",
    damping: float = 0.01,
    name: str = "a layer",
) -> Float[Tensor, "outputs inputs"]:
    """Return the layer's squared error when one weight is removed; 0 where the input is always 0.

    obs_chol: w^2 / U_jj^2, with the columns to its right re-fitted (as in SparseGPT; the factor 1/2 is omitted).
    obs: w^2 / (2 [H^-1]_jj), independent of the order of columns. wanda2: w^2 H_jj / 2, without re-fitting or inverse.
    """
    if metric == "wanda2":
        return weight.float().square() * hessian.diagonal() / 2
    factor = inverse_factor(hessian, damping, name)
    squared = weight.float().square()
    if metric == "obs":
        error = squared / (2 * factor.upper.square().sum(0))
    else:
        error = squared / factor.upper.diagonal().square()
    return error * (1 - factor.dead)


def normalise(values: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Divide values by their mean, so that the matrix has mean 1; return zeros if the mean is not positive."""
    mean = values.mean()
    return values / mean if float(mean) > 0 else torch.zeros_like(values)


# -- domain importance -------------------------------------------------------------------------------


class GradientSums:
    """Sums over the per-sample gradients of one matrix: those in `sums`, each as large as the matrix.

    magnitude: sum of |g w|; fisher: sum of g^2; signed: sum of g. The sum of g^2 w^2 is fisher times w^2.
    """

    def __init__(
        self,
        weight: Float[Tensor, "outputs inputs"],
        sums: Sequence[Sum] = ("magnitude",),
        *,
        earlier: Mapping[str, Tensor] | None = None,
        samples: int = 0,
    ) -> None:
        """Start at 0, or continue from the `earlier` state of a GradientSums that had seen `samples` samples."""
        self.weight = weight.detach()
        self.state: dict[str, Tensor] = {
            name: earlier[name].to(weight.device)
            if earlier is not None and name in earlier
            else torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for name in sums
        }
        self.samples = samples

    def add(self, gradient: Float[Tensor, "outputs inputs"]) -> None:
        """Add one sample's gradient, in place; a batch's mean gradient would underestimate every square."""
        gradient = gradient.float()
        for name, total in self.state.items():
            if name == "magnitude":
                total += (gradient * self.weight).abs_()
            elif name == "fisher":
                total.addcmul_(gradient, gradient)
            else:
                total += gradient
        self.samples += 1

    def all_reduce(self) -> None:
        """Sum over the processes of a distributed run, in place; a no-op outside one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.tensor(float(self.samples), device=self.weight.device)
            for tensor in (*self.state.values(), count):
                torch.distributed.all_reduce(tensor)
            self.samples = int(count)


def loss_change(
    weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the change of the loss when a weight is set to 0, to second order: -g w + H w^2 / 2.

    The first term has a minus because the step from w to 0 is -w. Some re-implementations have a plus.
    """
    return -gradient * weight + second * weight.square() / 2


def dual_score(
    weight: Float[Tensor, "outputs inputs"],
    general: Float[Tensor, "outputs inputs"] | None,
    magnitude: Float[Tensor, "outputs inputs"] | None,
    fisher: Float[Tensor, "outputs inputs"] | None = None,
    signed: Float[Tensor, "outputs inputs"] | None = None,
    *,
    samples: int = 1,
    score: Score = "dual_mul",
    lambda_: float = 0.3,
) -> Float[Tensor, "outputs inputs"]:
    """Return the importance that decides which weights to keep: the highest are kept.

    `general` (G) is normalised; `magnitude` (A), `fisher` (F) and `signed` (M) are sums over N samples.
    dual_mul: A/N (1 + lambda G). dual_add: F w^2 / mean(F w^2) + lambda G. dual_virtual: A/N (1 + lambda G F/mean F),
    the paper's regularised gradient after normalisation. taylor2_signed: |M w - F w^2 / 2|, literally as in the paper:
    on a converged model M is noise, so it is provided for comparison only.
    general_only: G. domain_only: A/N.

    Raises:
        ValueError: a sum that the score needs was not collected.
    """
    if score == "general_only":
        return _require(general, "general importance", score)
    if score in ("dual_add", "taylor2_signed"):
        squares = _require(fisher, "squared gradients", score) * weight.float().square()
        if score == "taylor2_signed":
            return (_require(signed, "summed gradients", score) * weight.float() - squares / 2).abs()
        return normalise(squares) + lambda_ * _require(general, "general importance", score)
    domain = _require(magnitude, "gradients", score) / samples
    if score == "domain_only":
        return domain
    if score == "dual_virtual":
        curvature = normalise(_require(fisher, "squared gradients", score))
        return domain * (1 + lambda_ * _require(general, "general importance", score) * curvature)
    return domain * (1 + lambda_ * _require(general, "general importance", score))


def _require(values: Tensor | None, what: str, score: str) -> Tensor:
    if values is None:
        raise ValueError(f"score={score} needs {what}, but none was collected; collect it, or choose another score.")
    return values.float()


# -- the regulariser of the paper --------------------------------------------------------------------


def regulariser(
    general: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], lambda_: float, step: float
) -> Float[Tensor, ""]:
    """Return lambda * sum of G (w' - w)^2 after one step w' = w - step * g."""
    return lambda_ * step**2 * (general * gradient.square()).sum()


def virtual_factor(
    general: Float[Tensor, "*shape"], fisher: Float[Tensor, "*shape"], lambda_: float, step: float
) -> Float[Tensor, "*shape"]:
    """Return the regulariser's factor on the gradient, 1 + 2 lambda step^2 G F; near 1 unless G and F are scaled."""
    return 1 + 2 * lambda_ * step**2 * general * fisher


# -- baselines ---------------------------------------------------------------------------------------


def magnitude_score(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Return |w|."""
    return weight.float().abs()


def wanda_score(
    weight: Float[Tensor, "outputs inputs"], norms: Float[Tensor, "inputs"]
) -> Float[Tensor, "outputs inputs"]:
    """Return |w| times the norm of its input; comparable within a row only."""
    return weight.float().abs() * norms


def gblm_score(
    weight: Float[Tensor, "outputs inputs"],
    norms: Float[Tensor, "inputs"],
    fisher: Float[Tensor, "outputs inputs"],
    samples: int,
    scale: float = 100.0,
) -> Float[Tensor, "outputs inputs"]:
    """Return |w| (input norm + scale * root mean square gradient); comparable within a row only."""
    return weight.float().abs() * (norms + scale * (fisher / max(1, samples)).sqrt())
