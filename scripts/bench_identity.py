"""Benchmark of what it costs to know a network again: its share of an estimate, and seconds for a billion parameters.

    python scripts/bench_identity.py [--sizes 0.05 0.3 0.6] [--full]

The first figure is the share of a default `estimate` on the digits network that is spent on the network's identity
(digests of the weights in three precisions, and the probe). The second is the time of a check (digest and probe, as
`Sampler` and `from_table` do it) of random networks of growing size, in billions of parameters, with the slope by which
it is extrapolated to one billion; --full measures that too (4 GB of memory).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import diffusion_var as dv
from diffusion_var.data.digits import digits_splits
from diffusion_var.models.denoiser import Denoiser

SHARE_TARGET, SECONDS_TARGET = 0.01, 2.0
WIDTH = 4096


class Stack(torch.nn.Module):
    """Linear layers of 2²⁴ parameters each, between an image of 8 × 8 and an image of 8 × 8."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(64, WIDTH), torch.nn.Linear(WIDTH, 64)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.enter(x.flatten(1))
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.leave(h).view_as(x)


def share_of_estimate() -> float:
    """The share of a default estimate that goes into the identity."""
    denoiser, spent = dv.Denoiser.from_pretrained("digits", device="cpu"), 0.0
    identity = Denoiser.identity

    def timed(*given: object, **named: object) -> object:
        nonlocal spent
        start = time.perf_counter()
        found = identity(*given, **named)  # type: ignore[arg-type]
        spent += time.perf_counter() - start
        return found

    Denoiser.identity = timed  # type: ignore[assignment, method-assign]
    start = time.perf_counter()
    dv.estimate(denoiser, digits_splits().table.images, progress=False)
    whole = time.perf_counter() - start
    print(f"estimate on digits: {whole:.1f} s, of which the identity {1e3 * spent:.0f} ms: {100 * spent / whole:.3f} %")
    return spent / whole


def check_seconds(layers: int) -> float:
    """Processor seconds of one check of a random network (what else runs on the machine does not count), the median of
    three; by the clock it takes no longer, on a machine of its own."""
    with torch.no_grad():
        model = dv.Denoiser(Stack(layers), dv.NoiseSchedule.linear(1000), shape=(1, 8, 8))
        known = model.identity(keep=True)
        times = []
        for _ in range(3):
            start = time.process_time()
            assert not known.mismatch(model.identity(beside=known), "the table", "the denoiser")
            times.append(time.process_time() - start)
    return float(np.median(times))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=float, nargs="+", default=[0.05, 0.3, 0.6], help="billions of parameters")
    arguments.add_argument("--full", action="store_true", help="measure a billion too")
    options = arguments.parse_args()
    share = share_of_estimate()
    sizes = [*options.sizes, *([1.0] if options.full else [])]
    layers = [max(1, round(1e9 * size / WIDTH**2)) for size in sizes]
    seconds = [check_seconds(count) for count in layers]
    for count, found in zip(layers, seconds, strict=True):
        print(f"check of {count * WIDTH**2 / 1e9:.3f} billion parameters: {found:.3f} s")
    large = [(count * WIDTH**2 / 1e9, found) for count, found in zip(layers, seconds, strict=True)][1:]
    slope, start = np.polyfit(*zip(*large, strict=True), 1) if len(large) > 1 else (large[0][1] / large[0][0], 0.0)
    billion = start + slope
    print(f"slope {slope:.3f} s a billion, so one billion takes {billion:.2f} s")
    print(f"targets: at most {100 * SHARE_TARGET:.0f} % and {SECONDS_TARGET:.0f} s: ", end="")
    print("met" if share <= SHARE_TARGET and billion <= SECONDS_TARGET else "MISSED")


if __name__ == "__main__":
    main()
