"""Benchmark of AnalyticFlowScheduler.step: its wall time over that of FlowMatchEuler's with stochastic sampling.

    python scripts/bench_flow_scheduler.py [--threads 1] [--device cuda]

How it is measured is in `step_times.py`. Steps return tuples, as pipelines take them; what the log-probability of the
step adds is a line of its own.
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from step_times import STRUCTURES, TUPLES, Contestant, compare, gaussian_table

import diffusion_var as dv

TARGET = 1.15
STEPS = 28


def contestants(shape: tuple[int, ...], device: torch.device) -> dict[str, Contestant]:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    table = gaussian_table(dv.NoiseSchedule.flow(1000, 3.0), shape, "flow")
    found = {"FlowMatchEuler, stochastic": Contestant(theirs, STEPS, device, **TUPLES)}
    for structure in STRUCTURES:
        scheduler = dv.AnalyticFlowScheduler.from_table(table, theirs, structure=structure, eta=1.0)
        found[f"AnalyticFlowScheduler, {structure}"] = Contestant(scheduler, STEPS, device, **TUPLES)
    scheduler = dv.AnalyticFlowScheduler.from_table(table, theirs, eta=1.0)
    found["isotropic, with log p"] = Contestant(scheduler, STEPS, device)
    return found


if __name__ == "__main__":
    ratios = compare(__doc__, (8, 16, 128, 128), 54, contestants)
    ratio = ratios["AnalyticFlowScheduler, isotropic"]
    print(f"isotropic over FlowMatchEuler: {ratio:.3f} (target: at most {TARGET})")
