"""How far a derivative is a covariance, of an exact mean and of networks: what results/structured.md holds of both.

    python scripts/structured_derivatives.py draws                     # of the photographs' mixture, three minutes
    python scripts/structured_derivatives.py levels --data digits
    python scripts/structured_derivatives.py levels --data photographs-trained
    python scripts/structured_derivatives.py positive --data digits --count 10000

draws     KL(N(0, Σ) ‖ the law of a Lanczos draw) per dimension, of one image's exact Σ and so many draws, by steps
levels    of a network, by noise level: the share of bands whose estimate is negative, of eigenvalues that Lanczos cuts,
          the weight that it gives the derivative, what a draw has of the table's noise, and how far a difference of
          evaluations is from the forward derivative (the median; an image that is clipped in whole has no derivative)
positive  how many values of so many images, sampled with the Jacobian's covariance, are not finite
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restoration_cases import Case, load_case, table_of
from structured_methods import of_own_samples
from table_rows import header, row

import diffusion_var as dv

DATA = ("photographs-exact", "photographs-trained", "digits", "mnist")
STEPS = ((100, 30), (300, 200), (500, 300), (700, 500), (850, 700))
PRODUCTS = (1, 3, 5, 10)
LEVELS = (20, 100, 300, 500, 700, 900, 999)


# ---- the law of a draw ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def draws(case: Case, table: dv.VarianceTable, count: int) -> None:
    """KL by steps t → s at η = 0, with the table and without, and of the table's own draws."""
    mixture = case.denoiser
    assert isinstance(mixture, dv.oracles.MixtureDenoiser)
    x_0 = mixture.sample(1, seed=7)
    header("t → s", "the table's", *(f"{name}, {m}" for name in ("with it", "without") for m in PRODUCTS))
    for t, s in STEPS:
        stream = np.random.default_rng(t)
        level = mixture.schedule.level(t)
        kernel = dv.ReverseKernel(mixture.schedule, t, s, 0.0)
        x_t = level.alpha * x_0 + level.sigma * torch.from_numpy(stream.standard_normal(x_0.shape, dtype=np.float32))
        exact = kernel.gain**2 * mixture.posterior_covariance(x_t.double(), level)[0]
        z = torch.from_numpy(stream.standard_normal((count, *mixture.shape), dtype=np.float32))
        found = [law(dv.Lanczos(known, m), mixture, x_t, kernel, exact, z) for known in (table, None) for m in PRODUCTS]
        row(f"{t} → {s}", of_table(table, mixture, kernel, exact), *(f"{value:.4f}" for value in found))


def law(
    covariance: dv.Lanczos, mixture: dv.Denoiser, x_t: torch.Tensor, kernel: Any, exact: torch.Tensor, z: torch.Tensor
) -> float:
    """KL of N(0, exact) to draws, whose variances along the eigenvectors of M are measured over z, relative to z's."""
    posterior = covariance.prepare(mixture)(x_t.expand(len(z), *x_t.shape[1:]), kernel.level_t)
    found = covariance(posterior, kernel)
    assert found is not None
    B, root = basis(found.structure, x_t.shape[1:]), found.variance.double().sqrt().expand(x_t.shape[1:]).flatten()
    values, vectors = torch.linalg.eigh((B @ exact @ B.T) / root / root[:, None])  # M of the draw L M^{1/2} z
    drawn = (found.colour(z).double().flatten(1) @ B.T / root) @ vectors
    own = (z.double().flatten(1) @ B.T) @ vectors
    ratio = drawn.square().mean(0) / (values.clamp_min(1e-12) * own.square().mean(0))
    return float(0.5 * (1.0 / ratio - 1.0 + ratio.log()).mean())


def of_table(table: dv.VarianceTable, mixture: dv.Denoiser, kernel: Any, exact: torch.Tensor) -> str:
    """KL of N(0, exact) to the table's own N(0, Σ)."""
    found = dv.Analytic(table, structure="dct")(None, kernel)
    B, variance = basis(found.structure, mixture.shape), found.variance.double().flatten()
    ratio = torch.linalg.eigvalsh((B @ exact @ B.T) / variance.sqrt() / variance.sqrt()[:, None]).clamp_min(1e-12)
    return f"{float(0.5 * (ratio - 1.0 - ratio.log()).mean()):.3f}"


def basis(structure: dv.Structure, shape: Sequence[int]) -> torch.Tensor:
    """B as a matrix (d, d): its columns are the unit vectors' coefficients."""
    unit = torch.eye(int(np.prod(shape)), dtype=torch.float64).view(-1, *shape)
    return structure.forward(unit).flatten(1).T


# ---- networks -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def levels(case: Case, table: dv.VarianceTable) -> None:
    """At held-out images with noise; Lanczos with three products, the Jacobian with 8 bands and one."""
    names = ("negative bands", "beyond 4 errors", "eigenvalues cut", "weight of J", "draw² / table", "difference")
    header("n", *names)
    for n in LEVELS:
        stream = np.random.default_rng(n)
        level = case.denoiser.schedule.level(n)
        eps, z, v = (torch.from_numpy(stream.standard_normal(case.images.shape, dtype=np.float32)) for _ in range(3))
        x_t = level.alpha * case.images + level.sigma * eps
        bands, whole = dv.Jacobian(table, bands=8), dv.Lanczos(table)
        bands.posterior_covariance(bands.prepare(case.denoiser)(x_t, n), level)
        negative, certain, total = bands.counts()
        kernel = dv.ReverseKernel(case.denoiser.schedule, n, max(n // 2, 1), 0.0)
        found = whole(whole.prepare(case.denoiser)(x_t, n), kernel)
        assert found is not None
        drawn = found.structure.forward(found.colour(z)) / found.variance.sqrt()
        products = [
            case.denoiser.with_jacobian(None, derivative)(x_t, n).jacobian.times(v)
            for derivative in ("forward", "difference")
        ]
        error = (products[1] - products[0]).flatten(1).norm(dim=1) / products[0].flatten(1).norm(dim=1)
        shares = f"{negative / total:.1%}", f"{certain / total:.2%}", f"{whole.cut[0] / whole.cut[1]:.1%}"
        row(n, *shares, f"{whole.weight:.3f}", f"{drawn.square().mean():.2f}", f"{float(error.nanmedian()):.2%}")


def positive(case: Case, table: dv.VarianceTable, count: int) -> None:
    """Five steps, η = 0.5, the Jacobian with 8 bands."""
    covariance = dv.Jacobian(table, bands=8)
    sampler = dv.Sampler(case.denoiser, covariance, [1, 100, 400, 700, 1000], eta=0.5)
    bad = sum(int((~torch.isfinite(images)).sum()) for images in sampler.stream(range(count), batch_size=500))
    print(f"{bad} values of {count} images are not finite")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("draws", "levels", "positive"))
    parser.add_argument("--data", choices=DATA, default="photographs-exact")
    parser.add_argument("--count", type=int, default=100, help="draws, or images")
    parser.add_argument("--model", help="a network's folder in place of the bundled one")
    parser.add_argument("--mnist", default="mnist.npz", help="MNIST's images, train_x and test_x")
    parser.add_argument("--out", type=Path, default=Path("runs/structured"), help="where tables are kept")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore", dv.DiffusionVarWarning)  # what they say is what is measured here
    torch.set_num_threads(1)
    images = 1 if args.part in ("draws", "positive") else args.count
    case = of_own_samples(load_case(args.data, images, 0, args.model, args.mnist))
    table = table_of(case, args.out)
    if args.part == "draws":
        draws(case, table, args.count)
    elif args.part == "positive":
        positive(case, table, args.count)
    else:
        levels(case, table)


if __name__ == "__main__":
    main()
