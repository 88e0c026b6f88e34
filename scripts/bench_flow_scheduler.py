"""Benchmark of AnalyticFlowScheduler.step: its wall time over that of FlowMatchEuler's with stochastic sampling.

    python scripts/bench_flow_scheduler.py [--threads 1] [--device cuda]

One random float32 sample and network output for all; every scheduler draws its noise from a generator of its own. They
take turns, step by step in a rotating order, so that drift cancels; medians are compared. Each pass over the 28 steps
begins with `set_timesteps`, as a pipeline's does, so that what is computed once per step and pass is counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

import diffusion_var as dv

TARGET = 1.15
STEPS = 28
WARM_UP = 5


def gaussian_table(schedule: dv.NoiseSchedule, shape: tuple[int, int, int]) -> dv.VarianceTable:
    """A table that took no network: what its numbers are does not matter for the time."""
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full(shape, 0.5))
    indices = [1, schedule.num_steps]
    table = dv.estimate(oracle, oracle.sample(16), tolerance=1e9, indices=indices, progress=False)
    table.prediction = "flow"
    return table


class Contestant:
    """A scheduler, its generator, and the seconds that its steps took."""

    def __init__(self, scheduler: Any, device: torch.device, **options: Any) -> None:
        self.scheduler, self.options = scheduler, options
        self.generator = torch.Generator(device).manual_seed(0)
        self.seconds: list[float] = []

    def step(self, k: int, output: torch.Tensor, sample: torch.Tensor) -> None:
        """Take step k and note its time, the device idle before and after; ours adds no noise in the last step."""
        place = k % (STEPS - 1)
        if place == 0:
            self.scheduler.set_timesteps(STEPS, device=sample.device)
        timestep = self.scheduler.timesteps[place]
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
    parser.add_argument("--shape", type=int, nargs=4, default=(8, 16, 128, 128), metavar=("B", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=54)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device, shape = torch.device(args.device), tuple(args.shape)
    noise = torch.Generator(device).manual_seed(1)
    sample, output = (torch.randn(shape, generator=noise, device=device) for _ in range(2))

    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    table = gaussian_table(dv.NoiseSchedule.flow(1000, 3.0), shape[1:])
    plain: dict[str, Any] = {"return_dict": False}
    contestants = {"FlowMatchEuler, stochastic": Contestant(theirs, device, **plain)}
    for structure in ("isotropic", "channel", "pixel", "dct"):
        scheduler = dv.AnalyticFlowScheduler.from_table(table, theirs, structure=structure, eta=1.0)
        contestants[f"AnalyticFlowScheduler, {structure}"] = Contestant(scheduler, device, **plain)
    scheduler = dv.AnalyticFlowScheduler.from_table(table, theirs, eta=1.0)
    contestants["isotropic, with log p"] = Contestant(scheduler, device)

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
        print(f"{name:<36s}{1e3 * median:>9.3f} ms{median / reference:>8.3f}")
    ratio = medians["AnalyticFlowScheduler, isotropic"] / reference
    print(f"isotropic over FlowMatchEuler: {ratio:.3f} (target: at most {TARGET})")


if __name__ == "__main__":
    main()
