"""A flow model whose mean is exact: how far from the data few stochastic steps end, as `results/flow.md` has it.

    python scripts/flow_oracles.py
    python scripts/flow_oracles.py --spectrum floored

The data are Gaussian, with a spectrum like natural images' (1/f², 32×32, variance 1 on average), so that every sampler
of `rival_steps.py` and this package's are linear in every coefficient, and end in a Gaussian whose variances are known
in closed form: no sampling, no network, no noise. A variance table is measured once, on the even grid, and serves the
σ lists of every shift. Tables come in Markdown, KL(data ‖ sampler) in nats a dimension.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from rival_steps import USUAL, rival_step
from table_rows import header, row

import diffusion_var as dv

#: The σ lists: of FlowMatchEulerDiscreteScheduler with these options, and the mu that is given to set_timesteps.
GRIDS: dict[str, tuple[dict[str, Any], float | None]] = {
    "shift 1": ({}, None),
    "shift 3": ({"shift": 3.0}, None),
    "dynamic, mu 1.15": ({"use_dynamic_shifting": True}, 1.15),
}
#: The noises of which the best is looked for.
HAND_SET = [round(0.02 * k, 2) for k in range(1, 101)]
TAUS = [round(0.1 * k, 1) for k in range(31)]
OURS: dict[str, dict[str, Any]] = {
    "analytic, isotropic, η = 1": {"structure": "isotropic", "eta": 1.0},
    "analytic, isotropic, η = 0": {"structure": "isotropic", "eta": 0.0},
    "analytic, dct, η = 1": {"structure": "dct", "eta": 1.0},
}
Factors = list[tuple[np.ndarray[Any, Any] | float, np.ndarray[Any, Any] | float]]


#: Variances at a frequency f ≥ 0, but for their mean: two ways to go on to f = 0.
SPECTRA: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "shifted": lambda f: 1.0 / (1.0 + f) ** 2,
    "floored": lambda f: 1.0 / np.maximum(f, 1.0) ** 2,
}


def gaussian(size: int, spectrum_name: str = "shifted") -> dv.oracles.GaussianDenoiser:
    """Data with one of the spectra, on the even grid of 1,000 levels."""
    row = np.arange(size)
    spectrum = SPECTRA[spectrum_name](np.hypot(row[:, None], row[None]))
    return dv.oracles.GaussianDenoiser(
        dv.NoiseSchedule.flow(1000), 0.0, (spectrum / spectrum.mean())[None], basis="dct"
    )


def levels(grid: str, steps: int) -> list[float]:
    """The σ list of diffusers' scheduler, from 1 to 0."""
    options, mu = GRIDS[grid]
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    scheduler.set_timesteps(steps, mu=mu)
    found: list[float] = scheduler.sigmas.double().tolist()
    return found


def of_mean(variance: np.ndarray[Any, Any], t: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(κ, φ): x̂_0 = κ x_t and F = φ x_t of Gaussian data."""
    kappa = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
    return kappa, (1 - (1 - t) * kappa) / t - kappa


def rival(variance: np.ndarray[Any, Any], times: Sequence[float], rule: str, a: float) -> Factors:
    """Of every step, what a coefficient is multiplied by, and the variance of its noise."""
    made: Factors = []
    for t, s in pairwise(times):
        step = rival_step(rule, t, s, a)
        made.append((step.of_x + step.of_flow * of_mean(variance, t)[1], step.deviation**2))
    return made


def analytic(
    variance: np.ndarray[Any, Any], times: Sequence[float], table: dv.VarianceTable, structure: str, **noise: float
) -> Factors:
    """The same of this package's steps, with the table's variances."""
    made: Factors = []
    for t, s in pairwise(times):
        level = dv.NoiseLevel.flow(t)
        kernel = dv.ReverseKernel.between(level, dv.NoiseLevel.flow(s), **noise)
        kappa, _ = of_mean(variance, t)
        factor = kernel.alpha_s * kappa + kernel.eps_gain * (1 - (1 - t) * kappa) / t
        v = np.asarray(table.posterior_variance(level, structure=structure), dtype=np.float64)
        made.append((factor, 0.0 if s == 0 else kernel.lambda2 + kernel.gain**2 * v))
    return made


def divergence(variance: np.ndarray[Any, Any], factors: Factors) -> float:
    """KL(data ‖ sampler) per dimension, in nats."""
    ends: np.ndarray[Any, Any] = np.ones_like(variance)
    for factor, noise in factors:
        ends = factor**2 * ends + noise
    ratio = variance / ends
    return float(np.mean(ratio - 1 - np.log(ratio)) / 2)


def best(of: Callable[[float], float], choices: Sequence[float]) -> tuple[float, float]:
    """(value, choice) of the least."""
    return min((of(choice), choice) for choice in choices)


def report(size: int, images: int, tolerance: float, spectrum: str = "shifted") -> None:
    oracle = gaussian(size, spectrum)
    variance = oracle.variance.numpy()
    table = dv.estimate(
        oracle, oracle.sample(images, seed=1).float(), tolerance, structures=("isotropic", "dct"), progress=False
    )
    print("The table, measured on the even grid, at the levels of other lists (10 steps):\n")
    header("list", "levels", "v of the table / exact", "largest difference in standard errors")
    for grid in GRIDS:
        places = [dv.NoiseLevel.flow(t) for t in levels(grid, 10)[:-1]]
        found = np.array([table.posterior_variance(level) for level in places])
        exact = np.array([oracle.posterior_variance(level).mean() for level in places])
        errors = np.array([table.standard_error(level, images=True) for level in places])
        worst = np.abs(found - exact) / errors
        row(grid, len(places), f"{(found / exact).min():.4f} to {(found / exact).max():.4f}", f"{worst.max():.1f}")
    for grid in GRIDS:
        print(f"\nKL(data ‖ sampler), {grid}:\n")
        header("step", *(f"K = {steps}" for steps in (4, 6, 10)), "K = 10, best a or τ")
        lists = [levels(grid, steps) for steps in (4, 6, 10)]
        for rule, a in USUAL.items():
            cells = [f"{divergence(variance, rival(variance, times, rule, a)):.4f}" for times in lists]
            choices = [a for a in HAND_SET if rule != "cps" or a <= 1]
            least, choice = best(lambda a: divergence(variance, rival(variance, lists[-1], rule, a)), choices)  # noqa: B023
            row(f"{rule}, a = {a:g}", *cells, "" if rule == "ode" else f"{least:.4f} (a = {choice:.2f})")
        for name, options in OURS.items():
            cells = [f"{divergence(variance, analytic(variance, times, table, **options)):.4f}" for times in lists]
            structure = options["structure"]
            least, choice = best(
                lambda tau: divergence(variance, analytic(variance, lists[-1], table, structure, tau=tau)),  # noqa: B023
                TAUS,
            )
            row(name, *cells, f"{least:.4f} (τ = {choice:.2f})" if options["eta"] else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="height and width of the data")
    parser.add_argument("--images", type=int, default=4000, help="images that the table is measured from")
    parser.add_argument("--tolerance", type=float, default=0.01, help="relative standard error of the table")
    parser.add_argument("--spectrum", choices=SPECTRA, default="shifted", help="1/(1 + f)², or 1/max(f, 1)²")
    given = parser.parse_args()
    report(given.size, given.images, given.tolerance, given.spectrum)
