"""Reconstruction from measurements, beside deepinv's methods on the same models: what results/restoration.md holds.

    python scripts/restoration.py rivals --data photographs-exact
    python scripts/restoration.py ours --data photographs-exact --evaluations 5 10 20 50 100
    python scripts/restoration.py ours --data photographs-exact --methods "dct I, η=0" "dct I, posterior noise"
    python scripts/restoration.py closed --data photographs-exact
    python scripts/restoration.py calibration --data photographs-exact
    python scripts/restoration.py tables --data photographs-exact

Data sets and operators are in `restoration_cases.py`, deepinv's methods in tests/support/rivals.py. A cell is one
operator, σ_y, method and number of evaluations: the first images of the score part, one draw of each, PSNR and SSIM of
every image. Finished cells are kept, a line each, in <out>/<data>.jsonl, and are not made again. Each rival has, in
every cell, the best of its settings (`rivals.GRIDS`) on other images, in mean PSNR; ours have one setting for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


@dataclass(frozen=True)
class Cell:
    """One operator, σ_y, method and number of evaluations of the network."""

    operator: str
    noise: float
    method: str
    evaluations: int


@dataclass
class Scores:
    """What is kept of a cell: PSNR in dB and SSIM of every image, and what an image has cost."""

    psnr: list[float]
    ssim: list[float]
    runs: float
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)


class Kept:
    """The finished cells of a data set, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path, self.cells = path, dict[Cell, Scores]()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.cells[Cell(**entry["cell"])] = Scores(**entry["scores"])

    def make(self, cell: Cell, make: Callable[[], Scores]) -> None:
        """The cell, unless it is there."""
        if cell in self.cells:
            return
        scores = self.cells[cell] = make()
        with self.path.open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "scores": asdict(scores)}, ensure_ascii=False) + "\n")
        found = f"{np.mean(scores.psnr):8.2f} dB{np.mean(scores.ssim):7.3f}{scores.seconds:8.1f} s"
        said = f"{cell.operator:<20s}σ_y {cell.noise:<6g}{cell.method:<28s}{cell.evaluations:>4d}"
        print(said, found, scores.settings or "", flush=True)


def scored(found: torch.Tensor, truth: torch.Tensor, runs: float, seconds: float, **settings: Any) -> Scores:
    """PSNR and SSIM of images cut to their range; an image that is not finite has the range's middle."""
    found = found.nan_to_num(0.0, 0.0, 0.0).clamp(*RANGE)
    each: dict[str, Any] = {"data_range": RANGE[1] - RANGE[0], "reduction": "none"}
    psnr = peak_signal_noise_ratio(found, truth, dim=(1, 2, 3), **each)
    ssim = structural_similarity_index_measure(found, truth, **each)
    return Scores([round(v, 3) for v in psnr.tolist()], [round(v, 4) for v in ssim.tolist()], runs, seconds, settings)


# ---- deepinv's methods ----------------------------------------------------------------------------------------------


def rival_cells(case: Case, kept: Kept, args: argparse.Namespace) -> None:
    known = kept if args.settings_of is None else Kept(args.out / f"{args.settings_of}.jsonl")
    for problem in problems(case, args):
        for name in args.methods or rivals.METHODS:
            for evaluations in args.evaluations if rivals.fits(name, problem.physics) else ():
                cell = Cell(problem.operator, problem.noise, name, evaluations)
                settings = known.cells[cell].settings if cell in known.cells else None
                kept.make(cell, partial(rival_scores, case, problem, name, evaluations, settings))


def rival_scores(case: Case, problem: Problem, name: str, evaluations: int, settings: dict[str, Any] | None) -> Scores:
    """With these settings, or the best of a rival's on other images."""

    def run(images: torch.Tensor, y: torch.Tensor, settings: dict[str, Any]) -> Scores:
        start = time.perf_counter()
        found, runs = rivals.restore(name, case.denoiser, problem.physics, y, evaluations, **settings)
        return scored(found, images, runs, time.perf_counter() - start, **settings)

    if settings is not None:
        return run(case.images, problem.y, settings)
    tried = [run(case.others, problem.other_y, settings) for settings in rivals.GRIDS[name]]
    best = max(tried, key=lambda scores: float(np.mean(scores.psnr)))
    return run(case.images, problem.y, best.settings)


# ---- ours -----------------------------------------------------------------------------------------------------------


#: What a method's name may end in, and what it means; without, η = 1 and the defaults of `ConditionedDenoiser`.
OPTIONS: dict[str, dict[str, Any]] = {
    "η=0": {"eta": 0.0},
    "η=0.5": {"eta": 0.5},
    "posterior noise": {"posterior_noise": True},
    "τ=10": {"tau": 10.0},
    "log-SNR": {"log_snr": True},
    "2 draws": {"draws": 2},
    "4 draws": {"draws": 4},
    "undamped": {"damped": False},
    "below 0.2": {"below": 0.2},
}


def our_cells(case: Case, kept: Kept, args: argparse.Namespace) -> None:
    table = table_of(case, args.out)
    for problem in problems(case, args):
        for method in args.methods or [f"{name} {kind}" for name in COVARIANCES for kind in ("I", "II")]:
            for steps in args.evaluations:
                cell = Cell(problem.operator, problem.noise, method, steps)
                kept.make(cell, partial(our_scores, case, table, problem, method, steps))


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


def closed_form_cells(case: Case, kept: Kept, args: argparse.Namespace) -> None:
    """What an exact mixture knows of x_0 given y: the mean, which no method can beat on its own images, and a draw."""
    for problem in problems(case, args) if isinstance(case.denoiser, dv.oracles.MixtureDenoiser) else ():
        start = time.perf_counter()
        A = matrix_of(problem.physics.A, case.denoiser.shape)
        found = exact_posterior(case.denoiser, A, problem.y, problem.noise, seed=0)
        seconds = time.perf_counter() - start
        for name, images in zip(("closed form, mean", "closed form, draw"), found, strict=True):
            cell = Cell(problem.operator, problem.noise, name, 0)
            kept.make(cell, partial(scored, images, case.images, 0, seconds))


# ---- calibration ----------------------------------------------------------------------------------------------------


def calibration(case: Case, args: argparse.Namespace) -> None:
    """rᵀS⁻¹r/dim(y), the mean over images, by level and covariance."""
    table = table_of(case, args.out)
    for problem in problems(case, args):
        print(f"\n{case.name}, {problem.operator}, σ_y = {problem.noise:g}, {len(case.images)} images\n")
        measurement = dv.Measurement.from_deepinv(problem.physics, problem.y)
        row("n", "σ/α", *COVARIANCES)
        row(*("---" for _ in range(2 + len(COVARIANCES))))
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


# ---- tables ---------------------------------------------------------------------------------------------------------


def row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def tables(kept: Kept, args: argparse.Namespace) -> None:
    """PSNR and SSIM of every cell, and paired differences of ours at 20 evaluations to rivals' at 100."""
    cells = kept.cells
    for noise in args.noise:
        print(f"\nσ_y = {noise:g}, PSNR in dB (SSIM)\n")
        row("method", "evaluations", *args.operators)
        row(*("---" for _ in range(len(args.operators) + 2)))
        there = dict.fromkeys((cell.method, cell.evaluations) for cell in cells if cell.noise == noise)
        for method, k in sorted(there, key=lambda pair: (pair[0] not in rivals.METHODS, pair[0], pair[1])):
            found = [cells.get(Cell(operator, noise, method, k)) for operator in args.operators]
            row(method, k, *("" if s is None else f"{np.mean(s.psnr):.2f} ({np.mean(s.ssim):.3f})" for s in found))
        paired(cells, args, noise)


def paired(cells: dict[Cell, Scores], args: argparse.Namespace, noise: float) -> None:
    """Mean over operators and images of PSNR differences, and the standard error over images."""
    print(f"\nσ_y = {noise:g}, ours with {args.ours_at} evaluations less deepinv's with {args.rivals_at}, dB\n")
    names = [name for name in rivals.METHODS if any(cell.method == name for cell in cells)]
    row("", *names)
    row(*("---" for _ in range(len(names) + 1)))
    for method in dict.fromkeys(cell.method for cell in cells if cell.method not in rivals.METHODS):
        shown = []
        for name in names:
            pairs = [
                (Cell(o, noise, method, args.ours_at), Cell(o, noise, name, args.rivals_at)) for o in args.operators
            ]
            both = [(cells[a].psnr, cells[b].psnr) for a, b in pairs if a in cells and b in cells]
            least = min((len(part) for pair in both for part in pair), default=0)  # the first images of all
            each = np.array([np.subtract(a[:least], b[:least]) for a, b in both]).mean(0) if both else np.array([])
            shown.append(f"{each.mean():+.2f} ± {each.std(ddof=1) / len(each) ** 0.5:.2f}" if len(each) > 1 else "")
        if any(shown):
            row(method, *shown)


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
    args = parser.parse_args(arguments)
    kept = Kept(args.out / f"{args.data}.jsonl")
    if args.part == "tables":
        tables(kept, args)
        return
    torch.set_num_threads(1)
    case = load_case(args.data, args.count, args.others, args.model, args.mnist)
    if args.part == "calibration":
        calibration(case, args)
    else:
        PARTS[args.part](case, kept, args)


if __name__ == "__main__":
    main()
