"""Coverage of the estimator's 95 % intervals: how often value ± 1.96 standard errors holds the true residual variance.

    python scripts/coverage.py
    python scripts/coverage.py --cases rare tails --seeds 200 --draws 256

Many tables of the same images, one a seed, each with so many draws at every index, are compared with one long run. For
every index and pooled over all it prints the share of intervals that hold the long run's value, and the bias in
standard deviations of the value. Twice, of the same draws: before, with one regression on all draws that it corrects
(`plain`: what tables of earlier versions say), and after, as the table says. At last the tables that `estimate` makes
by itself with a tolerance of 2 %, which draws more where an error is too large or not to be trusted.

Below each case stands how rare the draws are that make half of the variance of what regression leaves of the residual,
in how many of a thousand draws they come: where a set of draws has less than one of them, its error knows of half at
most.

A second table compares the elementwise errors (`relative_error`) with the root-mean-square of the actual ones over the
seeds: below 1 the reported error is too wide, and buys draws that nobody needs.

Cases:
    rare    four modes of 1×4×4 images, one of them with a weight of 3 %; exact mean
    far     the same, the rare mode twice as far away
    tails   a mixture of three scales, of which one percent of the images have a hundred times the variance; exact mean
    digits  the exact mean of the bundled model's digits
    network the bundled model on its digits

Levels at which the variance is below a thousandth of its linear-MMSE value are left out: there it is a rare event.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import diffusion_var as dv

INDICES = (50, 100, 200, 400, 500, 600, 700, 800, 950)
SHAPE = (1, 4, 4)
Case = tuple[dv.Denoiser, Any]
Array = npt.NDArray[np.float64]


# ---- cases ----------------------------------------------------------------------------------------------------------


def rare(distance: float = 2.0) -> Case:
    means = 0.5 * np.random.default_rng(0).normal(size=(4, *SHAPE))
    means[-1] += distance
    return _mixture(means, np.full(4, 0.05), [0.4, 0.3, 0.27, 0.03])


def tails() -> Case:
    return _mixture(np.zeros((3, *SHAPE)), np.array([0.1, 1.0, 10.0]), [0.9, 0.09, 0.01])


def _mixture(means: Array, variances: Array, weights: Sequence[float]) -> Case:
    denoiser = dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(1000), means, variances, weights=weights)
    return denoiser, denoiser.sample(2000, seed=1)


def digits() -> Case:
    model, images = network()
    scaled = np.stack([np.asarray(image) for image in images]) / 127.5 - 1.0
    return dv.oracles.EmpiricalDenoiser(model.schedule, scaled), scaled.astype(np.float32)


def network() -> Case:
    return dv.Denoiser.from_pretrained("digits"), dv.data.open_images("digits:table")


CASES: dict[str, Callable[[], Case]] = {
    "rare": rare,
    "far": lambda: rare(4.0),
    "tails": tails,
    "digits": digits,
    "network": network,
}


# ---- measuring -------------------------------------------------------------------------------------------------------


def table_of(case: Case, seed: int, draws: int | None, indices: Sequence[int], names: Sequence[str] = ()) -> Any:
    """A table with so many draws at every index, or with those that a tolerance of 2 % takes."""
    budget: dict[str, Any] = {"tolerance": 0.02}
    if draws is not None:
        budget = {"tolerance": 1e-9, "max_evaluations": draws * len(indices)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dv.DiffusionVarWarning)
        return dv.estimate(
            *case, seed=seed, indices=indices, structures=names, batch_size=2048, progress=False, **budget
        )


def plain(table: Any) -> Any:
    """The table without its folds: one regression on all draws, as tables of earlier versions are answered."""
    return replace(table, moments={name: replace(m, folds=None) for name, m in table.moments.items()})


def values_and_errors(tables: Sequence[Any], indices: Sequence[int]) -> tuple[Array, Array]:
    """(S, I) residual values and their standard errors."""
    values = [[t.posterior_variance(n) for n in indices] for t in tables]
    return np.array(values), np.array([[t.standard_error(n) for n in indices] for t in tables])


def coverage(values: Array, errors: Array, truth: Array) -> Array:
    """(I,) share of the intervals that hold the truth."""
    return np.asarray((np.abs(values - truth) < 1.96 * errors).mean(0))


def known_indices(case: Case, truth: Any, indices: Sequence[int]) -> list[int]:
    """Those at which the variance is no rare event."""
    linear = [truth.interpolation.linear("isotropic", truth.schedule.level(n)) for n in indices]
    return [n for n, l in zip(indices, linear, strict=True) if truth.posterior_variance(n) > 1e-3 * float(l)]


def report_intervals(name: str, case: Case, seeds: int, draws: Sequence[int], truth_draws: int) -> None:
    """Print the coverage of the isotropic value, before and after."""
    long = table_of(case, 10**6, truth_draws, INDICES)
    indices = known_indices(case, long, INDICES)
    truth = np.array([long.posterior_variance(n) for n in indices])
    print(f"{name}: {seeds} seeds, truth of {truth_draws:,} draws an index")
    print(f"{'':34s}pooled  least" + "".join(f"{f'n={n}':>7s}" for n in indices))
    for count in (*draws, None):
        tables = [table_of(case, seed, count, indices) for seed in range(seeds)]
        made = f"{count:,}" if count else "2 %:"
        if count is None:
            made += f" {np.mean([t.evaluations for t in tables]) / len(indices):,.0f}"
        for which, shown in (("before", [plain(t) for t in tables]), ("after", tables)):
            values, errors = values_and_errors(shown, indices)
            held, bias = coverage(values, errors, truth), (values.mean(0) - truth) / values.std(0, ddof=1)
            _line(f"{made} draws, {which}", held, f"{held.mean():7.3f}{held.min():7.2f}")
            _line(f"{'':8s}bias / deviation", bias, f"{'':7s}{bias[np.abs(bias).argmax()]:7.2f}")
    rare_draws = 1000 * np.array([half_of_the_variance(case, n) for n in indices])
    _line("draws in 1,000 that make half", rare_draws, f"{'':7s}{rare_draws.min():7.2f}")
    print(flush=True)


def half_of_the_variance(case: Case, n: int, draws: int = 131072, batch: int = 2048) -> float:
    """The share of the draws that makes half of the variance of ‖x_0 − x̂_0‖²/d less its regression on the controls
    ‖ε‖²/d, ‖x_0 − μ‖²/d and the error of the linear denoiser (here of the pixels)."""
    denoiser, images = case
    pixels = np.stack([np.asarray(image) for image in images])
    clean = pixels / 127.5 - 1.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)
    level, stream = denoiser.schedule.level(n), np.random.default_rng(n)
    mean, variance = clean.mean(0), clean.var(0)
    gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    rows = []
    for _ in range(draws // batch):
        x_0 = clean[stream.integers(0, len(clean), batch)]
        eps = stream.standard_normal(x_0.shape)
        x_t = level.alpha * x_0 + level.sigma * eps
        found = denoiser(torch.from_numpy(x_t).float(), n).mean.double().numpy()
        linear = x_0 - mean - gain * (x_t - level.alpha * mean)
        rows.append([(part.reshape(batch, -1) ** 2).mean(1) for part in (x_0 - found, eps, x_0 - mean, linear)])
    target, *controls = np.concatenate(rows, axis=1)
    design = np.stack([np.ones_like(target), *controls], 1)
    left = np.sort((target - design @ np.linalg.lstsq(design, target)[0]) ** 2)[::-1]
    return float(np.searchsorted(left.cumsum(), 0.5 * left.sum()) + 1) / len(left)


def _line(text: str, values: Array, summary: str) -> None:
    print(f"{text:<33s}{summary}" + "".join(f"{value:7.2f}" for value in values))


def report_elements(name: str, case: Case, seeds: int, draws: Sequence[int]) -> None:
    """Print actual over reported errors of the elementwise structures, before and after."""
    print(f"{name}: actual / reported elementwise error, {seeds} seeds")
    indices = list(INDICES)
    print(f"{'':17s}" + "".join(f"{f'n={n}':>7s}" for n in indices))
    for count in draws:
        tables = [table_of(case, seed, count, indices, ("pixel", "dct")) for seed in range(seeds)]
        for structure in ("pixel", "dct"):
            ratio = [elementwise_ratio(tables, n, structure) for n in indices]
            print(f"{structure:6s}{count:>6,d} draws" + "".join(f"{r:7.2f}" for r in ratio))
    print(flush=True)


def elementwise_ratio(tables: Sequence[Any], n: int, structure: str) -> float:
    """The actual root-mean-square relative error over the seeds, in units of the mean reported one."""
    values = np.array([t.posterior_variance(n, structure=structure).ravel() for t in tables])
    linear = np.ravel(tables[0].interpolation.linear(structure, tables[0].schedule.level(n)))
    v = np.maximum(np.maximum(values.mean(0), 1e-3 * linear), 1e-4 * values.mean())
    actual = np.sqrt(np.mean(values.var(0, ddof=1) / v**2))
    return float(actual / np.mean([t.relative_error(n, structure) for t in tables]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=[*CASES], default=[*CASES])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--draws", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--truth", type=int, default=262144, help="draws an index of the long run")
    parser.add_argument("--elements", nargs="*", choices=[*CASES], default=[], help="cases of the second table")
    args = parser.parse_args()
    for name in args.cases:
        report_intervals(name, CASES[name](), args.seeds, args.draws, args.truth)
    for name in args.elements:
        report_elements(name, CASES[name](), args.seeds, args.draws)


if __name__ == "__main__":
    main()
