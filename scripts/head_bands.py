"""Heads of one factor a channel and of factors of bands of frequency, and the bounds of their likelihoods.

    python scripts/head_bands.py --model photographs --table table.safetensors --images photographs:fit \
        --score photographs:score --train-steps 1500 --groups 8 --steps 10,25

Every head is trained alike, with the likelihood's own loss. Printed are the heads' sizes, bits/dim of the score images,
and what each covariance is above the dct table, paired over groups of 8 images with their own noise, ± the standard
error. The same heads come from `diffusion-var train-head`.

    python scripts/head_bands.py exact --size 8 --components 6 --bands 1,4,8,16 --steps 10,25

What the best head of so many bands could do: of a mixture of Gaussians, fitted to the photographs' patches, with each
image's own variances Cov[x_0|x_t] in the dct, pooled in bands of their average. Bits/dim of the density of samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import diffusion_var as dv
from diffusion_var import training
from diffusion_var.data import open_images

BATCH, GROUP = 128, 8


def specs(bands: Sequence[int]) -> dict[str, dv.HeadSpec]:
    """Every head that is compared, by name."""
    found = {f"factor, {kind}": dv.HeadSpec("factor", kind, "dct") for kind in ("simple", "pooled")}
    return found | {f"bands={count}, pooled": dv.HeadSpec("bands", bands=count) for count in bands}


def trained(denoiser: dv.Denoiser, table: dv.VarianceTable, images: Any, spec: dv.HeadSpec, steps: int) -> dv.Head:
    """A head after so many steps of `BATCH` noisy images."""
    settings = training.HeadTraining(
        steps=steps, batch_size=BATCH, learning_rate=2e-3, rate_schedule="cosine", ema_decay=0.0, weighting="likelihood"
    )
    return training.train_head(denoiser, table, images, settings, spec, progress=False).head


def bounds(denoiser: dv.Denoiser, covariance: dv.ReverseCovariance, images: Any, steps: int, groups: int) -> Any:
    """Bits/dim of each group of images, evenly spaced; the noise of a group is the same for every covariance."""
    picks = np.unique(np.linspace(0, len(images) - 1, groups * GROUP).round().astype(int)).reshape(groups, GROUP)
    chosen = [torch.stack([torch.as_tensor(images[int(i)]) for i in group]) for group in picks]
    found = [float(dv.bits_per_dim(denoiser, covariance, x, steps, seed=k)) for k, x in enumerate(chosen)]
    return np.array(found)


def run(args: argparse.Namespace) -> None:
    """Train all heads, and print what their bounds are."""
    denoiser = dv.Denoiser.from_pretrained(args.model)
    table, images, score = dv.VarianceTable.load(args.table), open_images(args.images), open_images(args.score)
    heads: dict[str, dv.ReverseCovariance] = {"dct table": dv.Analytic(table, structure="dct")}
    for name, spec in specs(args.bands).items():
        start = time.process_time()
        head = trained(denoiser, table, images, spec, args.train_steps)
        size = sum(parameter.numel() for parameter in head.network.parameters())
        print(f"{name}: {size:,} parameters, {time.process_time() - start:.0f} s of training", flush=True)
        heads[name] = head
    print("| covariance |", " | ".join(f"K = {k} | above the table" for k in args.steps), "|")
    print("| --- |", " | ".join("--- | ---" for _ in args.steps), "|")
    tables: dict[int, Any] = {}
    for name, covariance in heads.items():
        cells = []
        for k in args.steps:
            values = bounds(denoiser, covariance, score, k, args.groups)
            above = values - tables.setdefault(k, values)
            error = above.std(ddof=1) / len(above) ** 0.5
            cells += [f"{values.mean():.4f}", f"{above.mean():+.4f} ± {error:.4f}" if above.any() else ""]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


class PooledExact(dv.ReverseCovariance):
    """What is left of each image's exact variances when they are pooled in bands: factors of their average over x_t."""

    depends_on_image = True

    def __init__(self, mixture: dv.oracles.MixtureDenoiser, count: int) -> None:
        self.own, self.average = (dv.ExactCovariance(mixture, "dct", per_image=each) for each in (True, False))
        self.bands, self.count = dv.Bands(mixture.shape, count), count

    @property
    def name(self) -> str:
        return f"bands={self.count}, of each image"

    def identity(self) -> dict[str, Any]:
        return {**self.own.identity(), "name": self.name}

    def check(self, denoiser: dv.Denoiser, kernels: list[dv.ReverseKernel]) -> None:
        self.own.check(denoiser, kernels)

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        own, average = (each(posterior, kernel) for each in (self.own, self.average))
        mine, mean = (self.bands.sum((each.variance - kernel.lambda2).clamp_min(1e-20)) for each in (own, average))
        variance = kernel.lambda2 + self.bands.spread(mine / mean) * (average.variance - kernel.lambda2)
        return dv.StructuredCovariance(own.structure, variance.to(own.variance))


def exact(args: argparse.Namespace) -> None:
    """Print the bounds of the mixture with its own variances, averaged, in bands, and of each image."""
    images = dv.data.photographs_part("fit", args.size, args.fit_images).images
    mixture = dv.oracles.fit_mixture(images, args.components)
    samples = mixture.sample(args.count, seed=3)
    print(f"exact: {mixture.density_bits(samples).mean():.4f}")
    kinds: list[Any] = [dv.ExactCovariance(mixture, "dct", per_image=False)]
    kinds += [*(PooledExact(mixture, count) for count in args.bands), dv.ExactCovariance(mixture, "dct")]
    print("| covariance |", " | ".join(f"K = {k}" for k in args.steps), "|")
    print("| --- |", " | ".join("---" for _ in args.steps), "|")
    for kind in kinds:
        found = [dv.density_bound(mixture, kind, samples, k, decoder_variance="covariance") for k in args.steps]
        print(f"| {kind.name} |", " | ".join(f"{float(value):.3f}" for value in found), "|", flush=True)


def whole_numbers(text: str) -> list[int]:
    """Of "8,16"."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["heads", "exact"], default="heads")
    parser.add_argument("--model", default="digits", help="digits, photographs, a folder, or a hub id")
    parser.add_argument("--table", help="its table, with the structure dct")
    parser.add_argument("--images", default="digits:train", help="to train on")
    parser.add_argument("--score", default="digits:score", help="to bound")
    parser.add_argument("--train-steps", type=int, default=1500, help="steps of Adam, of 128 draws each")
    parser.add_argument("--bands", type=whole_numbers, default=[8, 16], help="of each channel")
    parser.add_argument("--steps", type=whole_numbers, default=[10, 25], help="K of the bounds")
    parser.add_argument("--groups", type=int, default=16, help="of 8 score images")
    parser.add_argument("--size", type=int, default=8, help="exact: of a patch")
    parser.add_argument("--components", type=int, default=6, help="exact: of the mixture")
    parser.add_argument("--fit-images", type=int, default=6000, help="exact: patches that it is fitted to")
    parser.add_argument("--count", type=int, default=100, help="exact: samples")
    args = parser.parse_args()
    if args.what == "heads" and args.table is None:
        parser.error("heads need a table of the model: diffusion-var estimate makes one; pass --table.")
    (exact if args.what == "exact" else run)(args)


if __name__ == "__main__":
    main()
