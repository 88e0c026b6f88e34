"""Natural images with an exact model beside a trained network: what results/photographs.md holds.

    python scripts/photographs.py bits                      # the bound of the mixture's own samples, as K grows
    python scripts/photographs.py residuals --plot residuals.png
    python scripts/photographs.py frechet

The exact model is a mixture of full-covariance Gaussians fitted to 16×16 RGB patches of scikit-learn's two photographs
(`photographs:fit`); the network, of the same patches, is `photographs`, or a folder given as --model. Tables come in
Markdown.

bits       bits/dim of the density of the mixture's samples: exact, and bounds with each covariance
residuals  E‖x_0 − x̂_0‖²/d by noise level: of the network and of the mixture, on held-out patches and on the mixture's
           own samples, where no mean has a smaller one than the mixture
frechet    Fréchet distances of pixels at few steps: of the exact mean to the mixture's moments, of the network to those
           of the patches that it was trained on
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from table_rows import header, row

import diffusion_var as dv
from diffusion_var.data import photographs_part, to_float
from diffusion_var.metrics import FeatureStatistics, collect, frechet_distance, load_features

LEVELS = (2, 10, 25, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000)


# ---- bits/dim -------------------------------------------------------------------------------------------------------


def bits(mixture: dv.oracles.MixtureDenoiser, steps: Sequence[int], count: int, own: int) -> None:
    """Bounds of `count` samples, and of the first `own` with each image's own full covariance."""
    images = mixture.sample(count, seed=3)
    exact = mixture.density_bits(images)
    print(
        f"exact: {exact.mean():.4f} ± {exact.std() / count**0.5:.4f} ({count} images), {exact[:own].mean():.4f} ({own})"
    )
    kinds: dict[str, tuple[dv.ReverseCovariance, int]] = {
        f"{name}, averaged": (dv.ExactCovariance(mixture, name, per_image=False), count)
        for name in ("isotropic", "pixel", "dct", "full")
    }
    kinds |= {"dct, of each image": (dv.ExactCovariance(mixture, "dct"), count)}
    kinds |= {"full, of each image": (dv.ExactCovariance(mixture), own)} if own else {}
    header("covariance", *(f"K = {k}" for k in steps))
    for name, (covariance, used) in kinds.items():
        cells = []
        for k in steps:
            bound = dv.density_bound(mixture, covariance, images[:used], k, decoder_variance="covariance")
            cells.append(f"{float(bound):.3f} (+{float(bound) - exact[:used].mean():.3f})")
        row(name, *cells)


# ---- residuals ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def residual(denoiser: dv.Denoiser, x_0: torch.Tensor, n: int) -> float:
    """E‖x_0 − x̂_0‖²/d at index n, with the same noise for every denoiser."""
    eps = np.random.default_rng(n).standard_normal(x_0.shape, dtype=np.float32)
    alpha, sigma = float(denoiser.schedule.alpha[n]), float(denoiser.schedule.sigma[n])
    x_t = alpha * x_0 + sigma * torch.from_numpy(eps)
    error = torch.cat([denoiser(part, n).mean for part in x_t.split(250)]) - x_0
    return float(error.double().square().mean())


def residuals(
    mixture: dv.oracles.MixtureDenoiser, network: dv.Denoiser, size: int, count: int, plot: str | None
) -> None:
    """Residuals by level, and their ratios to the mixture's."""
    held_out = to_float(photographs_part("score", size, count).images)
    seen = to_float(photographs_part("fit", size, count).images)
    own = mixture.sample(count, seed=5)
    # A Gaussian's samples leave the range of images.
    unclipped = dv.Denoiser(network.network, network.schedule, network.prediction, network.shape, clip=None)
    found = []
    header(
        "n",
        "σ/α",
        "network, held out",
        "mixture, held out",
        "ratio",
        "network, trained on",
        "samples: network",
        "exact",
        "ratio",
    )
    for n in (n for n in LEVELS if n <= mixture.schedule.num_steps):
        exact = float(mixture.mean_posterior_covariance(n, min(count, 512)).trace()) / held_out[0].numel()
        values = [residual(network, held_out, n), residual(mixture, held_out, n), residual(network, seen, n)]
        values += [residual(unclipped, own, n), exact]
        noise = float(mixture.schedule.sigma[n] / mixture.schedule.alpha[n])
        found.append((noise, *values))
        shown = [f"{value:.3g}" for value in values]
        ratios = f"{values[0] / values[1]:.2f}", f"{values[3] / values[4]:.2f}"
        row(n, f"{noise:.3g}", shown[0], shown[1], ratios[0], shown[2], shown[3], shown[4], ratios[1])
    if plot is not None:
        draw(np.array(found).T, plot)


def draw(found: np.ndarray, path: str) -> None:
    """Residuals, and ratios, against the relative noise σ/α."""
    from matplotlib.figure import Figure

    noise, held_out, mixture, seen, own, exact = found
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(noise, noise**2, color="0.8", label="(σ/α)², no denoising")
    left.loglog(noise, mixture, color="0.45", marker=".", label="mixture, held-out patches")
    left.loglog(noise, held_out, color="tab:blue", marker=".", label="network, held-out patches")
    left.loglog(noise, seen, color="tab:blue", ls=":", label="network, patches it was trained on")
    left.set(xlabel="relative noise σ/α", ylabel="mean squared error of x̂₀, per dimension", ylim=(exact.min() / 3, 3))
    left.legend(fontsize=7)
    right.loglog(noise, held_out / mixture, color="tab:blue", marker=".", label="held-out patches: network / mixture")
    right.loglog(noise, own / exact, color="tab:orange", marker=".", label="mixture's samples: network / exact")
    right.axhline(1.0, color="0.45", lw=0.8)
    right.set(xlabel="relative noise σ/α", ylabel="ratio of mean squared errors")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=110)


# ---- Fréchet distances ----------------------------------------------------------------------------------------------


def frechet(denoiser: dv.Denoiser, table: dv.VarianceTable, reference: Any, steps: Sequence[int], count: int) -> None:
    """Fréchet distances of pixels of `count` samples, the mean of two seeds and half of their difference."""
    dct = dv.Analytic(table, structure="dct")
    methods: list[tuple[str, dv.ReverseCovariance, float]] = [
        ("DDPM, β̃", dv.FixedSmall(), 1.0),
        ("DDIM", dv.FixedSmall(), 0.0),
        ("Analytic-DDPM isotropic", dv.Analytic(table), 1.0),
        ("Analytic-DDIM isotropic", dv.Analytic(table), 0.0),
        ("Analytic-DDIM pixel", dv.Analytic(table, structure="pixel"), 0.0),
        ("Analytic-DDPM dct", dct, 1.0),
        ("Analytic-DDIM dct", dct, 0.0),
    ]
    header("", *(f"{k} evaluations" for k in steps))
    samplers: dict[str, Callable[[int], dv.Sampler]] = {
        name: partial(plain, denoiser, covariance, eta) for name, covariance, eta in methods
    }
    samplers |= {
        "DPM-Solver++(2M)": partial(solver, denoiser, "dpm_solver_pp"),
        "UniPC, order 2": partial(solver, denoiser, "unipc"),
    }
    for name, made in samplers.items():
        cells = []
        for k in steps:
            sampler = made(k)
            samples = [sampler.sample(count, seed, batch_size=250) for seed in (0, 1)]
            a, b = (frechet_distance(statistics(part), reference) for part in samples)
            cells.append(f"{(a + b) / 2:.1f} ± {abs(a - b) / 2:.1f}")
        row(name, *cells)


def plain(denoiser: dv.Denoiser, covariance: dv.ReverseCovariance, eta: float, steps: int) -> dv.Sampler:
    """A sampler on even steps."""
    return dv.Sampler(denoiser, covariance, steps, eta)


def solver(denoiser: dv.Denoiser, name: str, steps: int) -> dv.Sampler:
    """One of diffusers' solvers, on the steps in log-SNR that it is usually given; one evaluation a step."""
    return dv.SolverSampler(denoiser, name, dv.steps.log_snr_levels(denoiser.schedule, steps))


def statistics(images: torch.Tensor) -> FeatureStatistics:
    """Mean and covariance of the pixels."""
    return collect(images, load_features("pixels")).statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("bits", "residuals", "frechet"))
    parser.add_argument("--model", default="photographs", help="network of the patches")
    parser.add_argument("--components", type=int, default=6)
    parser.add_argument("--size", type=int, default=16, help="side of the patches")
    parser.add_argument("--fit-images", type=int, default=20_000, help="patches that the mixture may be fitted to")
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--own", type=int, default=40, help="images whose own full covariance is tried (bits)")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 25, 50])
    parser.add_argument("--plot", help="PNG of the residuals")
    args = parser.parse_args()
    mixture = dv.oracles.fit_mixture(photographs_part("fit", args.size, args.fit_images).images, args.components)
    if args.part == "bits":
        bits(mixture, args.steps, args.count, args.own)
        return
    network = dv.Denoiser.from_pretrained(args.model)
    if args.part == "residuals":
        residuals(mixture, network, args.size, args.count, args.plot)
        return
    print("the exact mean:")
    table = dv.estimate(mixture, mixture.sample(4 * args.count, seed=7), 0.01)
    frechet(mixture, table, mixture.moments(), args.steps, args.count)
    row("exact samples", f"{frechet_distance(statistics(mixture.sample(args.count, seed=9)), mixture.moments()):.1f}")
    print("the network:")
    table = dv.estimate(network, photographs_part("table", args.size).images, 0.01)
    reference = statistics(photographs_part("fit", args.size).images)
    frechet(network, table, reference, args.steps, args.count)
    real = photographs_part("fit", args.size, args.count).images
    row("patches it was trained on", f"{frechet_distance(statistics(real), reference):.1f}")


if __name__ == "__main__":
    main()
