"""Which pixels gain by a free first index: bits/dim of the bound for pixels at an end of the range, and for others.

    python scripts/where_paths_gain.py --model digits --table table.safetensors --decoder-images digits:table \
        --images digits:score --steps 2,5,10

Each path (optimal steps from index 1 with the published codes' decoder; from index 1 with a measured one; free) is
followed on the same images and noise, and what it costs is summed apart for values at an end of the range (0 and 255)
and for those between. Steps and decoder are shown apart.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

import diffusion_var as dv
from diffusion_var.data import open_images

HALF = 1.0 / 255.0  # half the distance of two levels, of data in [-1, 1]
MOST_IMAGES = 512  # that decoders are measured on


def values_of(images: Any, most: int | None = None) -> torch.Tensor:
    """(M, C, *spatial) uint8 of images by name, of more than `most` some, evenly spaced."""
    picked = np.unique(np.linspace(0, len(images) - 1, min(most or len(images), len(images))).round().astype(int))
    return torch.stack([images[int(i)] for i in picked])


def decoder_bits(x_0: np.ndarray, mean: np.ndarray, variance: Any, ends: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """-log2 of the discretised Gaussian's mass, from the tail in which it does not cancel; `ends`: black, white."""
    std = np.sqrt(variance)
    low = np.where(ends[0], -np.inf, (x_0 - HALF - mean) / std)
    high = np.where(ends[1], np.inf, (x_0 + HALF - mean) / std)
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    upper, lower = norm.logcdf(high), norm.logcdf(low)
    return -(upper + np.log(-np.expm1(lower - upper))) / math.log(2)


@torch.inference_mode()
def costs_of(
    denoiser: dv.Denoiser, covariance: dv.Analytic, path: dv.steps.Trajectory, values: torch.Tensor, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(B, C, *spatial) bits of the steps and of the decoder, for each value."""
    x_0 = values.float() / 127.5 - 1.0
    steps = np.zeros(x_0.shape)
    decoder = steps.copy()
    for s, t in pairwise([0, *path]):
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed + t))
        x_t = float(denoiser.schedule.alpha[t]) * x_0 + float(denoiser.schedule.sigma[t]) * eps
        posterior = denoiser(x_t, t)
        kernel = dv.ReverseKernel(denoiser.schedule, t, s)
        if s == 0:
            ends = (values == 0).numpy(), (values == 255).numpy()
            decoder += decoder_bits(x_0.double().numpy(), posterior.mean.double().numpy(), path.decoder_variance, ends)
        else:
            error = kernel.mean_error(x_0, eps, posterior).double().numpy()
            variance = np.asarray(covariance.variance(kernel))
            ratio = kernel.lambda2 / variance
            steps += 0.5 * (ratio - 1 - np.log(ratio) + error**2 / variance) / math.log(2)
    return steps, decoder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--table", required=True, help="variance table of the model, with the structure")
    parser.add_argument("--decoder-images", required=True, help="images that decoders are measured on")
    parser.add_argument("--images", required=True, help="other images, to score")
    parser.add_argument("--steps", default="2,5,10")
    parser.add_argument("--structure", default="pixel", choices=["isotropic", "channel", "pixel"])
    given = parser.parse_args()
    denoiser, table = dv.Denoiser.from_pretrained(given.model), dv.VarianceTable.load(given.table)
    others = values_of(open_images(given.decoder_images), MOST_IMAGES)
    measured = dv.decoder_costs(denoiser, others, table, progress=True)
    values = values_of(open_images(given.images))
    at_end = ((values == 0) | (values == 255)).numpy()
    print(f"{len(values)} images of {given.images}; {at_end.mean():.1%} of their values at an end of the range")
    ways: dict[str, dict[str, Any]] = {
        "from 1, β̃": {"first": 1, "decoder_variance": "beta_tilde"},
        "from 1, measured": {"first": 1, "decoder_variance": measured},
        "free, measured": {"decoder_variance": measured},
    }
    covariance = dv.Analytic(table, structure=given.structure)
    print("| K | path | begins at | decoder | bits/dim | at an end: steps + decoder | between: steps + decoder |")
    print("|---|---|---|---|---|---|---|")
    for count in map(int, given.steps.split(",")):
        for name, way in ways.items():
            path = dv.steps.optimal(table, count, structure=given.structure, **way)
            steps, decoder = costs_of(denoiser, covariance, path, values)
            parts = [f"{steps[m].mean():.3f} + {decoder[m].mean():.3f}" if m.any() else "–" for m in (at_end, ~at_end)]
            whole = (steps + decoder).mean()
            print(f"| {count} | {name} | {path[0]} | {path.decoder} | {whole:.3f} | {parts[0]} | {parts[1]} |")


if __name__ == "__main__":
    main()
