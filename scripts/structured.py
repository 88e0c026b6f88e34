"""Covariances that follow the image beside tables and solvers: what results/structured.md holds.

    python scripts/structured.py kernels --data photographs-exact
    python scripts/structured.py frechet --data photographs-exact --budgets 5 10 20
    python scripts/structured.py second --data photographs-exact --budgets 5 10
    python scripts/structured.py bits --data photographs-exact
    python scripts/structured.py tables --data photographs-exact

kernels  KL of the exact Gaussian of x_0 | x_t to each covariance's, per dimension, by noise level (the mixture alone)
frechet  Fréchet distance at equal network-evaluation equivalents: a method has the most steps that fit into a budget
second   the same for `MultistepSampler`, by shares of the last evaluation and of the table's covariance
bits     bounds of bits/dim at the same numbers of steps
tables   what is kept, in Markdown

Finished cells are kept, a line each, in <out>/<data>.jsonl, and are not made again. All methods take steps evenly
spaced in log-SNR but those called "even".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restoration_cases import load_case, table_of
from restoration_cells import row
from structured_methods import Made, largest, of_own_samples, samplers, second_order

import diffusion_var as dv
from diffusion_var.data import digits_splits, open_images, photographs_part
from diffusion_var.metrics import collect, frechet_distance, load_features

DATA = ("photographs-exact", "photographs-trained", "digits", "mnist")
LEVELS = (25, 100, 200, 300, 500, 700, 900)


@dataclass(frozen=True)
class Cell:
    """One method at one budget, with one seed."""

    part: str
    method: str
    budget: int
    seed: int
    count: int


# ---- Fréchet distances ----------------------------------------------------------------------------------------------


class Kept:
    """Finished cells and what they gave, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path, self.cells = path, dict[Cell, dict[str, Any]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.cells[Cell(**entry["cell"])] = entry["found"]

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        self.cells[cell] = found
        with self.path.open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "found": found}, ensure_ascii=False) + "\n")
        print(asdict(cell), found, flush=True)


def frechet(
    case: Any, images: torch.Tensor | None, kept: Kept, made: Made, cost: dv.ProductCost, args: argparse.Namespace
) -> None:
    """Fréchet distances of every method, budget and seed that is not kept."""
    features, reference = reference_of(case, images)
    exact = Exact(case.denoiser) if images is None else None
    for budget in args.budgets:
        for name in args.methods or [*made, *(["exact samples"] if exact else [])]:
            sampler = exact if name == "exact samples" else largest(made[name], budget, cost)
            for seed in args.seeds if sampler is not None else ():
                cell = Cell(args.part, name, budget, seed, args.count)
                if cell in kept.cells:
                    continue
                start = time.perf_counter()
                samples = sampler.sample(args.count, seed, batch_size=250)
                distance = float(frechet_distance(collect(samples, features).statistics, reference))
                facts = {"steps": len(sampler.kernels), "equivalents": round(sampler.equivalents(cost), 2)}
                seconds = round(time.perf_counter() - start, 1)
                kept.add(cell, {"frechet": round(distance, 4), **facts, "seconds": seconds})


# ---- kernels --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def kernels(case: Any, table: dv.VarianceTable, args: argparse.Namespace) -> None:
    """KL(N(x̂_0, C) ‖ N(x̂_0, Σ)) per dimension, the mean over images, by level: C the mixture's own of each x_t."""
    mixture = case.denoiser
    kinds: dict[str, dv.ReverseCovariance] = {
        "isotropic": dv.Analytic(table),
        "dct": dv.Analytic(table, structure="dct"),
        **{
            f"jacobian, {bands} bands, {probes} probes": dv.Jacobian(table, bands=bands, probes=probes)
            for bands, probes in ((4, 1), (8, 1), (16, 1), (8, 4), (16, 4))
        },
        "exact dct": dv.ExactCovariance(mixture, "dct"),
    }
    x_0 = mixture.sample(args.count, seed=11)
    row("n", "log SNR", *kinds)
    row(*("---" for _ in range(len(kinds) + 2)))
    for n in LEVELS:
        level = mixture.schedule.level(n)
        eps = torch.from_numpy(np.random.default_rng(n).standard_normal(x_0.shape, dtype=np.float32))
        x_t = level.alpha * x_0 + level.sigma * eps
        own = mixture.posterior_covariance(x_t.double(), level)
        exact_log_det = torch.linalg.slogdet(own)[1]
        shown = []
        for covariance in kinds.values():
            posterior = covariance.prepare(mixture)(x_t, n)
            found = covariance.posterior_covariance(posterior, level, mixture.schedule)
            d = x_0[0].numel()
            turned = torch.stack([diagonal_in(found.structure, one, x_0.shape[1:]) for one in own])
            wide = found.variance.double().expand(len(x_0), *x_0.shape[1:]).flatten(1).clamp_min(1e-12)
            kl = 0.5 * ((turned / wide).sum(1) - d + wide.log().sum(1) - exact_log_det) / d
            shown.append(f"{float(kl.mean()):.4f}")
        row(n, f"{level.log_snr:.2f}", *shown)


def diagonal_in(structure: Any, covariance: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """diag(B C Bᵀ), (d,)."""
    turned = structure.forward(covariance.view(-1, *shape)).flatten(1)
    found: torch.Tensor = structure.forward(turned.T.reshape(-1, *shape)).flatten(1).diagonal()
    return found


# ---- bits/dim -------------------------------------------------------------------------------------------------------


def bits(case: Any, table: dv.VarianceTable, args: argparse.Namespace) -> None:
    """Bounds on the density of the mixture's own samples, as K grows, with the differences to the exact one."""
    mixture = case.denoiser
    images = mixture.sample(args.count, seed=3)
    exact = mixture.density_bits(images)
    print(f"exact: {exact.mean():.4f} ± {exact.std() / len(images) ** 0.5:.4f} bits/dim, {len(images)} images")
    kinds: dict[str, dv.ReverseCovariance] = {
        "isotropic": dv.Analytic(table),
        "dct": dv.Analytic(table, structure="dct"),
        "jacobian": dv.Jacobian(table),
        "jacobian, 4 probes": dv.Jacobian(table, probes=4),
        **{f"lanczos, {m}": dv.Lanczos(table, steps=m) for m in (3, 5)},
        "exact dct": dv.ExactCovariance(mixture, "dct"),
        "exact full": dv.ExactCovariance(mixture),
    }
    row("covariance", *(f"K = {k}" for k in args.budgets))
    row(*("---" for _ in range(len(args.budgets) + 1)))
    for name in args.methods or kinds:
        shown = []
        for k in args.budgets:
            bound = dv.density_bound(mixture, kinds[name], images, k, decoder_variance="covariance")
            shown.append(f"{float(bound):.3f} (+{float(bound) - exact.mean():.3f})")
        row(name, *shown)


# ---- tables ---------------------------------------------------------------------------------------------------------


def tables(kept: Kept, args: argparse.Namespace) -> None:
    """The mean over seeds ± its standard error, the number of steps, and the ratio to DPM-Solver++'s mean."""
    for part in ("frechet", "second"):
        cells = [cell for cell in kept.cells if cell.part == part and cell.count == args.count]
        budgets = sorted({cell.budget for cell in cells})
        if cells:
            print(f"\n{part}, {args.count} samples: distance, steps; ratio to DPM-Solver++(2M)\n")
            row("", *(f"{budget} equivalents" for budget in budgets))
            row(*("---" for _ in range(len(budgets) + 1)))
        for method in dict.fromkeys(cell.method for cell in cells):
            row(method, *(shown(kept, args.count, part, method, budget) for budget in budgets))


def shown(kept: Kept, count: int, part: str, method: str, budget: int) -> str:
    found = {
        cell.seed: one
        for cell, one in kept.cells.items()
        if (cell.part, cell.method, cell.budget, cell.count) == (part, method, budget, count)
    }
    if not found:
        return ""
    rival = [kept.cells.get(Cell("frechet", "DPM-Solver++(2M)", budget, seed, count)) for seed in found]
    values = np.array([one["frechet"] for one in found.values()])
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    text = f"{values.mean():.2f}{error}, {next(iter(found.values()))['steps']}"
    if all(one is not None for one in rival):
        others = np.array([one["frechet"] for one in rival if one is not None])
        text += f"; {values.mean() / others.mean():.2f}"
    return text


def load(args: argparse.Namespace) -> tuple[Any, torch.Tensor | None]:
    """A case of restoration's, and the images that samples of a network are compared to."""
    case = load_case(args.data, 100, 0, args.model, args.mnist)
    if args.data == "photographs-trained":
        return case, photographs_part("fit", 16).images
    if args.data == "digits":
        return case, digits_splits().train.images
    if args.data == "mnist":
        return case, torch.stack([torch.as_tensor(image) for image in open_images(f"{args.mnist}:train_x[:20000]")])
    return of_own_samples(case), None


class Exact:
    """A mixture's own samples, in a sampler's place: the distance that this many of the truth have."""

    kernels: tuple[Any, ...] = ()

    def __init__(self, mixture: dv.oracles.MixtureDenoiser) -> None:
        self.mixture = mixture

    def equivalents(self, cost: dv.ProductCost) -> float:
        return 0.0

    def sample(self, count: int, seed: int, batch_size: int) -> torch.Tensor:
        return self.mixture.sample(count, seed=1000 + seed)


def reference_of(case: Any, images: torch.Tensor | None) -> tuple[Any, Any]:
    """The features of a case, and the statistics of what its samples should be."""
    features = load_features("digits" if case.name == "digits" else "pixels")
    return features, case.denoiser.moments() if images is None else collect(images, features).statistics


def cost_of(denoiser: dv.Denoiser, kept: Kept, given: float | None) -> dv.ProductCost:
    """The price of a product: given, or measured once; of a mixture, which is no network, one evaluation."""
    if given is None and isinstance(denoiser, dv.oracles.MixtureDenoiser):
        given = 1.0
    cell = Cell("product cost", "", 0, 0, 0)
    if given is not None:
        return dv.ProductCost.forward(given)
    if cell not in kept.cells:
        kept.add(cell, {"with_mean": dv.product_cost(denoiser).with_mean})
    return dv.ProductCost.forward(kept.cells[cell]["with_mean"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kernels", "frechet", "second", "bits", "tables"))
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 20], help="evaluation-equivalents (bits: K)")
    parser.add_argument("--methods", nargs="+", help="names of rows of the tables; by default all")
    parser.add_argument("--heads", nargs="+", default=[], help="NAME=FILE of trained heads")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument(
        "--product-cost", type=float, help="of a Jacobian-vector product, in evaluations; else measured"
    )
    parser.add_argument("--model", help="a network's folder in place of the bundled one")
    parser.add_argument("--mnist", default="mnist.npz", help="MNIST's images, train_x and test_x")
    parser.add_argument("--out", type=Path, default=Path("runs/structured"), help="where cells and tables are kept")
    args = parser.parse_args(arguments)
    kept = Kept(args.out / f"{args.data}.jsonl")
    if args.part == "tables":
        tables(kept, args)
        return
    torch.set_num_threads(1)
    case, reference = load(args)
    table = table_of(case, args.out)
    if args.part in ("kernels", "bits"):
        exact = isinstance(case.denoiser, dv.oracles.MixtureDenoiser)
        if not exact:
            raise SystemExit(
                f"{args.part} compares with a closed form, which {args.data} has not; take photographs-exact"
            )
        (kernels if args.part == "kernels" else bits)(case, table, args)
        return
    made = second_order(case.denoiser, table) if args.part == "second" else samplers(case.denoiser, table, args.heads)
    frechet(case, reference, kept, made, cost_of(case.denoiser, kept, args.product_cost), args)


if __name__ == "__main__":
    main()
