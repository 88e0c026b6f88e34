"""Draw images from a model with a chosen reverse covariance, with the Python API.

    python scripts/sample.py path/to/pipeline -o samples --steps 25 --eta 1                      # DDPM, variance β̃
    python scripts/sample.py path/to/pipeline -o samples --steps 25 --eta 0 --final-noise-cap 1 \\
        --covariance analytic --table table.safetensors --structure dct                          # Analytic-DDIM

The table is what `scripts/precompute_variance.py` wrote. Next: `scripts/score.py samples path/to/real/images`.
"""

import argparse
from pathlib import Path

import torch

import diffusion_var as dv


def main(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise dv.InputError(f"the output {options.out} exists already; choose another name.")
    if options.count < 1 or options.first < 0:
        raise dv.InputError(f"count is {options.count} and first is {options.first}; expected at least 1 and 0.")
    if not options.out.parent.is_dir():
        raise dv.InputError(f"the folder {options.out.parent} does not exist; make it first, or choose another.")

    denoiser = dv.Denoiser.from_pretrained(options.model)
    # A network of your own, any callable (x_t (B, C, H, W), timestep (B,)) -> tensor, goes in here instead:
    #   denoiser = dv.Denoiser(network, schedule, prediction="epsilon", shape=(3, 32, 32), clip=(-1.0, 1.0))

    if options.covariance == "analytic":
        if options.table is None:
            raise dv.InputError("the analytic covariance needs a variance table; pass --table.")
        covariance = dv.Analytic(dv.VarianceTable.load(options.table), structure=options.structure)
    else:
        covariance = {"beta": dv.FixedLarge, "beta_tilde": dv.FixedSmall}[options.covariance]()
    sampler = dv.Sampler(denoiser, covariance, options.steps, options.eta, options.final_noise_cap)

    # Image i of a seed is always the same, so that machines can share the work: each takes a range of its own.
    wanted = range(options.first, options.first + options.count)
    batches = sampler.stream(wanted, options.seed, options.batch_size, progress=True)
    if options.out.suffix == ".npz":
        dv.data.save_npz(torch.cat([dv.data.to_uint8(batch, denoiser.data_range) for batch in batches]), options.out)
    else:
        for start, batch in zip(wanted[:: options.batch_size], batches, strict=True):
            dv.data.save_images(dv.data.to_uint8(batch, denoiser.data_range), options.out, start)
    print(f"written: {len(wanted)} images in {options.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="diffusers pipeline or UNet folder, or hub id")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder for PNG files, or a .npz file")
    parser.add_argument("--count", type=int, default=64, help="number of images")
    parser.add_argument("--first", type=int, default=0, help="index of the first image")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eta", type=float, default=1.0, help="1 is DDPM, 0 is DDIM")
    parser.add_argument("--covariance", choices=["beta", "beta_tilde", "analytic"], default="beta_tilde")
    parser.add_argument("--table", type=Path, help="variance table, for the analytic covariance")
    parser.add_argument("--structure", choices=["isotropic", "channel", "pixel", "dct"], default="isotropic")
    parser.add_argument("--final-noise-cap", type=float, help="of the last noise, in 255ths of the data range")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(parser.parse_args())
    except (dv.InputError, dv.NumericalError) as error:
        parser.exit(2, f"error: {error}\n")
