"""The samplers that `structured.py` compares, by name, and how many steps of each fit into a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from restoration_cases import Case

import diffusion_var as dv

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SOLVERS = {"DPM-Solver++(2M)": "dpm_solver_pp", "UniPC-2": "unipc"}
Made = dict[str, Callable[[int], dv.Sampler]]


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
        "jacobian, differences": with_noise(partial(dv.Jacobian, table, derivative="difference")),
        **{f"lanczos {m}": with_noise(partial(dv.Lanczos, table, steps=m)) for m in (1, 3, 5)},
    }
    if isinstance(denoiser, dv.oracles.MixtureDenoiser):
        found |= {f"exact {name}": with_noise(partial(dv.ExactCovariance, denoiser, name)) for name in ("dct", "full")}
    return found | {
        f"head {name}": with_noise(partial(dv.Head.load, path)) for name, path in (h.split("=") for h in heads)
    }


def covariances(
    denoiser: dv.Denoiser, table: dv.VarianceTable, heads: Sequence[str]
) -> dict[str, Callable[[], dv.ReverseCovariance]]:
    """Those whose likelihoods are compared, by name; Lanczos, with its dozens of products, of a mixture alone."""
    found: dict[str, Callable[[], dv.ReverseCovariance]] = {
        "isotropic": partial(dv.Analytic, table),
        "dct": partial(dv.Analytic, table, structure="dct"),
        **{f"jacobian, bands {b}": partial(dv.Jacobian, table, bands=b) for b in (6, 16)},
        "jacobian, probes 4": partial(dv.Jacobian, table, probes=4),
        "jacobian, differences": partial(dv.Jacobian, table, derivative="difference"),
        "jacobian, no table": dv.Jacobian,
    }
    if isinstance(denoiser, dv.oracles.MixtureDenoiser):
        found |= {f"lanczos {m}": partial(dv.Lanczos, table, steps=m) for m in (3, 5)}
        found |= {f"exact {name}": partial(dv.ExactCovariance, denoiser, name) for name in ("dct", "full")}
    return found | {f"head {name}": partial(dv.Head.load, path) for name, path in (h.split("=") for h in heads)}


def second_order(denoiser: dv.Denoiser, table: dv.VarianceTable) -> Made:
    """Steps with a share a of the multistep drift and b of the table's covariance [E25]. Where a + b is not 1, an error
    of first order is left."""

    def make(share: float | Literal["auto"], factor: float, k: int) -> dv.Sampler:
        dct = dv.Analytic(table, structure="dct")
        covariance = dct if factor == 1.0 else dv.Scaled(dct, factor)
        return dv.MultistepSampler(denoiser, covariance, dv.steps.log_snr_levels(denoiser.schedule, k), share=share)

    rows: Made = {f"a = {a:g}, b = {1.0 - a:g}": partial(make, a, 1.0) for a in SHARES}
    wrong = {f"a = 0.5, b = {0.5 * factor:g}": partial(make, 0.5, factor) for factor in (0.5, 2.0)}
    return rows | {"a = 1/(1 + h²), b = 1 − a": partial(make, "auto", 1.0)} | wrong


def wanted(names: Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    """The rows that are asked for, or all; ends the script for one that is not among them."""
    if unknown := [name for name in names or () if name not in known]:
        raise SystemExit(f"--methods has no row {unknown[0]!r} here; there are {', '.join(map(repr, known))}")
    return names or known


def of_own_samples(case: Case) -> Case:
    """The case; of a mixture with a table of its own samples, which photographs are not."""
    if not isinstance(case.denoiser, dv.oracles.MixtureDenoiser):
        return case
    return replace(case, table_images=case.denoiser.sample(4000, seed=7))


def price(covariance: dv.ReverseCovariance, cost: dv.ProductCost) -> dv.ProductCost:
    """The cost of a covariance's products: an evaluation each where they are differences, else the network's."""
    return dv.ProductCost.difference() if getattr(covariance, "derivative", "") == "difference" else cost


def largest(make: Callable[[int], dv.Sampler], budget: int, cost: dv.ProductCost) -> tuple[dv.Sampler, float] | None:
    """The sampler with the most steps whose equivalents fit into the budget, and these; None where two steps do not."""
    made = (
        (sampler := make(steps), sampler.equivalents(price(sampler.covariance, cost))) for steps in range(budget, 1, -1)
    )
    return next(((sampler, spent) for sampler, spent in made if spent <= budget + 1e-9), None)
