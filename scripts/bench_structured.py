"""Benchmark of covariances that follow the image: what Jacobian-vector products add to a step, and what memory.

    python scripts/bench_structured.py [--model digits] [--batch-size 64] [--threads 1] [--device cuda]

Steps that draw, at noise levels from N to 1: DDIM's without a covariance, one with a dct table, and the Jacobian's and
Lanczos' with that table, all in one run, in a rotating order so that drift cancels, medians. Peak memory of a step of
64 images of MNIST's size, each in a process of its own. Without --model: the bundled digits, and a network of the MNIST
config's kind with random weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_restoration import mnist_sized, race, resident

import diffusion_var as dv

STEPS = 5  # of which the last draws nothing
KINDS: dict[str, Callable[[dv.VarianceTable], dv.ReverseCovariance]] = {
    "plain": lambda table: dv.FixedSmall(),  # nothing at η = 0
    "dct table": partial(dv.Analytic, structure="dct"),
    "Jacobian": dv.Jacobian,
    "Jacobian, by differences": partial(dv.Jacobian, derivative="difference"),
    "Lanczos-1": partial(dv.Lanczos, steps=1),
    "Lanczos-3": partial(dv.Lanczos, steps=3),
}


class Normal:
    """Noise for the images of a batch, (B, C, *spatial) like `like`."""

    def __init__(self, like: torch.Tensor) -> None:
        self.like, self.generator = like, torch.Generator(like.device).manual_seed(1)

    def next(self) -> torch.Tensor:
        return self.beside(tuple(self.like.shape[1:]))

    def beside(self, shape: tuple[int, ...]) -> torch.Tensor:
        size = (len(self.like), *shape)
        return torch.randn(size, generator=self.generator, device=self.like.device)


def opened(model: str, device: torch.device) -> tuple[dv.Denoiser, dv.VarianceTable]:
    """A model and a table of it, of few images: what it holds does not change what a step costs."""
    if model == "mnist-sized":
        denoiser = mnist_sized(device)
        images: Any = np.random.default_rng(0).integers(0, 256, (64, *denoiser.shape)).astype(np.uint8)
    else:
        denoiser = dv.Denoiser.from_pretrained(model, device=device)
        images = dv.data.open_images("digits:table" if model == "digits" else f"{model}:table")
    indices = [1, 250, 500, 750, denoiser.schedule.num_steps]
    return denoiser, dv.estimate(denoiser, images, 1e9, indices=indices, structures=("dct",), progress=False)


def steps(denoiser: dv.Denoiser, covariance: dv.ReverseCovariance, count: int) -> Callable[[], Any]:
    """The steps of a sampler that draw, of one batch."""
    sampler = dv.Sampler(denoiser, covariance, dv.steps.leading(denoiser.schedule, STEPS), eta=0.0)
    noise = Normal(torch.zeros(count, *denoiser.shape, device=denoiser.device))
    start = noise.next()

    def run() -> None:
        x = start
        for kernel in sampler.kernels[:-1]:
            posterior = sampler.denoiser(x, kernel.level_t)
            drawn = covariance(posterior, kernel)
            x = kernel.mean(x, posterior)
            x = x if drawn is None else x + drawn.draw(noise)

    return torch.inference_mode()(run)


def times(model: str, count: int, repeats: int, device: torch.device) -> None:
    """Print what a step takes, in units of one without a covariance."""
    denoiser, table = opened(model, device)
    contestants = {kind: steps(denoiser, make(table), count) for kind, make in KINDS.items()}
    medians = race(contestants, repeats, device)
    cost = dv.product_cost(denoiser, batch_size=count, rounds=repeats)
    print(f"\n{model} {denoiser.shape}, batches of {count}, medians of {repeats} rounds on {device}")
    print(f"a product counts for {cost.with_mean:.2f} evaluations with the mean, {cost.alone:.2f} by itself")
    for kind, seconds in medians.items():
        took = 1e3 * seconds / (STEPS - 1)
        print(f"{kind:<26s}{took:>9.1f} ms a step{seconds / medians['plain']:>9.2f} plain steps")


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak(kind: str, count: int, device: torch.device) -> int:
    """Bytes that steps of the MNIST-sized network add to what the process, or the GPU, held before."""
    denoiser, table = opened("mnist-sized", device)
    steps(denoiser, KINDS[kind](table), 1)()  # what is made once
    run = steps(denoiser, KINDS[kind](table), count)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # what Linux holds for the peak so far
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def memory(args: argparse.Namespace) -> None:
    """Print the peaks, each of a process of its own."""
    print(f"\npeak memory of a step, {args.batch_size} images of (1, 28, 28), a UNet2DModel of MNIST's config")
    plain = 0
    for kind in KINDS:
        options = ["--peak", kind, "--batch-size", str(args.batch_size), "--threads", str(args.threads)]
        command = [sys.executable, __file__, *options, *(["--device", args.device] if args.device else [])]
        found = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        plain = plain or found
        print(f"{kind:<26s}{found / 1024**2:>9.0f} MiB{found / plain:>9.2f} of a plain step's")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=None)
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.peak:
        print(peak(args.peak, args.batch_size, device))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    for model in [args.model] if args.model else ["digits", "mnist-sized"]:
        times(model, args.batch_size, args.repeats, device)
    if not args.no_memory:
        memory(args)


if __name__ == "__main__":
    main()
