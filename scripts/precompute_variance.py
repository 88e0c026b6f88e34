"""Measure the variance table of a model on images, with the Python API.

    python scripts/precompute_variance.py path/to/pipeline path/to/images -o table.safetensors

The model is a folder (or hub id) that diffusers' `save_pretrained` wrote, the images a folder, zip, npz or npy.
Interrupted, the same command goes on where it was. Next: `scripts/sample.py --table table.safetensors`.
"""

import argparse
from pathlib import Path

import diffusion_var as dv


def main(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise dv.InputError(f"the output {options.out} exists already; choose another name.")

    denoiser = dv.Denoiser.from_pretrained(options.model)
    # A network of your own, any callable (x_t (B, C, H, W), timestep (B,)) -> tensor, goes in here instead:
    #   schedule = dv.NoiseSchedule.from_betas(betas)    # or .linear(N), .cosine(N), .from_diffusers(scheduler), ...
    #   denoiser = dv.Denoiser(network, schedule, prediction="epsilon", shape=(3, 32, 32), clip=(-1.0, 1.0))

    images = dv.metrics.read_images(options.images, denoiser.shape[0])  # or any Dataset, tensor or array of (C, H, W)
    partial = options.out.with_name(options.out.name + ".partial")
    table = dv.estimate(
        denoiser,
        images,
        tolerance=options.tolerance,
        max_evaluations=options.max_evaluations,
        batch_size=options.batch_size,
        seed=options.seed,
        checkpoint=partial,
    )
    table.save(options.out)
    partial.unlink()
    print(table.summary())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="diffusers pipeline or UNet folder, or hub id")
    parser.add_argument("images", type=Path, help="neither trained on nor scored")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the table to write")
    parser.add_argument("--tolerance", type=float, default=0.01, help="relative standard error of the variance")
    parser.add_argument("--max-evaluations", type=int, help="stop after this many network evaluations")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except (dv.InputError, dv.NumericalError) as error:
        parser.exit(2, f"error: {error}\n")
