"""Covariances that follow the image beside tables and solvers: what results/structured.md holds.

    python scripts/structured.py kernels --data photographs-exact
    python scripts/structured.py frechet --data photographs-exact --budgets 5 10 20
    python scripts/structured.py second --data photographs-exact --budgets 5 10
    python scripts/structured.py bits --data photographs-exact --equal-steps --budgets 5 10 --count 16
    python scripts/structured.py tables --data photographs-exact

kernels  KL of the exact Gaussian of x_0 | x_t to each covariance's, per dimension, by noise level (the mixture alone)
frechet  Fréchet distance at equal network-evaluation equivalents: a method has the most steps that fit into a budget
second   the same for `MultistepSampler`, by shares of the last evaluation and of the table's covariance
bits     bounds of bits/dim, at equal equivalents too, or at equal numbers of steps
tables   what is kept, in Markdown

Finished cells are kept, a line each, in <out>/<data>.jsonl, and are not made again. All methods take steps evenly
spaced in log-SNR but those called "even".
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_cells import Kept
from restoration_cases import load_case, table_of
from structured_cells import Cell, Cells, Found, tables
from structured_methods import Made, covariances, largest, of_own_samples, price, samplers, second_order, wanted
from table_rows import header, row

import diffusion_var as dv
from diffusion_var.data import digits_splits, open_images, photographs_part
from diffusion_var.metrics import collect, frechet_distance, load_features

DATA = ("photographs-exact", "photographs-trained", "digits", "mnist")
LEVELS = (25, 100, 200, 300, 500, 700, 900)
#: Images whose bits/dim are one number; their differences between methods are paired.
GROUP = 8
#: Images that decoders are measured on.
DECODED = 400


def add(kept: Cells, cell: Cell, found: Found) -> None:
    """Keep it, and say what it is."""
    kept.add(cell, found)
    mean = sum(found.values) / len(found.values)
    said = f"{cell.part:<20s}{cell.method:<28s}{cell.budget:>4d}, seed {cell.seed}: {mean:.4f}, {found.steps} steps"
    print(f"{said}, {found.equivalents:g} equivalents, {found.seconds:.0f} s", flush=True)


# ---- Fréchet distances ----------------------------------------------------------------------------------------------


def frechet(
    case: Any, images: torch.Tensor | None, kept: Cells, made: Made, cost: dv.ProductCost, args: argparse.Namespace
) -> None:
    """Fréchet distances of every method, budget and seed that is not kept."""
    features, reference = reference_of(case, images)
    exact = Exact(case.denoiser) if images is None else None
    for budget in args.budgets:
        for name in wanted(args.methods, [*made, *(["exact samples"] if exact else [])]):
            fitting = (exact, 0.0) if name == "exact samples" and exact else largest(made[name], budget, cost)
            if fitting is None:
                continue
            sampler, spent = fitting
            for seed in args.seeds:
                cell = Cell(args.part, name, budget, seed, args.count)
                if cell in kept.cells:
                    continue
                start = time.perf_counter()
                samples = sampler.sample(args.count, seed, batch_size=250)
                distance = float(frechet_distance(collect(samples, features).statistics, reference))
                seconds = round(time.perf_counter() - start, 1)
                add(kept, cell, Found([round(distance, 4)], len(sampler.kernels), round(spent, 2), seconds))


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
    header("n", "log SNR", *kinds)
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


def bits(case: Any, table: dv.VarianceTable, kept: Cells, cost: dv.ProductCost, args: argparse.Namespace) -> None:
    """Bounds of groups of images, of every covariance and budget that is not kept: of a network bits/dim of held-out
    images, of a mixture the density of its own samples. All K terms of a bound have their products."""
    mixture = case.denoiser if isinstance(case.denoiser, dv.oracles.MixtureDenoiser) else None
    groups = (case.images if mixture is None else mixture.sample(args.count, seed=3)).split(GROUP)
    kinds = covariances(case.denoiser, table, args.heads)
    decoders = None
    if args.optimal:
        decoders = dv.decoder_costs(case.denoiser, case.table_images[:DECODED], table)
    part = "bits" + " on optimal paths" * args.optimal + " at equal steps" * args.equal_steps
    for budget in args.budgets:
        for name in wanted(args.methods, [*kinds]):
            cell, covariance = Cell(part, name, budget, 0, args.count), kinds[name]()
            each = 1.0 + price(covariance, cost).of_step(covariance.products, covariance.products_with_mean)
            steps = budget if args.equal_steps else int(budget / each + 1e-9)
            countable = args.equal_steps or covariance.diagonal or not covariance.products
            if cell in kept.cells or steps < 2 or not countable:  # solves have as many products as they need
                continue
            start = time.perf_counter()
            path = path_of(case, table, steps, decoders)
            values = [bound(case, covariance, group, k, **path) for k, group in enumerate(groups)]
            add(kept, cell, Found(values, steps, round(steps * each, 2), round(time.perf_counter() - start, 1)))
        exact = Cell(part, "exact density", budget, 0, args.count)
        if mixture is not None and exact not in kept.cells:
            add(kept, exact, Found([float(mixture.density_bits(group).mean()) for group in groups], 0, 0.0, 0.0))


def path_of(case: Any, table: dv.VarianceTable, count: int, decoders: Any) -> dict[str, Any]:
    """The steps of a bound, and its decoder where the steps do not bring one."""
    if decoders is not None:
        return {"steps": dv.steps.optimal(table, count, structure="dct", decoder_variance=decoders)}
    levels = dv.steps.log_snr_levels(case.denoiser.schedule, count)
    if isinstance(case.denoiser, dv.oracles.MixtureDenoiser):
        return {"steps": levels, "decoder_variance": "covariance"}
    return {"steps": levels, "decoder_variance": float(table.posterior_variance(1))}


def bound(case: Any, covariance: dv.ReverseCovariance, images: torch.Tensor, seed: int, **path: Any) -> float:
    of = dv.density_bound if isinstance(case.denoiser, dv.oracles.MixtureDenoiser) else dv.bits_per_dim
    return float(of(case.denoiser, covariance, images, seed=seed, **path))


# ---- what is compared -----------------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Any, torch.Tensor | None]:
    """A case of restoration's, and the images that samples of a network are compared to."""
    case = load_case(args.data, args.count if args.part == "bits" else 100, 0, args.model, args.mnist)
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

    def sample(self, count: int, seed: int, batch_size: int) -> torch.Tensor:
        return self.mixture.sample(count, seed=1000 + seed)


def reference_of(case: Any, images: torch.Tensor | None) -> tuple[Any, Any]:
    """The features of a case, and the statistics of what its samples should be."""
    features = load_features("digits" if case.name == "digits" else "pixels")
    return features, case.denoiser.moments() if images is None else collect(images, features).statistics


def cost_of(denoiser: dv.Denoiser, kept: Cells, given: float | None) -> dv.ProductCost:
    """The price of a product: given, or measured once; of a mixture, which is no network, one evaluation."""
    if given is None and isinstance(denoiser, dv.oracles.MixtureDenoiser):
        given = 1.0
    cell = Cell("product cost", "", 0, 0, 0)
    if given is not None:
        return dv.ProductCost.forward(given)
    if cell not in kept.cells:
        kept.add(cell, Found([dv.product_cost(denoiser).with_mean], 0, 0.0, 0.0))
    return dv.ProductCost.forward(kept.cells[cell].values[0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kernels", "frechet", "second", "bits", "tables"))
    parser.add_argument("--data", choices=DATA, required=True)
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 10, 20], help="evaluation-equivalents")
    parser.add_argument("--methods", nargs="+", help="names of rows of the tables; by default all")
    parser.add_argument("--heads", nargs="+", default=[], help="NAME=FILE of trained heads")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--equal-steps", action="store_true", help="bits: budgets are numbers of steps")
    parser.add_argument(
        "--optimal", action="store_true", help="bits of a network: the dct table's own best steps, a measured decoder"
    )
    parser.add_argument(
        "--product-cost", type=float, help="of a Jacobian-vector product, in evaluations; else measured"
    )
    parser.add_argument("--model", help="a network's folder in place of the bundled one")
    parser.add_argument("--mnist", default="mnist.npz", help="MNIST's images, train_x and test_x")
    parser.add_argument("--out", type=Path, default=Path("runs/structured"), help="where cells and tables are kept")
    args = parser.parse_args(arguments)
    kept: Cells = Kept(args.out / f"{args.data}.jsonl", Cell, Found)
    if args.part == "tables":
        tables(kept, args.count)
        return
    torch.set_num_threads(1)
    case, reference = load(args)
    table = table_of(case, args.out)
    if args.part == "kernels":
        if not isinstance(case.denoiser, dv.oracles.MixtureDenoiser):
            raise SystemExit(f"kernels compares with a closed form, which {args.data} has not; take photographs-exact")
        kernels(case, table, args)
        return
    cost = cost_of(case.denoiser, kept, args.product_cost)
    if args.part == "bits":
        warnings.simplefilter("ignore", dv.DiffusionVarWarning)  # `structured_derivatives.py` measures what they say
        bits(case, table, kept, cost, args)
        return
    made = second_order(case.denoiser, table) if args.part == "second" else samplers(case.denoiser, table, args.heads)
    frechet(case, reference, kept, made, cost, args)


if __name__ == "__main__":
    main()
