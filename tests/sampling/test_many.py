"""Sampling in several processes: everybody gets the images of one process, to the byte."""

import os
import signal
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from many import Many, many

import diffusion_var as dv
from diffusion_var.sampling.euler_maruyama import EulerMaruyama
from diffusion_var.sampling.solvers import SolverSampler

Array = npt.NDArray[np.float32]
SCHEDULE = dv.NoiseSchedule.linear(100)
STEPS = [1, 30, 60, 100]


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.2))
        self.rows = 0

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
        self.rows += len(x_t)
        told = 0.0 if condition is None else condition[:, None, None, None] / 10
        return torch.tanh(self.gain * x_t + told) + 0.1 * x_t.flip(-1)


def denoiser() -> dv.Denoiser:
    return dv.Denoiser(Network(), SCHEDULE, shape=(3, 4, 4))


def sampled() -> tuple[Array, int]:
    sampler = dv.Sampler(denoiser(), dv.FixedLarge(), STEPS)
    images = sampler.sample(21, seed=3, batch_size=4, conditions=torch.arange(21))
    images[0] += 1.0  # the user's own, and no inference tensor
    return images.numpy(), sampler.denoiser.network.rows


def solved() -> tuple[Array, int]:
    sampler = SolverSampler(denoiser(), "heun", STEPS)
    return sampler.sample(10, seed=3, batch_size=4).numpy(), sampler.denoiser.network.rows


def stepped() -> tuple[Array, int]:
    sampler = EulerMaruyama(denoiser(), None, STEPS)
    return sampler.sample(10, seed=3, batch_size=4).numpy(), sampler.denoiser.network.rows


def there_and_back() -> tuple[Array, int]:
    sampler = dv.Sampler(denoiser(), dv.FixedSmall(), STEPS, eta=0.0)
    images = torch.linspace(-1, 1, 9 * 48).reshape(9, 3, 4, 4)
    return sampler.from_noise(sampler.invert(images, batch_size=2), batch_size=4).numpy(), sampler.denoiser.network.rows


@pytest.mark.parametrize("call", [sampled, solved, stepped, there_and_back])
def test_two_processes_make_the_images_of_one(call: Any) -> None:
    expected, rows = call()
    found = many(2, call)
    assert all(np.array_equal(images, expected) for images, _ in found)
    assert sum(done for _, done in found) == rows
    assert min(done for _, done in found) >= 0.3 * rows


def test_alone_and_in_streams_a_process_does_all_itself() -> None:
    def alone() -> tuple[Array, Array]:
        rank = int(os.environ["RANK"])
        sampler = dv.Sampler(denoiser(), dv.FixedLarge(), STEPS)
        with dv.alone():
            own = sampler.sample(3, seed=rank)
        return own.numpy(), torch.cat([*sampler.stream(range(rank, 6, 2), seed=7, batch_size=2)]).numpy()

    sampler = dv.Sampler(denoiser(), dv.FixedLarge(), STEPS)
    for rank, (own, part) in enumerate(many(2, alone)):
        assert np.array_equal(own, sampler.sample(3, seed=rank))
        np.testing.assert_allclose(part, sampler.sample(6, seed=7)[rank::2], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"count": 5}, "count"),
        ({"steps": [1, 100]}, "steps"),
        ({"covariance": dv.FixedSmall()}, "covariance"),
        ({"conditions": torch.ones(4)}, "conditions"),
    ],
)
def test_what_differs_is_named_before_the_work(changed: dict[str, Any], named: str) -> None:
    def differ() -> None:
        options = {"seed": 0, "count": 4, "steps": STEPS, "covariance": dv.FixedLarge(), "conditions": torch.zeros(4)}
        options |= changed if os.environ["RANK"] == "1" else {}
        options["conditions"] = torch.zeros(5) if options["count"] == 5 else options["conditions"]
        sampler = dv.Sampler(denoiser(), options["covariance"], options["steps"])
        sampler.sample(options["count"], options["seed"], 2, options["conditions"])

    for end in Many(2, differ).ends():
        assert f"the processes differ in {named}" in (end.error or "")


def test_a_process_that_is_told_to_stop_stops_all() -> None:
    class Stopping(Network):
        def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, condition: Any = None) -> torch.Tensor:
            if os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(x_t, timestep, condition)

    def stop() -> None:
        model = dv.Denoiser(Stopping(), SCHEDULE, shape=(3, 4, 4))
        dv.Sampler(model, dv.FixedLarge(), STEPS).sample(40, batch_size=2)

    assert [(end.error, end.code) for end in Many(2, stop).ends()] == [("Stopped: 15", 0)] * 2
