"""Benchmark of AnalyticScheduler.step: its wall time over that of diffusers' DDIMScheduler.step(eta=1).

    python scripts/bench_scheduler.py [--threads 1] [--device cuda]

One random float32 sample and network output for all; every scheduler draws its noise from a generator of its own. They
take turns, step by step in a rotating order, so that drift cancels; medians are compared. Each pass over the 50 steps
begins with `set_timesteps`, as a pipeline's does, so that what is computed once per step and pass is counted. Steps
return tuples, as those of Stable Diffusion's pipelines do; what the log-probability of the step adds, which comes with
the other output, is a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

import diffusion_var as dv

TARGET = 1.1
STEPS = 50
WARM_UP = 5


def gaussian_table(schedule: dv.NoiseSchedule, shape: tuple[int, int, int]) -> dv.VarianceTable:
    """A table that took no network: what its numbers are does not matter for the time."""
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full(shape, 0.5))
    indices = [1, schedule.num_steps]
    table = dv.estimate(oracle, oracle.sample(16), tolerance=1e9, indices=indices, progress=False)
    table.prediction = "epsilon"
    return table


class Contestant:
    """A scheduler, its generator, and the seconds that its steps took."""

    def __init__(self, scheduler: Any, device: torch.device, **options: Any) -> None:
        self.scheduler, self.options = scheduler, options
        self.generator = torch.Generator(device).manual_seed(0)
        self.seconds: list[float] = []
        self.timesteps: list[int] = []

    def step(self, k: int, output: torch.Tensor, sample: torch.Tensor) -> None:
        """Take step k and note its time, the device idle before and after."""
        if k % (STEPS - 1) == 0:
            self.scheduler.set_timesteps(STEPS, device=sample.device)
            self.timesteps = self.scheduler.timesteps.tolist()[:-1]  # ours adds no noise in the last step
        timestep = self.timesteps[k % (STEPS - 1)]
        synchronise(sample.device)
        start = time.perf_counter()
        self.scheduler.step(output, timestep, sample, generator=self.generator, **self.options)
        synchronise(sample.device)
        self.seconds.append(time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=(64, 4, 64, 64), metavar=("B", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device, shape = torch.device(args.device), tuple(args.shape)
    noise = torch.Generator(device).manual_seed(1)
    sample, output = (torch.randn(shape, generator=noise, device=device) for _ in range(2))

    theirs = DDIMScheduler(clip_sample=False)
    table = gaussian_table(dv.NoiseSchedule.from_diffusers(theirs), shape[1:])
    plain: dict[str, Any] = {"return_dict": False}
    contestants = {"DDIMScheduler, η = 1": Contestant(theirs, device, eta=1.0, **plain)}
    for structure in ("isotropic", "channel", "pixel", "dct"):
        scheduler = dv.AnalyticScheduler.from_table(table, theirs, structure=structure)
        contestants[f"AnalyticScheduler, {structure}"] = Contestant(scheduler, device, **plain)
    contestants["isotropic, with log p"] = Contestant(dv.AnalyticScheduler.from_table(table, theirs), device)

    with torch.inference_mode():
        order = list(contestants.values())
        for k in range(WARM_UP + args.repeats):
            for contestant in order:
                contestant.step(k, output, sample)
            order = order[1:] + order[:1]
    medians = {name: statistics.median(c.seconds[WARM_UP:]) for name, c in contestants.items()}
    reference = next(iter(medians.values()))
    print(f"{shape} float32 on {device.type}, {torch.get_num_threads()} threads, medians of {args.repeats} steps each")
    for name, median in medians.items():
        print(f"{name:<32s}{1e3 * median:>9.3f} ms{median / reference:>8.3f}")
    ratio = medians["AnalyticScheduler, isotropic"] / reference
    print(f"isotropic over DDIMScheduler: {ratio:.3f} (target: at most {TARGET})")


if __name__ == "__main__":
    main()
