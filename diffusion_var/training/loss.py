"""The simple loss E‖ε̂ − ε‖² over n ~ U{1…N} (DDPM, arXiv:2006.11239, eq. 14), for training and for measuring; of
networks that predict another F than ε, E‖F̂ − F‖² (velocities: arXiv:2202.00512, rectified flow: arXiv:2209.03003)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.containers import item_at, stacked
from ..data.images import to_float
from ..errors import InputError
from ..models.prediction import TrainedPrediction, network_target
from ..process.schedule import NoiseSchedule
from ..randomness import generator, normal


@dataclass(frozen=True)
class NoisyBatch:
    """What a loss is computed from.

    Attributes:
        x_0: images, (B, C, H, W) float32 on the CPU.
        eps: the noise in x_t, likewise.
        target: what the network should return, likewise: ε itself, or another F of `models.prediction`.
        n: (B,) their indices.
        output: the network's at x_t, (B, C or 2C, H, W) float32, on its device.
    """

    x_0: torch.Tensor
    eps: torch.Tensor
    target: torch.Tensor
    n: torch.Tensor
    output: torch.Tensor

    def simple_loss(self) -> torch.Tensor:
        """‖F̂ − F‖² averaged over the batch; F̂ is the first half of 2C channels."""
        target = self.target.to(self.output.device)
        return torch.nn.functional.mse_loss(self.output[:, : target.shape[1]], target)


def simple_loss(
    network: Any,
    x_0: torch.Tensor,
    schedule: NoiseSchedule,
    stream: np.random.Generator,
    n: torch.Tensor | None = None,
    share: slice = slice(None),
    *,
    prediction: TrainedPrediction = "epsilon",
) -> torch.Tensor:
    """‖F̂ − F‖² averaged over a `noisy_batch`; F is ε by default."""
    return noisy_batch(network, x_0, schedule, stream, n, share, prediction).simple_loss()


def noisy_batch(
    network: Any,
    x_0: torch.Tensor,
    schedule: NoiseSchedule,
    stream: np.random.Generator,
    n: torch.Tensor | None = None,
    share: slice = slice(None),
    prediction: TrainedPrediction = "epsilon",
) -> NoisyBatch:
    """The network's output for a batch (B, C, H, W) at random indices, or at the given n (B,).

    `share` is the part of the batch to evaluate; noise and indices are drawn for all of it, so that parts fit together.
    """
    x_0, n, eps = drawn_noise(x_0, schedule, stream, n, share)
    alpha, sigma = schedule.coefficients(n, x_0)
    timestep = schedule.timesteps(n, len(n)).float()
    device = next(network.parameters()).device
    out = network((alpha * x_0 + sigma * eps).to(device), timestep.to(device)).sample
    target = network_target(prediction, x_0, eps, alpha, sigma)
    return NoisyBatch(x_0, eps, target, n, out.float())


def drawn_noise(
    x_0: torch.Tensor, schedule: NoiseSchedule, stream: np.random.Generator, n: torch.Tensor | None, share: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The share's images, indices (at random, or the given n) and noise, see `noisy_batch`."""
    if n is None:
        n = torch.from_numpy(stream.integers(1, schedule.num_steps + 1, size=len(x_0)))
    return x_0[share], n[share], normal(stream, *x_0.shape)[share]


@torch.no_grad()
def evaluation_loss(
    network: Any,
    images: torch.Tensor,
    schedule: NoiseSchedule,
    repeats: int = 4,
    batch_size: int = 256,
    loss: Callable[..., torch.Tensor] = simple_loss,
) -> float:
    """The simple loss, or another, with fixed noise and indices spread evenly: comparable between steps and runs."""
    total = 0.0
    for repeat in range(repeats):
        stream = generator(0, "evaluation loss", repeat)
        offset = int(stream.integers(schedule.num_steps))
        n = (torch.arange(len(images)) * schedule.num_steps // len(images) + offset) % schedule.num_steps + 1
        for part, indices in zip(torch.split(images, batch_size), torch.split(n, batch_size), strict=True):
            total += float(loss(network, part, schedule, stream, indices)) * len(part)
    return total / (repeats * len(images))


def float_images(images: Any, chosen: Any) -> torch.Tensor:
    """The chosen images of what `by_position` gives, (B, C, H, W) float32; uint8 is scaled to [-1, 1]."""
    if isinstance(images, torch.Tensor):
        batch = images[torch.as_tensor(chosen)]
    else:
        batch = stacked([item_at(images, int(i)) for i in chosen])
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise InputError(f"the images are {batch.dtype}; expected uint8 (0..255) or floats in the data range.")
    return to_float(batch) if batch.dtype == torch.uint8 else batch.float()


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread: the classes of a sorted data set are all among them."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]
