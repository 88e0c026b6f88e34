"""Fréchet distances of one diffusers pipeline under several schedulers, everything else being equal.

    python scripts/compare_schedulers.py                            # the bundled digits, a few minutes
    python scripts/compare_schedulers.py path/to/pipeline --table table.safetensors --reference images/ \\
        --features inception

The pipeline is a DDPMPipeline, used as its users do; only `pipe.scheduler` changes. All schedulers visit the timesteps
of the pipeline's own spacing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffusion_var as dv


def schedulers(own: Any, table: dv.VarianceTable) -> dict[str, Any]:
    """The schedulers by name: diffusers' own, and AnalyticScheduler with the table's variances."""
    from diffusers import DDIMScheduler, DDPMScheduler

    def analytic(**options: Any) -> Any:
        return dv.AnalyticScheduler.from_table(table, own.config, **options)

    fixed = {
        "DDPMScheduler fixed_large": DDPMScheduler.from_config(own.config, variance_type="fixed_large"),
        "DDPMScheduler fixed_small": DDPMScheduler.from_config(own.config, variance_type="fixed_small"),
        "DDIMScheduler": DDIMScheduler.from_config(own.config),
    }
    measured = {
        f"AnalyticScheduler {structure}, eta {eta:g}{'' if cap is None else f', cap {cap:g}'}": analytic(
            structure=structure, eta=eta, final_noise_cap=cap
        )
        for eta in (1.0, 0.0)
        for structure in ("isotropic", "dct")
        for cap in (None, 1.0)
    }
    return fixed | measured


def draw(pipe: Any, scheduler: Any, steps: int, seed: int, count: int) -> torch.Tensor:
    """(count, C, H, W) uint8 from one call of the pipeline."""
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(seed)
    images = pipe(batch_size=count, generator=generator, num_inference_steps=steps, output_type="np").images
    return torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)


def main(options: argparse.Namespace) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    denoiser = dv.Denoiser.from_pretrained(options.model)
    own = DDPMScheduler() if options.model == "digits" else DDPMPipeline.from_pretrained(options.model).scheduler
    pipe = DDPMPipeline(denoiser.network, own)
    pipe.set_progress_bar_config(disable=True)
    if options.table is None:
        table = dv.estimate(denoiser, dv.data.open_images("digits:table"), 0.02)
    else:
        table = dv.VarianceTable.load(options.table)
    reference, features = dv.data.open_images(options.reference), dv.metrics.load_features(options.features)
    print(f"| scheduler | {' | '.join(f'{k} steps' for k in options.steps)} |")
    print(f"|---|{'---|' * len(options.steps)}")
    for name, scheduler in schedulers(own, table).items():
        cells = []
        for steps in options.steps:
            scores = [
                dv.metrics.fid(draw(pipe, scheduler, steps, seed, options.count), reference, features).value
                for seed in options.seeds
            ]
            cells.append(f"{np.mean(scores):.2f} ± {np.std(scores, ddof=min(1, len(scores) - 1)):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="digits", help="DDPMPipeline folder or hub id, or digits")
    parser.add_argument("--table", type=Path, help="variance table; for the digits one is measured")
    parser.add_argument("--reference", default="digits:score", help="images to score against")
    parser.add_argument("--features", default="digits", help="inception, digits or a file")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=400, help="images per scheduler, number of steps and seed")
    try:
        main(parser.parse_args())
    except (dv.InputError, dv.NumericalError) as error:
        parser.exit(2, f"error: {error}\n")
