"""The samplers that `structured.py` compares, by name, and how many steps of each fit into a budget.

*Second order at the price of the first.* In y = x/σ and w = α/σ the probability flow is dy/dw = x̂_0, and along it

    dx̂_0/dw = C ε̂ − w κ,      C = Cov[x_0|x_t],  κ = E[(x_0 − x̂_0) |x_0 − x̂_0|²]

(differentiate E[x_0|x_t]). A step of length h = w_s − w_t in y is of second order, in distribution, if it adds either
the drift ½ h² dx̂_0/dw, as DPM-Solver++(2M) does with a difference of two evaluations for the derivative, or noise of
covariance h² C, as the exact x_0 | x_t would; and so of a share a of the first and a share 1 − a of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

import diffusion_var as dv

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SOLVERS = {"DPM-Solver++(2M)": "dpm_solver_pp", "UniPC-2": "unipc"}
Made = dict[str, Callable[[int], dv.Sampler]]


class Multistep(dv.Sampler):
    """A sampler whose mean has a share of the second-order multistep correction, from two evaluations' x̂_0."""

    share = 0.0

    def mean(self, kernel: Any, x_t: torch.Tensor, posterior: Any) -> torch.Tensor:
        found = super().mean(kernel, x_t, posterior)
        if kernel.last:
            return found
        width = 0.5 * (kernel.level_s.log_snr - kernel.level_t.log_snr)
        if kernel != self.kernels[0]:
            before, width_before = self._before
            slope = (posterior.mean - before) / width_before
            found = found + self.share * 0.5 * kernel.gain * width * slope
        self._before = posterior.mean, width
        return found


def samplers(denoiser: dv.Denoiser, table: dv.VarianceTable, heads: Sequence[str]) -> Made:
    """Samplers of so many steps, by name; `heads` are NAME=FILE."""

    def with_noise(make: Callable[[], dv.ReverseCovariance], eta: float = 0.0) -> Callable[[int], dv.Sampler]:
        return lambda k: dv.Sampler(denoiser, make(), dv.steps.log_snr_levels(denoiser.schedule, k), eta)

    def solver(name: str) -> Callable[[int], dv.Sampler]:
        return lambda k: dv.SolverSampler(denoiser, name, dv.steps.log_snr_levels(denoiser.schedule, k))

    dct = partial(dv.Analytic, table, structure="dct")
    found: Made = {
        "DDIM": with_noise(dv.FixedSmall),
        "DDIM, even": lambda k: dv.Sampler(denoiser, dv.FixedSmall(), k, 0.0),
        **{name: solver(key) for name, key in SOLVERS.items()},
        "isotropic": with_noise(partial(dv.Analytic, table)),
        "dct": with_noise(dct),
        "dct, η=1": with_noise(dct, 1.0),
        "dct, even": lambda k: dv.Sampler(denoiser, dct(), k, 0.0),
        **{f"jacobian, probes {p}": with_noise(partial(dv.Jacobian, table, probes=p)) for p in (1, 4)},
        **{f"lanczos {m}": with_noise(partial(dv.Lanczos, table, steps=m)) for m in (1, 3, 5)},
    }
    if isinstance(denoiser, dv.oracles.MixtureDenoiser):
        found |= {f"exact {name}": with_noise(partial(dv.ExactCovariance, denoiser, name)) for name in ("dct", "full")}
    return found | {
        f"head {name}": with_noise(partial(dv.Head.load, path)) for name, path in (h.split("=") for h in heads)
    }


def second_order(denoiser: dv.Denoiser, table: dv.VarianceTable) -> Made:
    """Steps with a share a of the multistep correction and a share b of the table's covariance; the first step, which
    has no other before it, has none of the correction. Where a + b is not 1 an error of first order is left.

    What a difference errs grows with the step in log(α/σ), h, and what a table errs, in an image, does not. Of two
    errors e_a ∝ h and e_b the best shares are a/(1 − a) = e_b²/e_a²: one row has a = 1/(1 + h²).
    """

    def make(a: float | None, b: float, k: int) -> dv.Sampler:
        levels = dv.steps.log_snr_levels(denoiser.schedule, k)
        if a is None:
            h = 0.5 * (levels[-1].log_snr - levels[0].log_snr) / (k - 1)
            a = 1.0 / (1.0 + h**2)
            b = 1.0 - a
        covariance = dv.Scaled(dv.Analytic(table, structure="dct"), b) if b > 0.0 else dv.FixedSmall()
        found = Multistep(denoiser, covariance, levels, 0.0)
        found.share = a
        return found

    pairs = [(a, 1.0 - a) for a in SHARES] + [(1.0, 1.0), (0.5, 0.25)]
    rows: Made = {f"a = {a:g}, b = {b:g}": partial(make, a, b) for a, b in pairs}
    return rows | {"a = 1/(1 + h²), b = 1 − a": partial(make, None, 0.0)}


def largest(make: Callable[[int], dv.Sampler], budget: int, cost: dv.ProductCost) -> dv.Sampler | None:
    """The sampler with the most steps whose equivalents fit into the budget; None where two steps do not."""
    fitting = (sampler for sampler in map(make, range(budget, 1, -1)) if sampler.equivalents(cost) <= budget + 1e-9)
    return next(fitting, None)
