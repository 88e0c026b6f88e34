"""Reconstruction from measurements, beside deepinv's methods on the same models: what results/restoration.md holds.

    python scripts/restoration.py rivals --data photographs-exact
    python scripts/restoration.py ours --data photographs-exact --evaluations 5 10 20 50 100
    python scripts/restoration.py ours --data photographs-exact --methods "dct I, η=0" "dct I, posterior noise"
    python scripts/restoration.py closed --data photographs-exact
    python scripts/restoration.py calibration --data photographs-exact
    python scripts/restoration.py tables --data photographs-exact --csv results/restoration_photographs_exact.csv

Data sets and operators are in `restoration_cases.py`, deepinv's methods in tests/support/rivals.py. A cell is one
operator, σ_y, method and number of evaluations: the first images of the score part, one draw of each, PSNR and SSIM
of every image. Finished cells are kept, a line each, in <out>/<data>.jsonl, and are not made again, but of more
images. Each rival has, in every cell, the best of its settings (`rivals.GRIDS`) on other images, in mean PSNR; ours
have one setting for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_cells import Kept
from restoration_cases import (
    DATA,
    OPERATORS,
    Case,
    exact_posterior,
    load_case,
    make_physics,
    matrix_of,
    measured,
    table_of,
)
from restoration_cells import RIVALS, Cell, Cells, Scores, keep, tables, write_csv
from table_rows import header, row
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

import diffusion_var as dv

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import rivals  # type: ignore[import-not-found]

COVARIANCES = ("isotropic", "pixel", "dct", "ΠGDM")
NOISES = (0.02, 0.1)
LEVELS = (2, 10, 25, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
RANGE = (-1.0, 1.0)


# ---- problems and cells ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """An operator with its noise, and what it has measured of the images that are compared and of the others."""

    operator: str
    noise: float
    physics: Any
    y: torch.Tensor
    other_y: torch.Tensor


def problems(case: Case, args: argparse.Namespace) -> Iterator[Problem]:
    for noise in args.noise:
        for operator in args.operators:
            physics = make_physics(operator, case.denoiser.shape, noise)
            other_y = measured(physics, case.others, first=len(case.images))
            yield Problem(operator, noise, physics, measured(physics, case.images), other_y)


def scored(found: torch.Tensor, truth: torch.Tensor, runs: float, seconds: float, **settings: Any) -> Scores:
    """PSNR and SSIM of images cut to their range; an image that is not finite has the range's middle."""
    found = found.nan_to_num(0.0, 0.0, 0.0).clamp(*RANGE)
    each: dict[str, Any] = {"data_range": RANGE[1] - RANGE[0], "reduction": "none"}
    psnr = peak_signal_noise_ratio(found, truth, dim=(1, 2, 3), **each)
    ssim = structural_similarity_index_measure(found, truth, **each)
    return Scores([round(v, 3) for v in psnr.tolist()], [round(v, 4) for v in ssim.tolist()], runs, seconds, settings)


# ---- deepinv's methods ----------------------------------------------------------------------------------------------


def rival_cells(case: Case, kept: Cells, args: argparse.Namespace) -> None:
    known = dict(kept.cells if args.settings_of is None else cells_of(args, args.settings_of).cells)
    known |= kept.cells  # a cell that is made again, of more images, has the settings that it had
    for problem in problems(case, args):
        for method in args.methods or RIVALS:
            name, *said = method.split(", ")
            draws = OPTIONS[said[0]]["draws"] if said else 1
            for evaluations in args.evaluations if rivals.fits(name, problem.physics) else ():
                alike = [Cell(problem.operator, problem.noise, name, k) for k in (evaluations // draws, evaluations)]
                settings = next((known[cell].settings for cell in alike if cell in known), None)
                cell = Cell(problem.operator, problem.noise, method, evaluations)
                run = partial(rival_scores, case, problem, name, evaluations // draws, draws, settings)
                keep(kept, cell, args.count, run)


def rival_scores(
    case: Case, problem: Problem, name: str, evaluations: int, draws: int, settings: dict[str, Any] | None
) -> Scores:
    """The mean of so many draws with these settings, or the best of a rival's on other images."""

    def run(images: torch.Tensor, y: torch.Tensor, settings: dict[str, Any], draws: int = 1) -> Scores:
        start = time.perf_counter()
        made = [
            rivals.restore(name, case.denoiser, problem.physics, y, evaluations, seed, **settings)
            for seed in range(draws)
        ]
        found = torch.stack([draw for draw, _ in made]).mean(0)
        return scored(found, images, sum(runs for _, runs in made), time.perf_counter() - start, **settings)

    if settings is None:
        tried = [run(case.others, problem.other_y, settings) for settings in rivals.GRIDS[name]]
        settings = max(tried, key=lambda scores: float(np.mean(scores.psnr))).settings
    return run(case.images, problem.y, settings, draws)


# ---- ours -----------------------------------------------------------------------------------------------------------


#: What a method's name may end in (of rivals: draws), and what it means; without, η = 1, one draw, and the defaults of
#: `ConditionedDenoiser`.
OPTIONS: dict[str, dict[str, Any]] = {
    "η=0": {"eta": 0.0},
    "η=0.5": {"eta": 0.5},
    "posterior noise": {"posterior_noise": True},
    "τ=10": {"tau": 10.0},
    "log-SNR": {"log_snr": True},
    "2 draws": {"draws": 2},
    "4 draws": {"draws": 4},
    "5 draws": {"draws": 5},
    "undamped": {"damped": False},
    "below 0.2": {"below": 0.2},
}


def our_cells(case: Case, kept: Cells, args: argparse.Namespace) -> None:
    table = table_of(case, args.out)
    for problem in problems(case, args):
        for method in args.methods or [f"{name} {kind}" for name in COVARIANCES for kind in ("I", "II")]:
            for steps in args.evaluations:
                cell = Cell(problem.operator, problem.noise, method, steps)
                keep(kept, cell, args.count, partial(our_scores, case, table, problem, method, steps))


def our_scores(case: Case, table: dv.VarianceTable, problem: Problem, method: str, evaluations: int) -> Scores:
    """Restored by a `ConditionedDenoiser`: a draw for every measurement, or the mean of some, of fewer steps each."""
    first, *said = method.split(", ")
    name, guidance = first.rsplit(" ", 1)
    options = {key: value for part in said for key, value in OPTIONS[part].items()}
    noise = {key: options.pop(key) for key in ("eta", "tau") if key in options}
    draws, posterior_noise = options.pop("draws", 1), options.pop("posterior_noise", False)
    steps: Any = evaluations // draws
    if options.pop("log_snr", False):
        steps = dv.steps.log_snr_levels(case.denoiser.schedule, steps)
    start = time.perf_counter()
    measurement = dv.Measurement.from_deepinv(problem.physics, problem.y)
    covariance = covariance_of(name, case, table)
    denoiser = dv.ConditionedDenoiser(case.denoiser, covariance, measurement, guidance=guidance, **options)
    drawn = denoiser.posterior_noise() if posterior_noise else dv.FixedSmall()
    sampler = dv.Sampler(denoiser, drawn, steps, **noise)
    count = len(problem.y)
    found = torch.stack([sampler.sample(count, seed, batch_size=count) for seed in range(draws)]).mean(0)
    return scored(found, case.images, draws * sampler.evaluations, time.perf_counter() - start)


def covariance_of(name: str, case: Case, table: dv.VarianceTable) -> dv.ReverseCovariance:
    """Cov[x_0|x_t] by its name in the tables."""
    if name == "ΠGDM":
        return dv.PiGDM()
    if name == "Jacobian":
        return dv.restoration.NetworkJacobian()
    if name.startswith("exact"):
        assert isinstance(case.denoiser, dv.oracles.MixtureDenoiser)
        return dv.ExactCovariance(case.denoiser, name.split()[1])
    return dv.Analytic(table, structure=name)


# ---- closed forms ---------------------------------------------------------------------------------------------------


def closed_form_cells(case: Case, kept: Cells, args: argparse.Namespace) -> None:
    """What an exact mixture knows of x_0 given y: the mean, which no method can beat on its own images, and a draw."""
    for problem in problems(case, args) if isinstance(case.denoiser, dv.oracles.MixtureDenoiser) else ():
        start = time.perf_counter()
        A = matrix_of(problem.physics.A, case.denoiser.shape)
        found = exact_posterior(case.denoiser, A, problem.y, problem.noise, seed=0)
        seconds = time.perf_counter() - start
        for name, images in zip(("closed form, mean", "closed form, draw"), found, strict=True):
            cell = Cell(problem.operator, problem.noise, name, 0)
            keep(kept, cell, args.count, partial(scored, images, case.images, 0, seconds))


# ---- calibration ----------------------------------------------------------------------------------------------------


def calibration(case: Case, args: argparse.Namespace) -> None:
    """rᵀS⁻¹r/dim(y), the mean over images, by level and covariance."""
    table = table_of(case, args.out)
    for problem in problems(case, args):
        print(f"\n{case.name}, {problem.operator}, σ_y = {problem.noise:g}, {len(case.images)} images\n")
        measurement = dv.Measurement.from_deepinv(problem.physics, problem.y)
        header("n", "σ/α", *COVARIANCES)
        dens = [
            dv.ConditionedDenoiser(case.denoiser, covariance_of(name, case, table), measurement, guidance="II")
            for name in COVARIANCES
        ]
        for n in LEVELS:
            level = case.denoiser.schedule.level(n)
            eps = torch.from_numpy(np.random.default_rng(n).standard_normal(case.images.shape, dtype=np.float32))
            x_t = level.alpha * case.images + level.sigma * eps
            found = [float(den.residual(x_t, n).mean()) for den in dens]
            row(n, f"{level.sigma / level.alpha:.3g}", *(f"{value:.3g}" for value in found))


def cells_of(args: argparse.Namespace, data: str) -> Cells:
    return Kept(args.out / f"{data}.jsonl", Cell, Scores)


PARTS: dict[str, Callable[..., None]] = {
    "rivals": rival_cells,
    "ours": our_cells,
    "closed": closed_form_cells,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "calibration", "tables"))
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--noise", nargs="+", type=float, default=list(NOISES), help="σ_y, of images in [-1, 1]")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[20])
    parser.add_argument(
        "--methods",
        nargs="+",
        help=f'of ours such as "dct I", or "ΠGDM II, η=0" ({", ".join(OPTIONS)}), "dps" of the rivals',
    )
    parser.add_argument("--count", type=int, default=100, help="images that are compared")
    parser.add_argument("--others", type=int, default=20, help="images that choose the rivals' settings")
    parser.add_argument("--settings-of", choices=DATA, help="whose cells' settings the rivals have, none being tried")
    parser.add_argument("--model", help="a network's folder in place of the bundled one")
    parser.add_argument("--mnist", default="mnist.npz", help="MNIST's images, train_x and test_x")
    parser.add_argument("--out", type=Path, default=Path("runs/restoration"), help="where cells and tables are kept")
    parser.add_argument("--ours-at", type=int, default=20, help="evaluations of ours in the paired differences")
    parser.add_argument("--rivals-at", type=int, default=100, help="evaluations of the rivals in them")
    parser.add_argument("--csv", type=Path, help="where `tables` writes every cell too")
    args = parser.parse_args(arguments)
    kept = cells_of(args, args.data)
    if args.part == "tables":
        tables(kept, args)
        if args.csv is not None:
            write_csv(kept, args.csv)
        return
    torch.set_num_threads(1)
    case = load_case(args.data, args.count, args.others, args.model, args.mnist)
    if args.part == "calibration":
        calibration(case, args)
    else:
        PARTS[args.part](case, kept, args)


if __name__ == "__main__":
    main()
