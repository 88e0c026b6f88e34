"""The terms of the variational bound [E10], in nats per image:

    −log p(x_0) ≤ KL(q(x_N|x_0) ‖ p(x_N)) + Σ_{t→s} E KL(q(x_s|x_t,x_0) ‖ p(x_s|x_t)) + E[−log p(x_0|x_1)]

with q of [E1] for λ² > 0 and p(x_s|x_t) = N(its mean at x̂_0, Σ) for any reverse covariance Σ of any structure
(DDPM, arXiv:2006.11239, eq. 5; for structures Analytic-DPM, arXiv:2201.06503, §2). An expectation over x_t ~ q(x_t|x_0)
is one draw of noise here. A term of a step t → s needs the network at t only: one evaluation serves every s < t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import checks
from ..covariance.reverse import StepCovariances
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.divergence import gaussian_kl
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from .decoder import Decoder, DensityDecoder


def prior_kl(x_0: torch.Tensor, alpha: float, sigma: float, prior_std: float) -> torch.Tensor:
    """KL(N(α x_0, σ² I) ‖ N(0, prior_std² I)) of each image (B, C, *spatial), in nats, (B,) float64 [E10]."""
    d = math.prod(x_0.shape[1:])
    square = x_0.double().square().sum(dim=tuple(range(1, x_0.ndim)))
    ratio = (sigma / prior_std) ** 2
    return 0.5 * (square * (alpha / prior_std) ** 2 + d * (ratio - 1.0 - math.log(ratio)))


@dataclass(frozen=True)
class Evaluation:
    """A level that the network is evaluated at, and the steps from there whose terms follow, with their columns; steps
    to clean data have a decoder each."""

    level: NoiseLevel
    steps: tuple[tuple[int, ReverseKernel], ...] = ()
    decoders: tuple[tuple[int, ReverseKernel, Decoder], ...] = ()

    @property
    def terms(self) -> list[tuple[int, ReverseKernel]]:
        """Columns and kernels of all terms: of the steps, then of the decoders."""
        return [*self.steps, *((column, kernel) for column, kernel, _ in self.decoders)]


class BoundTerms:
    """Computes terms of the bound from x_0, ε and the posterior at x_t.

    Args:
        denoiser: the model.
        evaluations: the levels to evaluate and the terms that are wanted of each.
        covariances: Σ of every step.
    """

    def __init__(self, denoiser: Denoiser, evaluations: Sequence[Evaluation], covariances: StepCovariances) -> None:
        self.denoiser, self.evaluations, self.covariances = denoiser, evaluations, covariances

    def signed_columns(self) -> list[int]:
        """The columns whose terms may be negative: of a decoder that is a density. All others are divergences, or logs
        of probabilities."""
        decoders = [decoder for evaluation in self.evaluations for decoder in evaluation.decoders]
        return [column for column, _, decoder in decoders if isinstance(decoder, DensityDecoder)]

    def at(self, evaluation: Evaluation, x_0: torch.Tensor, eps: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        """(B, terms of the evaluation) float64, on the CPU."""
        terms = [self._term(kernel, x_0, eps, posterior) for _, kernel in evaluation.steps]
        terms += [decoder.nats(x_0, posterior, kernel) for _, kernel, decoder in evaluation.decoders]
        return torch.stack(terms, dim=1).cpu()

    def _term(self, kernel: ReverseKernel, x_0: torch.Tensor, eps: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        covariance = self.covariances.at(posterior, kernel)
        if covariance is None or bool((covariance.variance <= 0).any()):  # NaN is found in the term
            raise InputError(
                f"the covariance {self.covariances.covariance.name} is zero somewhere in the step {kernel}, so that "
                "the bound is infinite; choose one that is positive, such as Analytic."
            )
        quadratic = covariance.quadratic(kernel.mean_error(x_0, eps, posterior))
        d = math.prod(x_0.shape[1:])
        return gaussian_kl(kernel.lambda2, covariance.log_det(), covariance.inverse_trace(), quadratic, d)


def check_noise_of_bound(kernels: Sequence[ReverseKernel]) -> None:
    """Refuse steps without noise of their own (η = 0, τ = 0, or so small that λ² vanishes): the bound is infinite."""
    first = kernels[0]
    silent = any(kernel.lambda2 == 0.0 for kernel in kernels if not kernel.last) or first.eta == 0 or first.tau == 0
    found = f"eta={abs(first.eta or 0.0):g} (DDIM)" if first.tau is None else f"tau={first.tau:g}"
    checks.refuse(
        silent,
        f"{found} makes q(x_s|x_t,x_0) a point mass, so that the bound is infinite for every covariance; use eta=1 "
        "(DDPM), or 0 < eta < 1, for likelihoods.",
    )
