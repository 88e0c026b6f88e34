"""How far two Gaussians of one reverse step are from each other: the terms of the likelihood bound, in nats [E10, E11].

The forward step q(x_s|x_t,x_0) = N(μ_q, λ² I) is compared with the model's p(x_s|x_t) = N(μ_p, Σ). With the optimal
variance σ*² = λ² + γ² v the expected divergence is ½ log(σ*²/λ²) a dimension (Analytic-DPM, arXiv:2201.06503, §4), and
with another variance u it is more by ½ (ρ − 1 − log ρ), ρ = σ*²/u.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Float64Array = npt.NDArray[np.float64]
Values = TypeVar("Values", torch.Tensor, Float64Array)


def gaussian_kl(
    lambda2: float | torch.Tensor, log_det: torch.Tensor, inverse_trace: torch.Tensor, quadratic: torch.Tensor, d: int
) -> torch.Tensor:
    """KL(N(μ_q, λ² I) ‖ N(μ_p, Σ)) in nats from log det Σ, tr Σ⁻¹ and (μ_q − μ_p)ᵀ Σ⁻¹ (μ_q − μ_p); float64 [E10].

    λ² is a float, or one for each of theirs.
    """
    log_lambda2 = lambda2.log() if isinstance(lambda2, torch.Tensor) else math.log(lambda2)
    return 0.5 * (log_det - d * log_lambda2 - d + lambda2 * inverse_trace + quadratic)


def gaussian_nats(log_det: Values, quadratic: Values, d: int) -> Values:
    """−log N(x; μ, Σ) in nats from log det Σ and (x − μ)ᵀ Σ⁻¹ (x − μ), tensors or arrays; float64 [E13]."""
    return 0.5 * (d * math.log(2 * math.pi) + log_det + quadratic)


def expected_kl(variance: float, lambda2: float) -> float:
    """½ log(σ*²/λ²): the expected KL of a step with its optimal variance σ*², in nats a dimension [E11]."""
    return 0.5 * math.log(variance / lambda2)


def excess_kl(optimal: npt.ArrayLike, used: npt.ArrayLike) -> Float64Array:
    """½ (ρ − 1 − log ρ), ρ = optimal/used: what a variance other than the optimal one adds to the expected KL of a
    step, in nats a dimension."""
    ratio = np.asarray(optimal, dtype=np.float64) / np.asarray(used, dtype=np.float64)
    return np.asarray(0.5 * (ratio - 1.0 - np.log(ratio)))


def step_cost(log_snr_t: Any, log_snr_s: Any, v: Any) -> Float64Array:
    """log((λ² + γ² v)/λ²) = log(1 + (SNR_s − SNR_t) v) at η = 1, twice the expected KL a dimension [E11].

    For floats or arrays that broadcast; nothing cancels between neighbouring levels.
    """
    difference = -np.exp(log_snr_s) * np.expm1(log_snr_t - log_snr_s)
    return np.asarray(np.log1p(difference * v))
