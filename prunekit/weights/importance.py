"""How much each weight matters: the error when it is removed from its layer, and what the loss says about it.

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

LOG = logging.getLogger(__name__)
ATTEMPTS = 4  # of a factorisation, each with ten times the damping of the last
Metric = Literal["obs_chol", "obs", "wanda2"]
Sum = Literal["magnitude", "fisher", "signed"]
Score = Literal["dual_mul", "dual_add", "dual_virtual", "taylor2_signed", "general_only", "domain_only"]


# -- general importance ------------------------------------------------------------------------------


@dataclass(frozen=True)
class InverseFactor:
    """U, upper triangular, with inverse Hessian = U^T U; `dead` are inputs that are always 0.

    `damping` is the share of the mean diagonal that was added; `diagonal` says that only the Hessian's diagonal was
    used, because no damping made it positive definite.
    """

    upper: Float[Tensor, "inputs inputs"]
    dead: Float[Tensor, "inputs"]
    damping: float
    diagonal: bool = False


def inverse_factor(
    hessian: Float[Tensor, "inputs inputs"], damping: float = 0.01, name: str = "a layer"
) -> InverseFactor:
    """The Cholesky factor of the damped inverse; a Hessian that is not positive definite is damped more, up to 3 times.

    Where that does not help the diagonal alone is used, and a warning says so.
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
    return None if int(failed) or not finite(upper) else upper


def finite(tensor: Float[Tensor, "_ _"]) -> bool:
    """Whether all of it are numbers; torch.isfinite would take twice its memory."""
    plain = tensor if tensor.is_contiguous() else tensor.mT  # factors lie column by column; copied they would count too
    return bool(torch.isfinite(torch.stack(plain.aminmax())).all())


def general_importance(
    weight: Float[Tensor, "outputs inputs"],
    hessian: Float[Tensor, "inputs inputs"],
    metric: Metric = "obs_chol",
    damping: float = 0.01,
    name: str = "a layer",
) -> Float[Tensor, "outputs inputs"]:
    """The layer's squared error when one weight is removed; 0 where the input is always 0.

    obs_chol: w^2 / U_jj^2, with the remaining columns right of it re-fitted (SparseGPT's; the factor 1/2 is dropped).
    obs: w^2 / (2 [H^-1]_jj), independent of the order of columns. wanda2: w^2 H_jj / 2, nothing re-fitted, no inverse.
    """
    if metric == "wanda2":
        return weight.float().square() * hessian.diagonal() / 2
    factor = inverse_factor(hessian, damping, name)
    squared = weight.float().square()
    if metric == "obs":
        found = squared / (2 * factor.upper.square().sum(0))
    else:
        found = squared / factor.upper.diagonal().square()
    return found * (1 - factor.dead)


def normalised(values: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Divided by their mean, so that a weight of the matrix counts 1 on average; zeros stay."""
    mean = values.mean()
    return values / mean if float(mean) > 0 else torch.zeros_like(values)


# -- domain importance -------------------------------------------------------------------------------


class GradientSums:
    """What per-sample gradients of one matrix add up to: those sums that are asked for, each as large as the matrix.

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
        """Begins at 0, or goes on from the `state` after so many samples."""
        self.weight = weight.detach()
        self.state: dict[str, Tensor] = {
            name: earlier[name].to(weight.device)
            if earlier is not None and name in earlier
            else torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for name in sums
        }
        self.samples = samples

    def add(self, gradient: Float[Tensor, "outputs inputs"]) -> None:
        """Adds one sample's gradient; a batch's mean gradient would underestimate every square."""
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
        """Sums over the processes of a distributed run; nothing where there is none."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.tensor(float(self.samples), device=self.weight.device)
            for tensor in (*self.state.values(), count):
                torch.distributed.all_reduce(tensor)
            self.samples = int(count)


def loss_change(
    weight: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The loss when a weight is set to 0, minus the loss now, to second order: -g w + H w^2 / 2.

    The first term is negative: the step from w to 0 is -w. Some re-implementations write a plus.
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
    """The importance that decides who stays: higher = stays. `general` is normalised, the others are sums over samples.

    dual_mul: A/N (1 + lambda G), A the sum of |g w|. dual_add: F w^2 / mean + lambda G. dual_virtual:
    A (1 + lambda G F/mean F), the paper's regularised gradient after normalisation. taylor2_signed:
    |M w - F w^2 / 2|, the paper's letter: on a converged model M is noise, so it is here for comparison only.

    Raises:
        ValueError: a sum that the score needs was not collected.
    """
    if score == "general_only":
        return _needed(general, "general importance", score)
    if score in ("dual_add", "taylor2_signed"):
        squares = _needed(fisher, "squared gradients", score) * weight.float().square()
        if score == "taylor2_signed":
            return (_needed(signed, "summed gradients", score) * weight.float() - squares / 2).abs()
        return normalised(squares) + lambda_ * _needed(general, "general importance", score)
    domain = _needed(magnitude, "gradients", score) / samples
    if score == "domain_only":
        return domain
    if score == "dual_virtual":
        curvature = normalised(_needed(fisher, "squared gradients", score))
        return domain * (1 + lambda_ * _needed(general, "general importance", score) * curvature)
    return domain * (1 + lambda_ * _needed(general, "general importance", score))


def _needed(values: Tensor | None, what: str, score: str) -> Tensor:
    if values is None:
        raise ValueError(
            f"score={score} needs {what}, which were not collected; collect them, or choose another score."
        )
    return values.float()


# -- the regulariser of the paper --------------------------------------------------------------------


def regulariser(
    general: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], lambda_: float, step: float
) -> Float[Tensor, ""]:
    """lambda * sum of G (w' - w)^2 after one step w' = w - step * g."""
    return lambda_ * step**2 * (general * gradient.square()).sum()


def virtual_factor(
    general: Float[Tensor, "*shape"], fisher: Float[Tensor, "*shape"], lambda_: float, step: float
) -> Float[Tensor, "*shape"]:
    """What that regulariser multiplies the gradient by: 1 + 2 lambda step^2 G F. Near 1 unless G and F are scaled."""
    return 1 + 2 * lambda_ * step**2 * general * fisher


# -- baselines ---------------------------------------------------------------------------------------


def magnitude_score(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """|w|."""
    return weight.float().abs()


def wanda_score(
    weight: Float[Tensor, "outputs inputs"], norms: Float[Tensor, "inputs"]
) -> Float[Tensor, "outputs inputs"]:
    """|w| times the norm of its input; to be compared within a row."""
    return weight.float().abs() * norms


def gblm_score(
    weight: Float[Tensor, "outputs inputs"],
    norms: Float[Tensor, "inputs"],
    fisher: Float[Tensor, "outputs inputs"],
    samples: int,
    scale: float = 100.0,
) -> Float[Tensor, "outputs inputs"]:
    """|w| (input norm + scale * root mean square gradient); to be compared within a row."""
    return weight.float().abs() * (norms + scale * (fisher / max(1, samples)).sqrt())
