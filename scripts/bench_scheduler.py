"""Benchmark of AnalyticScheduler.step: its wall time over that of diffusers' DDIMScheduler.step(eta=1).

    python scripts/bench_scheduler.py [--threads 1] [--device cuda]

How it is measured is in `step_times.py`. Steps return tuples, as those of Stable Diffusion's pipelines do; what the
log-probability of the step adds, which comes with the other output, is a line of its own.
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from step_times import STRUCTURES, TUPLES, Contestant, compare, gaussian_table

import diffusion_var as dv

TARGET = 1.1
STEPS = 50


def contestants(shape: tuple[int, ...], device: torch.device) -> dict[str, Contestant]:
    theirs = DDIMScheduler(clip_sample=False)
    table = gaussian_table(dv.NoiseSchedule.from_diffusers(theirs), shape, "epsilon")
    found = {"DDIMScheduler, η = 1": Contestant(theirs, STEPS, device, eta=1.0, **TUPLES)}
    for structure in STRUCTURES:
        scheduler = dv.AnalyticScheduler.from_table(table, theirs, structure=structure)
        found[f"AnalyticScheduler, {structure}"] = Contestant(scheduler, STEPS, device, **TUPLES)
    found["isotropic, with log p"] = Contestant(dv.AnalyticScheduler.from_table(table, theirs), STEPS, device)
    return found


if __name__ == "__main__":
    ratios = compare(__doc__, (64, 4, 64, 64), 100, contestants)
    ratio = ratios["AnalyticScheduler, isotropic"]
    print(f"isotropic over DDIMScheduler: {ratio:.3f} (target: at most {TARGET})")
