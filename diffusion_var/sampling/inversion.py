"""DDIM's steps backwards: from an image to the noise that they would make it of (DDIM, arXiv:2010.02502, §4.3).

At η = 0 a step takes x_t to x_s = (α_s/α_t) x_t + (σ_s − σ_t α_s/α_t) ε̂(x_t), whose inverse is the solution of

    x_t = (α_t/α_s) x_s + (σ_t − σ_s α_t/α_s) ε̂(x_t).

It is found by iteration from x_s, scaled to the size that data of unit variance have at t. One iteration is DDIM
inversion as it is used: ε̂ is asked of x_s for the level t, and the round trip has an error of first order in the steps.
Each more raises the order by one; where they converge (short steps), they find the inverse itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .. import checks
from ..covariance.reverse import ReverseCovariance, noisy
from ..models.network_run import NetworkRun
from ..process.kernel import ReverseKernel


def invert_batch(
    run: NetworkRun, kernels: Sequence[ReverseKernel], x_0: torch.Tensor, condition: Any, iterations: int
) -> torch.Tensor:
    """x at the noisiest level of the steps, (B, C, *spatial), of images x_0 on the device."""
    x = x_0
    for kernel in reversed(kernels):
        signal, size = kernel.alpha_t / kernel.alpha_s, math.hypot(kernel.alpha_t, kernel.sigma_t)
        start, weight = x, kernel.sigma_t - kernel.sigma_s * signal
        x = start * (size / math.hypot(kernel.alpha_s, kernel.sigma_s))
        for _ in range(iterations):
            x = signal * start + weight * run(x, kernel.level_t, condition).eps
    return x


def check_invertible(kernels: Sequence[ReverseKernel], covariance: ReverseCovariance) -> None:
    """Refuse steps that are random, and those from a level without signal."""
    first = kernels[0]
    found = f"eta={first.eta:g}" if first.tau is None else f"tau={first.tau:g}"
    checks.refuse(
        0.0 not in (first.eta, first.tau),
        f"{found} makes the steps random, so that they have no inverse; use eta=0 (or tau=0) for inversion.",
    )
    adds = [k for k in noisy(kernels) if covariance.depends_on_image or covariance(None, k) is not None]
    checks.refuse(
        bool(adds),
        f"the covariance {covariance.name} adds noise to the steps, so that they have no inverse; use dv.FixedSmall(), "
        "which adds none at eta=0.",
    )
    checks.refuse(
        first.alpha_t == 0.0,
        f"the steps begin at {first.level_t.name}, which holds no signal: all images have one inverse there; begin "
        "below it.",
    )
