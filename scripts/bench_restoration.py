"""Benchmark of restoration: what following a measurement adds to a step, and the memory that type I takes.

    python scripts/bench_restoration.py [--model digits] [--batch-size 64] [--threads 1] [--device cuda]

Type II against a plain step, type I against one with a backward pass, for three operators, with one variance and with
those of the dct basis; steps of one run at noise levels from N to 1, contestants in a rotating order so that drift
cancels, medians. Peak memory of a step of 64 images of MNIST's size, each in a process of its own. Without --model:
the bundled digits, and a network of the MNIST config's kind with random weights, whose images have a 1/f² spectrum.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers.models.unets.unet_2d import UNet2DModel

import diffusion_var as dv

CONFIG = Path(__file__).parents[1] / "configs" / "mnist.yaml"
NOISE, STEPS = 0.05, 4
PEAKS = ("plain", "II", "I", "I, recomputing")


class Spectrum(dv.ReverseCovariance):
    """λ² I + γ² Cov[x_0|x_t] of Gaussian data with a 1/f² spectrum: what a table of natural images is like."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        frequency = np.sqrt(sum(k**2 for k in np.indices(shape)[1:]))
        self.exact = dv.oracles.GaussianDenoiser(
            dv.NoiseSchedule.linear(1000), 0.0, 4.0 / (1.0 + frequency) ** 2, basis="dct"
        )

    @property
    def name(self) -> str:
        return "spectrum"

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        v = torch.from_numpy(kernel.lambda2 + kernel.gain**2 * self.exact.posterior_variance(kernel.level_t))
        return dv.StructuredCovariance(self.exact.structure, v.float() if posterior is None else v.to(posterior.mean))


# ---- what is measured with -------------------------------------------------------------------------------------------


def mnist_sized(device: torch.device) -> dv.Denoiser:
    unet = yaml.safe_load(CONFIG.read_text())["train_unet"]["unet"]
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=28, in_channels=1, out_channels=1, **unet).eval()
    return dv.Denoiser(network.to(device), dv.NoiseSchedule.linear(1000), shape=(1, 28, 28), clip=(-1.0, 1.0))


def opened(model: str, device: torch.device) -> tuple[dv.Denoiser, dict[str, dv.ReverseCovariance]]:
    """A model, and the covariances that its steps follow y with."""
    if model == "mnist-sized":
        denoiser = mnist_sized(device)
        return denoiser, {"isotropic": dv.PiGDM(), "dct": Spectrum(denoiser.shape)}
    denoiser = dv.Denoiser.from_pretrained(model, device=device)
    if model != "digits":
        return denoiser, {"isotropic": dv.PiGDM(), "dct": Spectrum(denoiser.shape)}
    table = dv.estimate(denoiser, dv.data.open_images("digits:table"), tolerance=0.05, progress=False)
    return denoiser, {name: dv.Analytic(table, structure=name) for name in ("isotropic", "dct")}


def operators(shape: tuple[int, ...]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Half of the pixels; means of 2 × 2; a blur of images that are mirrored at their edges."""
    mask = torch.from_numpy(np.random.default_rng(0).uniform(size=shape) < 0.5)

    def blur(x: torch.Tensor) -> torch.Tensor:
        for axis in (-2, -1):
            ends = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
            padded = torch.cat([ends[0], x, ends[1]], axis)
            x = sum(w * padded.narrow(axis, k, x.shape[axis]) for k, w in enumerate((0.25, 0.5, 0.25)))
        return x

    return {
        "inpainting": lambda x: x * mask.to(x),
        "means of 2 × 2": lambda x: torch.nn.functional.avg_pool2d(x, 2),
        "mirrored blur": blur,
    }


def measurement(A: Callable[[torch.Tensor], torch.Tensor], denoiser: dv.Denoiser, count: int) -> dv.Measurement:
    rng = np.random.default_rng(1)
    clean = A(torch.from_numpy(rng.uniform(-1.0, 1.0, (count, *denoiser.shape)).astype(np.float32)))
    noisy = clean + NOISE * torch.from_numpy(rng.standard_normal(clean.shape).astype(np.float32))
    return dv.Measurement(noisy.to(denoiser.device), A, noise=NOISE)


def with_backward(denoiser: dv.Denoiser, levels: list[int], count: int) -> Callable[[], Any]:
    """A plain evaluation with a vector-Jacobian product, at each level: what type I cannot do without."""
    noise = np.random.default_rng(2).standard_normal((count, *denoiser.shape)).astype(np.float32)
    x_t = torch.from_numpy(noise).to(denoiser.device)

    def run() -> None:
        for n in levels:
            x = x_t.clone().requires_grad_()
            mean = denoiser(x, n).mean
            torch.autograd.grad(mean, x, torch.ones_like(mean))

    return run


# ---- times -----------------------------------------------------------------------------------------------------------


def race(contestants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, one warm-up round apart: the processor's own, which others on the machine do not lengthen
    much; on a GPU those of the clock."""
    now = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for round_ in range(repeats + 1):
        for name in order:
            synchronise(device)
            start = now()
            contestants[name]()
            synchronise(device)
            if round_:
                seconds[name].append(now() - start)
        order = order[1:] + order[:1]
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times(model: str, count: int, repeats: int, device: torch.device) -> None:
    denoiser, covariances = opened(model, device)
    levels = dv.steps.leading(denoiser.schedule, STEPS)
    conditioned = {
        (operator, name, guidance): dv.ConditionedDenoiser(
            denoiser, covariance, measurement(A, denoiser, count), guidance
        )
        for operator, A in operators(denoiser.shape).items()
        for name, covariance in covariances.items()
        for guidance in ("II", "I")
    }

    def steps(of: dv.Denoiser) -> Callable[[], Any]:
        sampler = dv.Sampler(of, dv.FixedSmall(), levels, eta=1.0)
        return lambda: sampler.sample(count, batch_size=count)

    contestants = {"plain": steps(denoiser), "backward": with_backward(denoiser, levels, count)}
    medians = race(contestants | {key: steps(den) for key, den in conditioned.items()}, repeats, device)  # type: ignore[arg-type,dict-item]
    plain, backward = medians.pop("plain"), medians.pop("backward")
    print(f"\n{model} {denoiser.shape}, batches of {count}, {STEPS} steps, medians of {repeats} rounds on {device}")
    print(f"a plain step {1e3 * plain / STEPS:.1f} ms; with a backward pass {1e3 * backward / STEPS:.1f} ms")
    print(f"{'':<18s}{'Σ':<12s}{'type II / plain':>16s}{'type I / backward':>19s}{'products an image':>19s}")
    for operator, name in {key[:2]: None for key in conditioned}:
        two, one = (medians[operator, name, guidance] for guidance in ("II", "I"))  # type: ignore[index]
        den = conditioned[operator, name, "II"]
        for n in levels:
            den(torch.zeros(count, *denoiser.shape, device=denoiser.device), n)
        solves, _, _, products = den.counts()
        print(f"{operator:<18s}{name:<12s}{two / plain:>16.3f}{one / backward:>19.3f}{products / solves:>19.1f}")


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak(kind: str, count: int, device: torch.device) -> int:
    """Bytes that one evaluation of the MNIST-sized network adds to what the process, or the GPU, held before."""
    denoiser = mnist_sized(device)
    den: dv.Denoiser = denoiser
    A = operators(denoiser.shape)["inpainting"]

    def made(rows: int) -> dv.Denoiser:
        if kind == "plain":
            return denoiser
        options = {"guidance": kind[:2].strip(","), "checkpointing": "recomputing" in kind}
        return dv.ConditionedDenoiser(denoiser, Spectrum(denoiser.shape), measurement(A, denoiser, rows), **options)

    x_t = torch.zeros(count, *denoiser.shape, device=device)
    with torch.inference_mode():
        made(1)(x_t[:1], 500)  # what is made once
        den = made(count)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            den(x_t, 500)
            return torch.cuda.max_memory_allocated(device) - before
        Path("/proc/self/clear_refs").write_text("5")  # what Linux holds for the peak so far
        before = resident("VmRSS")
        den(x_t, 500)
        return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of memory that the process holds, by Linux's name for it."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith(name)).split()[1])


def memory(args: argparse.Namespace) -> None:
    print(f"\npeak memory of one evaluation, {args.batch_size} images of (1, 28, 28), a UNet2DModel of MNIST's config")
    for kind in PEAKS:
        options = ["--peak", kind, "--batch-size", str(args.batch_size), "--threads", str(args.threads)]
        command = [sys.executable, __file__, *options, *(["--device", args.device] if args.device else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{'plain' if kind == 'plain' else 'type ' + kind:<24s}{int(done.stdout) / 1024**2:>10.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=None)
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.peak:
        print(peak(args.peak, args.batch_size, device))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")
    for model in [args.model] if args.model else ["digits", "mnist-sized"]:
        times(model, args.batch_size, args.repeats, device)
    memory(args)


if __name__ == "__main__":
    main()
