"""Solvers against closed forms: the flow of exact data is known, and their errors fall by their order.

In one dimension the flow maps quantiles to quantiles, F_s(x_s) = F_t(x_t), whatever the data; and of Gaussian data it
is a scaling about the mean.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import ndtr

import diffusion_var as dv
from diffusion_var.process.kernel import ReverseKernel
from diffusion_var.process.level import NoiseLevel
from diffusion_var.sampling.solvers import SOLVERS, SolverSampler

SCHEDULE = dv.NoiseSchedule.linear(1000)
VARIANCE, MEAN = np.array([0.3, 0.05, 1.5]), np.array([0.2, -0.1, 0.4])
GAUSSIAN = dv.oracles.GaussianDenoiser(SCHEDULE, MEAN, VARIANCE, (3,))
CENTRES, WIDTHS, WEIGHTS = np.array([-0.5, 0.6]), np.array([0.04, 0.01]), np.array([0.3, 0.7])
MIXTURE = dv.oracles.MixtureDenoiser(SCHEDULE, CENTRES[:, None], WIDTHS, WEIGHTS)

Array = npt.NDArray[np.float64]


def gaussian_flow(x: Array, t: NoiseLevel, s: NoiseLevel) -> Array:
    scale = np.sqrt((s.alpha**2 * VARIANCE + s.sigma**2) / (t.alpha**2 * VARIANCE + t.sigma**2))
    return s.alpha * MEAN + scale * (x - t.alpha * MEAN)


def mixture_flow(x: Array, t: NoiseLevel, s: NoiseLevel) -> Array:
    def share(value: float, level: NoiseLevel) -> float:
        std = np.sqrt(level.alpha**2 * WIDTHS + level.sigma**2)
        return float(WEIGHTS @ ndtr((value - level.alpha * CENTRES) / std))

    def image(value: float) -> float:
        wanted = share(value, t)
        return float(brentq(lambda y: share(y, s) - wanted, -6.0, 6.0, xtol=1e-13))

    return np.vectorize(image)(x)


def at_least_noisy(made: SolverSampler, start: Array) -> tuple[NoiseLevel, Array]:
    """x at the last level that is not clean data, from a given start."""
    seen: list[tuple[ReverseKernel, torch.Tensor]] = []
    run_of = made._batch

    def watched(*given: Any) -> torch.Tensor:
        *first, x = given
        first[5] = lambda kernel, x_s: seen.append((kernel, x_s))
        return run_of(*first, x)

    made._batch = watched  # type: ignore[method-assign]
    made.from_noise(torch.from_numpy(start).float(), batch_size=len(start))
    kernel, x = seen[-2]
    return kernel.level_s, x.double().numpy()


@pytest.mark.parametrize(
    ("name", "order", "expected"),
    [
        ("dpm_solver_pp", 1, 1),
        ("dpm_solver_pp", 2, 2),
        ("dpm_solver_pp", 3, 2.1),  # its first steps, of lower order, keep it near 2
        ("unipc", 1, 2),  # the corrector adds an order
        ("unipc", 2, 3),
        ("heun", None, 2),
        ("euler", None, 1),
    ],
)
@pytest.mark.parametrize(("denoiser", "flow"), [(GAUSSIAN, gaussian_flow), (MIXTURE, mixture_flow)])
def test_errors_fall_by_the_order(
    name: str, order: int | None, expected: float, denoiser: Any, flow: Callable[..., Array]
) -> None:
    start = np.linspace(-2.0, 2.0, 21)[:, None] * np.ones(denoiser.shape)
    errors = []
    for steps in (32, 64, 128):
        levels = getattr(dv.steps, "karras" if SOLVERS[name].per_alpha else "log_snr_levels")(SCHEDULE, steps)
        made = SolverSampler(denoiser, name, levels, order)
        level, found = at_least_noisy(made, start)
        errors.append(float(np.abs(found - flow(start, made.kernels[0].level_t, level)).max()))
    measured = math.log2(errors[0] / errors[-1]) / 2
    assert abs(measured - expected) < 0.35, errors
    assert errors[-1] < 0.1


def test_ancestral_steps_have_the_variance_of_their_recursion_which_converges() -> None:
    """Gaussian data: x/α of variance V goes to a² V + σ_up²; its error at clean data's neighbour falls by order 1."""

    def variance(levels: list[NoiseLevel]) -> Array:
        sigmas = [level.sigma / level.alpha for level in levels]
        total = np.full(3, (levels[0].alpha ** 2 + levels[0].sigma ** 2) / levels[0].alpha ** 2)
        for t, s in pairwise(sigmas):
            up2 = s**2 * (t**2 - s**2) / t**2
            gain = VARIANCE / (VARIANCE + t**2)
            slope = 1.0 + (math.sqrt(s**2 - up2) - t) / t * (1.0 - gain)
            total = slope**2 * total + up2
        return total

    centred = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, VARIANCE, (3,))
    errors = []
    for steps in (8, 400, 800):
        levels = dv.steps.karras(SCHEDULE, steps)
        exact = VARIANCE + (levels[-1].sigma / levels[-1].alpha) ** 2
        errors.append(float(np.abs(variance(levels) / exact - 1.0).max()))
    assert 0.7 < math.log2(errors[1] / errors[2]) < 1.3
    levels = dv.steps.karras(SCHEDULE, 8)
    seen: list[torch.Tensor] = []
    made = SolverSampler(centred, "euler_ancestral", levels)
    count = 4000
    for _ in made.stream(range(count), batch_size=count, visit=lambda _, x: seen.append(x)):
        pass
    found = seen[-2].double().square().mean(0).numpy() / levels[-1].alpha ** 2
    assert np.all(np.abs(found / variance(levels) - 1.0) < 5 * math.sqrt(2 / count))


@pytest.mark.parametrize("name", ["euler_ancestral", "sde_dpm_solver_pp"])
def test_random_solvers_converge_to_the_marginals(name: str) -> None:
    centred = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, np.full(4, 0.25), (4,))
    errors = []
    for steps in (4, 80):
        images = SolverSampler(centred, name, dv.steps.log_snr(SCHEDULE, steps)).sample(2000, batch_size=2000)
        errors.append(abs(float(images.double().square().mean()) / 0.25 - 1.0))
    assert errors[1] < min(0.15, errors[0] / 3), errors
