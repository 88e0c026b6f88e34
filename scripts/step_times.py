"""How long the steps of several schedulers take, side by side in one run: what the schedulers' benchmarks share.

One random float32 sample and network output for all; every scheduler draws its noise from a generator of its own. They
take turns, step by step in a rotating order, so that drift cancels; medians are compared. Each pass over the steps
begins with `set_timesteps`, as a pipeline's does, so that what is computed once per step and pass is counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import diffusion_var as dv

WARM_UP = 5
STRUCTURES = ("isotropic", "channel", "pixel", "dct")
#: As pipelines call `step`; without it the log-probability comes along.
TUPLES: dict[str, Any] = {"return_dict": False}


def gaussian_table(schedule: dv.NoiseSchedule, shape: tuple[int, ...], prediction: Any) -> dv.VarianceTable:
    """A table that took no network: what its numbers are does not matter for the time."""
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full(shape, 0.5))
    indices = [1, schedule.num_steps]
    table = dv.estimate(oracle, oracle.sample(16), tolerance=1e9, indices=indices, progress=False)
    table.prediction = prediction
    return table


class Contestant:
    """A scheduler, its generator, and the seconds that its steps took."""

    def __init__(self, scheduler: Any, steps: int, device: torch.device, **options: Any) -> None:
        self.scheduler, self.steps, self.options = scheduler, steps, options
        self.generator = torch.Generator(device).manual_seed(0)
        self.seconds: list[float] = []
        self.timesteps: list[Any] = []

    def step(self, k: int, output: torch.Tensor, sample: torch.Tensor) -> None:
        """Take step k and note its time, the device idle before and after; ours adds no noise in the last step."""
        if k % (self.steps - 1) == 0:
            self.scheduler.set_timesteps(self.steps, device=sample.device)
            whole = not self.scheduler.timesteps.is_floating_point()
            self.timesteps = self.scheduler.timesteps.tolist() if whole else list(self.scheduler.timesteps)
        timestep = self.timesteps[k % (self.steps - 1)]
        synchronise(sample.device)
        start = time.perf_counter()
        self.scheduler.step(output, timestep, sample, generator=self.generator, **self.options)
        synchronise(sample.device)
        self.seconds.append(time.perf_counter() - start)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    description: str | None,
    shape: tuple[int, ...],
    repeats: int,
    make: Callable[[tuple[int, ...], torch.device], dict[str, Contestant]],
) -> dict[str, float]:
    """The medians, in seconds, of the contestants that `make` makes for one image's shape, over the first one's; told.

    Args:
        description: of the command, whose options --shape, --repeats, --threads and --device are read here.
        shape, repeats: their defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=shape, metavar=("B", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device, shape = torch.device(args.device), tuple(args.shape)
    noise = torch.Generator(device).manual_seed(1)
    sample, output = (torch.randn(shape, generator=noise, device=device) for _ in range(2))
    contestants = make(shape[1:], device)
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
    return {name: median / reference for name, median in medians.items()}
