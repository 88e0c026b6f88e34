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
from diffusers.utils import logging as diffusers_logging

import diffusion_var as dv
from diffusion_var.app.decoders import measure_decoders
from diffusion_var.app.model import open_model
from diffusion_var.app.options import NllOptions
from diffusion_var.data.fixed_images import FixedImages
from diffusion_var.data.names import open_images
from diffusion_var.likelihood.decoder import discretised_log_prob, levels_of
from diffusion_var.randomness import generator

diffusers_logging.set_verbosity_error()
LEVELS = 256


@torch.inference_mode()
def costs_of(
    denoiser: dv.Denoiser, covariance: dv.Analytic, path: dv.steps.Trajectory, x_0: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, C, *spatial) bits of the steps and of the decoder, for each pixel."""
    schedule, grid = denoiser.schedule, denoiser.data_range
    assert grid is not None
    steps, decoder = torch.zeros_like(x_0, dtype=torch.float64), torch.zeros_like(x_0, dtype=torch.float64)
    for s, t in pairwise([0, *path]):
        noise = generator(seed, "where paths gain", t).standard_normal(x_0.shape, dtype=np.float32)
        eps = torch.from_numpy(noise)
        posterior = denoiser(float(schedule.alpha[t]) * x_0 + float(schedule.sigma[t]) * eps, t)
        kernel = dv.ReverseKernel(schedule, t, s)
        if s == 0:
            variance = torch.from_numpy(np.array(path.decoder_variance, dtype=np.float64))
            level = levels_of(x_0, LEVELS, grid)
            decoder -= discretised_log_prob(level, posterior.mean, variance, LEVELS, grid)
        else:
            error = kernel.mean_error(x_0, eps, posterior).double()
            variance = torch.from_numpy(np.array(covariance.variance(kernel)))
            ratio = kernel.lambda2 / variance
            steps += 0.5 * (ratio - 1 - torch.log(ratio) + error.square() / variance)
    return steps / math.log(2), decoder / math.log(2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--table", required=True, help="variance table of the model, with the structure")
    parser.add_argument("--decoder-images", required=True, help="images that decoders are measured on")
    parser.add_argument("--images", required=True, help="other images, to score")
    parser.add_argument("--steps", default="2,5,10")
    parser.add_argument("--structure", default="pixel", choices=["isotropic", "channel", "pixel"])
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    options = NllOptions(model=given.model, images=given.images, dtype=given.dtype)
    model = open_model(given.model, options)
    denoiser, table = model.denoiser, dv.VarianceTable.load(given.table)
    measured = measure_decoders(model, open_images(given.decoder_images), None, table, LEVELS, 0, 64, None)
    source = FixedImages(open_images(given.images), denoiser.shape, denoiser.data_range)
    x_0 = source.take(np.arange(len(source)))
    assert denoiser.data_range is not None
    level = levels_of(x_0, LEVELS, denoiser.data_range)
    ends = (level == 0) | (level == LEVELS - 1)
    share = float(ends.double().mean())
    print(f"{len(source)} images of {given.images}; {share:.1%} of their values at an end of the range")
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
            steps, decoder = costs_of(denoiser, covariance, path, x_0)
            parts = [
                f"{float(steps[mask].mean()):.3f} + {float(decoder[mask].mean()):.3f}" if mask.any() else "–"
                for mask in (ends, ~ends)
            ]
            whole = float((steps + decoder).mean())
            print(f"| {count} | {name} | {path[0]} | {path.decoder} | {whole:.3f} | {parts[0]} | {parts[1]} |")


if __name__ == "__main__":
    main()
