"""Benchmark of what it costs to know a network again: its share of an estimate, and seconds for a billion parameters.

    python scripts/bench_identity.py [--sizes 0.05 0.3 0.6] [--full]

The first figure is the share of a default `estimate` on the digits network that is spent on the network's identity:
the digests of its weights in three precisions and the probe, and the first digest again at the end. The estimate is
stopped after 65,536 evaluations, which makes the share larger than it is, for the cost is the same for more; --full
lets it end.

The second is what random networks of growing size cost, in billions of parameters: at a check (as `Sampler` and
`from_table` make it, beside a table that is there), and at the start of an estimate (which keeps all that a later check
may ask for). From the networks that are too large for SHA-256 it is extrapolated to one billion, with the slope; --full
measures that too (4 GB of memory). It takes about two minutes, with --full five.

What is compared with the targets is processor time: what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

import diffusion_var as dv

SHARE_TARGET, SECONDS_TARGET = 0.01, 2.0
SHA256_FROM = 2**28 / 1e9  # billions of parameters up to which the digest is SHA-256
WIDTH, ROUNDS, EVALUATIONS = 4096, 3, 65_536


class Stack(torch.nn.Module):
    """Linear layers of 2²⁴ parameters each, between an image of 8 × 8 and an image of 8 × 8."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(64, WIDTH), torch.nn.Linear(WIDTH, 64)
        weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
        self.layers = torch.nn.ParameterList(weight.roll(layer, 0) for layer in range(layers))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.enter(x.flatten(1))
        for weight in self.layers:
            h = torch.tanh(h @ weight.T)
        return self.leave(h).view_as(x)


class Clock:
    """Adds up the seconds of calls: `processor` and `wall`."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0

    def time(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        found = function(*given, **named)
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor
        return found


def share_of_estimate(most: int | None) -> float:
    """The share of a default estimate, of at most so many evaluations, that goes into the identity."""
    denoiser, images = dv.Denoiser.from_pretrained("digits", device="cpu"), dv.data.digits_splits().table.images
    whole, part = Clock(), Clock()
    identity, fingerprint = dv.Denoiser.identity, dv.Denoiser.fingerprint.fget
    clocked = {  # at its start, and at its end
        "identity": lambda *given, **named: part.time(identity, *given, **named),
        "fingerprint": property(lambda denoiser: part.time(fingerprint, denoiser)),
    }
    with mock.patch.multiple(dv.Denoiser, **clocked), warnings.catch_warnings():
        warnings.simplefilter("ignore", dv.DiffusionVarWarning)  # the tolerance is not reached
        table = whole.time(dv.estimate, denoiser, images, max_evaluations=most, progress=False)
    share = part.processor / whole.processor
    print(
        f"default estimate on digits, {table.evaluations:,} evaluations: {whole.processor:.1f} s of the processor "
        f"({whole.wall:.1f} s by the clock), of which the identity {part.processor:.3f} s ({part.wall:.3f} s): "
        f"{share:.3%}"
    )
    return share


def seconds_of(layers: int) -> tuple[float, float]:
    """Processor seconds of a check of a random network, and of the start of an estimate; medians."""
    model, spent = dv.Denoiser(Stack(layers), dv.NoiseSchedule.linear(1000), shape=(1, 8, 8)), []
    known = model.identity(keep=True)

    def check() -> None:
        assert not known.mismatch(model.identity(beside=known), "the table", "the denoiser")

    for work in (check, lambda: model.identity(keep=True)):
        clocks = [Clock() for _ in range(ROUNDS)]
        for clock in clocks:
            clock.time(work)
        spent.append([float(np.median([getattr(c, kind) for c in clocks])) for kind in ("processor", "wall")])
    print(f"{layers * WIDTH**2 / 1e9:8.3f}", *(f"{cpu:10.3f} ({wall:6.3f})" for cpu, wall in spent))
    return spent[0][0], spent[1][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.05, 0.3, 0.6], help="billions of parameters")
    parser.add_argument("--full", action="store_true", help="a whole estimate, and a billion too")
    options = parser.parse_args()
    share = share_of_estimate(None if options.full else EVALUATIONS)
    print(f"\nseconds of the processor (and by the clock), medians of {ROUNDS}")
    print("billions   a check             the start of an estimate")
    layers = [max(1, round(1e9 * size / WIDTH**2)) for size in [*options.sizes, *([1.0] if options.full else [])]]
    sizes, found = np.array(layers) * WIDTH**2 / 1e9, np.array([seconds_of(count) for count in layers])
    large = sizes > SHA256_FROM
    if large.sum() < 2:
        parser.error(f"--sizes needs two above {SHA256_FROM:.2f}, from which the slope is taken")
    slope, start = np.polyfit(sizes[large], found[large], 1)
    billion = start + slope
    for name, each, at_one in zip(("a check", "the start of an estimate"), slope, billion, strict=True):
        print(f"one billion, {name}: {at_one:.2f} s (slope {each:.2f} s a billion)")
    met = share <= SHARE_TARGET and billion.max() <= SECONDS_TARGET
    print(f"targets of {SHARE_TARGET:.0%} and {SECONDS_TARGET:g} s: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
