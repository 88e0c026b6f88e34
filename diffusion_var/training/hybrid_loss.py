"""The hybrid loss of Improved DDPM (arXiv:2102.09672, eq. 16): L_simple + 0.001 L_vlb, for a network with 2C channels.

The first half of its output is ε̂, the second the raw range of the step's variances (see `variance.learned`). L_vlb is
the bound of the full process with η = 1 less the prior's term, which nothing can change, in bits/dim: N times the term
of a random step n → n − 1. Its mean is that of the unclipped x̂_0, and detached: it trains the range alone, and L_simple
ε̂ alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..covariance.learned_range import learned_range_variance
from ..covariance.reverse import StructuredCovariance
from ..errors import InputError
from ..likelihood.decoder import discretised_log_prob, levels_of
from ..models.prediction import check_prediction, mean_and_eps
from ..process.divergence import gaussian_kl, gaussian_nats
from ..process.kernel import reverse_kernels
from ..process.schedule import NoiseSchedule
from ..process.structure import Pixel
from .loss import noisy_batch

BOUND_WEIGHT = 0.001
#: Of uint8 images, as `float_images` scales them.
LEVELS, DATA_RANGE = 256, (-1.0, 1.0)


def hybrid_loss(
    network: Any,
    x_0: torch.Tensor,
    schedule: NoiseSchedule,
    stream: np.random.Generator,
    n: torch.Tensor | None = None,
    share: slice = slice(None),
    *,
    coefficients: torch.Tensor,
    levels: int | None,
) -> torch.Tensor:
    """L_simple + 0.001 L_vlb over a `noisy_batch`; the same noise and indices serve both."""
    batch = noisy_batch(network, x_0, schedule, stream, n, share)
    channels = x_0.shape[1]
    if batch.output.shape[1] != 2 * channels:
        raise InputError(
            f"the network returns {batch.output.shape[1]} channels, but learned_range needs {2 * channels}, twice the "
            "images'; make it with as many out_channels, or leave out learned_range."
        )
    eps_hat, raw = batch.output[:, :channels], batch.output[:, channels:]
    images, eps = batch.x_0.to(raw.device), batch.eps.to(raw.device)
    bound = range_bound(raw, eps_hat, images, eps, batch.n, coefficients, levels)
    return batch.simple_loss() + BOUND_WEIGHT * schedule.num_steps * bound.mean().float()


def range_bound(
    raw: torch.Tensor,
    eps_hat: torch.Tensor,
    x_0: torch.Tensor,
    eps: torch.Tensor,
    n: torch.Tensor,
    coefficients: torch.Tensor,
    levels: int | None,
) -> torch.Tensor:
    """The bound's term of each row's step n → n − 1 (Improved DDPM eq. 4 to 6), (B,) float64, in bits/dim.

    Args:
        raw: the range half of the network's output, which alone gets a gradient; like all others (B, C, *spatial).
        n: (B,) from 1 to N, on the CPU.
        coefficients: `step_coefficients` of the schedule.
        levels: at n = 1 x_0 is one of so many levels from −1 to 1 (discretised decoder); None: continuous (density).
    """
    x_0, eps, eps_hat = x_0.double(), eps.double(), eps_hat.detach().double()
    rows = coefficients[n].to(raw.device).T
    alpha, sigma, beta, beta_tilde, lambda2, gain = rows.reshape(*rows.shape, *(1,) * (x_0.ndim - 1))
    mean, _ = mean_and_eps("epsilon", eps_hat, alpha * x_0 + sigma * eps, alpha, sigma)
    variance = learned_range_variance(raw.double(), beta, beta_tilde)
    structure, d = Pixel(x_0.shape[1:]), math.prod(x_0.shape[1:])
    nats = torch.empty(len(n), dtype=torch.float64, device=raw.device)
    last, others = (chosen.nonzero()[:, 0].to(raw.device) for chosen in (n == 1, n != 1))
    covariance, error = StructuredCovariance(structure, variance[others]), (gain * (x_0 - mean))[others]
    log_det, inverse_trace = covariance.log_det(), covariance.inverse_trace()
    nats[others] = gaussian_kl(lambda2.flatten()[others], log_det, inverse_trace, covariance.quadratic(error), d)
    if len(last):
        nats[last] = _decoder_nats(x_0[last], mean[last], StructuredCovariance(structure, variance[last]), levels)
    return nats / (d * math.log(2))


def step_coefficients(schedule: NoiseSchedule) -> torch.Tensor:
    """α_n, σ_n, β, β̃, λ² and γ of the steps n → n − 1 with η = 1: (N + 1, 6) float64, the row n = 0 is nan.

    β̃ is the lower end of the range, which for n = 1 is that of 2 → 1, as in `LearnedRange`; λ² is that of the process.
    """
    check_prediction("epsilon", schedule)
    if schedule.num_steps < 2:
        raise InputError(
            "the schedule has one index, but learned_range needs at least 2, for the variance of the step 1 to 0 lies "
            "above that of 2 to 1; use more, or leave out learned_range."
        )
    kernels = reverse_kernels(schedule, range(1, schedule.num_steps + 1))[::-1]
    rows = [[k.alpha_t, k.sigma_t, k.beta, k.beta_tilde, k.lambda2, k.gain] for k in kernels]
    rows[0][3] = rows[1][3]
    return torch.tensor([[math.nan] * 6, *rows], dtype=torch.float64)


def levels_held(x: torch.Tensor) -> int | None:
    """256 if the pixels are those of 8-bit images scaled to [−1, 1], else None."""
    try:
        levels_of(x, LEVELS, DATA_RANGE)
    except InputError:
        return None
    return LEVELS


def _decoder_nats(
    x_0: torch.Tensor, mean: torch.Tensor, covariance: StructuredCovariance, levels: int | None
) -> torch.Tensor:
    """−log p(x_0 | x_1) of each image."""
    if levels is None:
        return gaussian_nats(covariance.log_det(), covariance.quadratic(x_0 - mean), math.prod(x_0.shape[1:]))
    try:
        level = levels_of(x_0, levels, DATA_RANGE)
    except InputError as error:
        raise InputError(
            f"the first images hold {levels} levels only, as 8-bit images do, but a later one does not, and a learned "
            "range is trained otherwise for either; pass images of one kind."
        ) from error
    return -discretised_log_prob(level, mean, covariance.variance, levels, DATA_RANGE).flatten(1).sum(1)
