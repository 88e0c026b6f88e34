"""Benchmark of the optimal trajectories: every K ≤ N in one call, over the plain loop, and the costs it starts from.

    python scripts/bench_trajectory.py [--num-steps 1000] [--rounds 5]

Gaussian data with 64 variances and their exact variance table. The plain loop takes np.min(C + F[:, None], axis=0) once
for each K. The two take turns, and medians are compared; their costs must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import diffusion_var as dv

TARGET_RATIO, TARGET_SECONDS = 2.0, 3.0
SPECTRUM = np.logspace(-3, 0, 64)
Float64Array = npt.NDArray[np.float64]


def plain_loop(costs: Float64Array, most: int) -> Float64Array:
    """The dynamic programme as it is written down."""
    least = np.full((most, len(costs)), np.inf)
    least[0, 0] = 0.0
    for k in range(1, most):
        least[k] = np.min(costs + least[k - 1][:, None], axis=0)
    return least


def timed(function: Callable[[], Float64Array]) -> tuple[float, Float64Array]:
    """Seconds, and what the function gave."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main(options: argparse.Namespace) -> None:
    N = options.num_steps
    schedule = dv.NoiseSchedule.linear(N)
    nodes = range(1, N + 1)
    exact = dv.oracles.GaussianDenoiser(schedule, 0.0, SPECTRUM)
    variances = np.stack([exact.posterior_variance(n) for n in nodes])
    seconds: dict[str, list[float]] = {"plain loop": [], "least_costs": []}
    costs = dv.steps.kl_costs(schedule, nodes, variances.mean(1))
    for _ in range(options.rounds):
        loop, expected = timed(lambda: plain_loop(costs, N))
        ours, found = timed(lambda: dv.steps.least_costs(costs, N))
        if not np.array_equal(found, expected):
            raise SystemExit("the two give other costs")
        seconds["plain loop"].append(loop)
        seconds["least_costs"].append(ours)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["plain loop"] / median["least_costs"]
    verdict = "met" if ratio >= TARGET_RATIO and median["least_costs"] < TARGET_SECONDS else "missed"
    print(f"N = {N}, all K at once; medians of {options.rounds} turns, costs equal to the last bit")
    for name, value in median.items():
        print(f"  {name:<12} {value:7.3f} s")
    print(f"  ratio {ratio:.2f} (wanted: at least {TARGET_RATIO:g}, and under {TARGET_SECONDS:g} s: {verdict})")
    for elements in (1, 64, 784, 3072):
        spread = np.repeat(variances, -(-elements // 64), axis=1)[:, :elements]
        took, _ = timed(lambda spread=spread: dv.steps.kl_costs(schedule, nodes, spread))
        print(f"  costs of {elements:5d} elements {took:7.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=1000, help="N of the schedule")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    main(parser.parse_args())
