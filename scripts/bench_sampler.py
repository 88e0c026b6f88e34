"""Benchmark of the sampler: its wall time over that of diffusers' pipelines, in alternating pairs of one run.

    python scripts/bench_sampler.py

The same UNet, steps, batch, dtype, η and fixed variance; `output_type="np"`, progress bars off, both in inference mode.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import diffusion_var as dv


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, the device idle before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class NetworkTime:
    """Seconds spent in the network's forward pass: what two callers of one network cannot differ in but by noise."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.total = 0.0
        forward = network.forward

        def measured(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            out = forward(*arguments, **options)
            self.total += time.perf_counter() - start
            return out

        network.forward = measured  # type: ignore[method-assign]

    def split(self, function: Callable[[], object]) -> tuple[float, float]:
        """Seconds of one call, and how many of them were spent outside the network."""
        self.total = 0.0
        elapsed = timed(function)
        return elapsed, elapsed - self.total


def main() -> None:
    from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=61)
    args = parser.parse_args()
    denoiser = dv.Denoiser.from_pretrained(args.model)
    images = dv.data.open_images("digits:table") if args.model == "digits" else None
    steps = dv.steps.leading(denoiser.schedule, args.steps)
    ddim = DDIMPipeline(denoiser.network, DDIMScheduler(clip_sample=denoiser.clip is not None))
    ddpm = DDPMPipeline(denoiser.network, DDPMScheduler(clip_sample=denoiser.clip is not None))
    for pipeline in (ddim, ddpm):
        pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    common = {
        "batch_size": args.batch_size,
        "num_inference_steps": args.steps,
        "generator": generator,
        "output_type": "np",
    }

    def ours(covariance: dv.FixedSmall | dv.Analytic, eta: float) -> Callable[[], object]:
        sampler = dv.Sampler(denoiser, covariance, steps, eta)
        return lambda: sampler.sample(args.batch_size, batch_size=args.batch_size).permute(0, 2, 3, 1).numpy()

    rows = [
        ("β̃, η = 1 / DDPMPipeline", ours(dv.FixedSmall(), 1.0), lambda: ddpm(**common)),
        ("η = 0 / DDIMPipeline", ours(dv.FixedSmall(), 0.0), lambda: ddim(eta=0.0, **common)),
        ("η = 0.5 / DDIMPipeline", ours(dv.FixedSmall(), 0.5), lambda: ddim(eta=0.5, **common)),
    ]
    if images is not None:
        indices = sorted({1, denoiser.schedule.num_steps, *steps})
        table = dv.estimate(denoiser, images, tolerance=1e9, indices=indices, progress=False)
        analytic = dv.Analytic(table, structure="dct")
        rows.append(("analytic dct, η = 1 / DDPMPipeline", ours(analytic, 1.0), lambda: ddpm(**common)))
    inside = NetworkTime(denoiser.network)
    print(f"K = {args.steps}, batch {args.batch_size}, medians of {args.pairs} alternating pairs")
    print(f"{'':<38s}{'ratio':>7s}{'wall, ours':>13s}{'outside the network, ours and theirs':>40s}")
    for label, mine, theirs in rows:
        with torch.inference_mode():
            timed(mine), timed(theirs)  # warm up
            pairs = []
            for pair in range(args.pairs):  # the order changes from pair to pair, so that drift cancels
                if pair % 2:
                    pairs.append((inside.split(mine), inside.split(theirs)))
                else:
                    other = inside.split(theirs)
                    pairs.append((inside.split(mine), other))
        ratio = statistics.median(a[0] / b[0] for a, b in pairs)
        wall, own, other_own = (
            1e3 * statistics.median(values) for values in zip(*((a[0], a[1], b[1]) for a, b in pairs), strict=True)
        )
        print(f"{label:<38s}{ratio:>7.3f}{wall:>10.0f} ms{own:>29.1f} and {other_own:.1f} ms")


if __name__ == "__main__":
    main()
