"""Training a diffusion model: the simple loss E‖prediction − target‖² over n ~ U{1…N} (DDPM, arXiv:2006.11239, eq. 14).

The weights that are returned are the exponential moving average of those that were trained. Every random number comes
from (seed, purpose, step), so that a run can be repeated; dropout's come from a forked, seeded global generator.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError, NumericalError
from ..process.schedule import NoiseSchedule
from ..randomness import generator, normal


@dataclass
class TrainingResult:
    """The averaged network and what its losses were.

    Attributes:
        network: the network with averaged weights, in evaluation mode.
        curve: (step, training loss, held-out loss) at the evaluation points, both of the averaged network.
    """

    network: torch.nn.Module
    curve: list[tuple[int, float, float]] = field(default_factory=list)


def train_unet(
    network: torch.nn.Module,
    images: torch.Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int,
    held_out: torch.Tensor | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    warmup_steps: int = 200,
    weight_decay: float = 1e-4,
    ema_decay: float = 0.999,
    autocast: torch.dtype | None = None,
    evaluate_every: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> TrainingResult:
    """Train an ε-predicting diffusers UNet.

    Args:
        network: called as network(x_t, timestep).sample; trained in place.
        images: (M, C, H, W) floats in the data range.
        held_out: images to report a loss on, or None.
        learning_rate: reached after `warmup_steps`, then lowered to zero along a cosine.
        autocast: dtype of the forward pass, or None for float32.

    Raises InputError for unusable arguments, NumericalError where the loss is not finite (names the step).
    """
    from diffusers.training_utils import EMAModel

    if steps < 1 or batch_size < 1 or len(images) == 0:
        raise InputError(
            f"training needs images, steps and a batch size of at least 1, but got {len(images)} images, "
            f"steps={steps}, batch_size={batch_size}."
        )
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    average = EMAModel(network.parameters(), decay=ema_decay)
    result = TrainingResult(copy.deepcopy(network).eval())
    device = next(network.parameters()).device
    network.train()
    with torch.random.fork_rng(devices=[]), tqdm(total=steps, unit="step", desc="train", disable=not progress) as bar:
        torch.manual_seed(seed)
        for step in range(steps):
            stream = generator(seed, "train unet", step)
            picks = torch.from_numpy(stream.integers(len(images), size=batch_size))
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = simple_loss(network, images[picks], schedule, stream)
            if not torch.isfinite(loss):
                raise NumericalError(f"the training loss became {loss.item()} at step {step}; lower the learning rate.")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            average.step(network.parameters())
            bar.update()
            if (step + 1) % evaluate_every == 0 or step + 1 == steps:
                average.copy_to(result.network.parameters())
                losses = [
                    evaluation_loss(result.network, part, schedule) if part is not None else math.nan
                    for part in (images, held_out)
                ]
                result.curve.append((step + 1, losses[0], losses[1]))
                bar.set_postfix(train=f"{losses[0]:.4f}", held_out=f"{losses[1]:.4f}")
    return result


def simple_loss(
    network: Any, x_0: torch.Tensor, schedule: NoiseSchedule, stream: np.random.Generator, n: torch.Tensor | None = None
) -> torch.Tensor:
    """‖ε̂ − ε‖² averaged over a batch (B, C, H, W) at random indices, or at the given n (B,)."""
    if n is None:
        n = torch.from_numpy(stream.integers(1, schedule.num_steps + 1, size=len(x_0)))
    eps = normal(stream, *x_0.shape)
    alpha, sigma = (
        torch.from_numpy(array[n.numpy()]).float()[:, None, None, None] for array in (schedule.alpha, schedule.sigma)
    )
    timestep = torch.from_numpy(schedule.timestep[n.numpy()])
    device = next(network.parameters()).device
    out = network((alpha * x_0 + sigma * eps).to(device), timestep.to(device)).sample
    return torch.nn.functional.mse_loss(out.float(), eps.to(device))


@torch.no_grad()
def evaluation_loss(network: Any, images: torch.Tensor, schedule: NoiseSchedule, repeats: int = 4) -> float:
    """The simple loss with fixed noise and indices spread evenly: comparable between steps and runs."""
    total = 0.0
    for repeat in range(repeats):
        stream = generator(0, "evaluation loss", repeat)
        offset = int(stream.integers(schedule.num_steps))
        n = (torch.arange(len(images)) * schedule.num_steps // len(images) + offset) % schedule.num_steps + 1
        total += float(simple_loss(network, images, schedule, stream, n)) / repeats
    return total
