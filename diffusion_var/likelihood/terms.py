"""The terms of the variational bound (DESIGN §2.10), in nats per image:

    −log p(x_0) ≤ KL(q(x_N|x_0) ‖ p(x_N)) + Σ_{t→s} E KL(q(x_s|x_t,x_0) ‖ p(x_s|x_t)) + E[−log p(x_0|x_1)]

with q of eq. (1) for 0 < η ≤ 1 and p(x_s|x_t) = N(its mean at x̂_0, Σ) for any reverse covariance Σ of any structure
(DDPM, arXiv:2006.11239, eq. 5; for structures Analytic-DPM, arXiv:2201.06503, §2). An expectation over x_t ~ q(x_t|x_0)
is one draw of noise here. A term of a step t → s needs the network at t only: one evaluation serves every s < t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..covariance.step_covariances import StepCovariances
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from .decoder import Decoder


def prior_kl(x_0: torch.Tensor, alpha: float, sigma: float, prior_std: float) -> torch.Tensor:
    """KL(N(α x_0, σ² I) ‖ N(0, prior_std² I)) of each image (B, C, H, W), in nats, (B,) float64."""
    d = math.prod(x_0.shape[-3:])
    square = x_0.double().square().sum(dim=(-3, -2, -1))
    ratio = (sigma / prior_std) ** 2
    return 0.5 * (square * (alpha / prior_std) ** 2 + d * (ratio - 1.0 - math.log(ratio)))


def gaussian_kl(
    lambda2: float | torch.Tensor, log_det: torch.Tensor, inverse_trace: torch.Tensor, quadratic: torch.Tensor, d: int
) -> torch.Tensor:
    """KL(N(μ_q, λ² I) ‖ N(μ_p, Σ)) in nats from log det Σ, tr Σ⁻¹ and (μ_q − μ_p)ᵀ Σ⁻¹ (μ_q − μ_p); float64.

    λ² is a float, or one for each of theirs.
    """
    log_lambda2 = lambda2.log() if isinstance(lambda2, torch.Tensor) else math.log(lambda2)
    return 0.5 * (log_det - d * log_lambda2 - d + lambda2 * inverse_trace + quadratic)


@dataclass(frozen=True)
class Node:
    """An index t that the network is evaluated at, and the steps t → s whose terms follow, with their columns."""

    t: int
    steps: tuple[tuple[int, ReverseKernel], ...]


class BoundTerms:
    """Computes terms of the bound from x_0, ε and the posterior at x_t.

    Args:
        denoiser: the model.
        nodes: the indices to evaluate and the terms that are wanted of each.
        covariances: Σ of every step to s > 0.
        decoder: for steps to s = 0; None where there are none.
    """

    def __init__(
        self, denoiser: Denoiser, nodes: list[Node], covariances: StepCovariances, decoder: Decoder | None
    ) -> None:
        self.denoiser, self.nodes, self.covariances, self.decoder = denoiser, nodes, covariances, decoder

    def at(self, node: Node, x_0: torch.Tensor, eps: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        """(B, steps of the node) float64, on the CPU."""
        terms = [self._term(kernel, x_0, eps, posterior) for _, kernel in node.steps]
        return torch.stack(terms, dim=1).cpu()

    def _term(self, kernel: ReverseKernel, x_0: torch.Tensor, eps: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        if kernel.s == 0 and self.decoder is not None:
            return self.decoder.nats(x_0, posterior, kernel)
        covariance = self.covariances.at(posterior, kernel)
        if covariance is None or bool((covariance.variance <= 0).any()):  # NaN is found in the term
            raise InputError(
                f"the covariance {self.covariances.covariance.name} is zero somewhere in the step {kernel.t} to "
                f"{kernel.s}, so that the bound is infinite; choose one that is positive, such as Analytic."
            )
        quadratic = covariance.quadratic(kernel.mean_error(x_0, eps, posterior))
        d = math.prod(x_0.shape[-3:])
        return gaussian_kl(kernel.lambda2, covariance.log_det(), covariance.inverse_trace(), quadratic, d)


def refuse_point_mass(eta: float, given: float | None = None) -> None:
    """Refuse η = 0 (or, as `given`, an η whose λ² vanishes in float64), for which the bound is infinite."""
    if eta == 0:
        raise InputError(
            f"eta={abs(eta) if given is None else given:g} (DDIM) makes q(x_s|x_t,x_0) a point mass, so that the bound "
            "is infinite for every covariance; use eta=1 (DDPM), or 0 < eta < 1, for likelihoods."
        )
