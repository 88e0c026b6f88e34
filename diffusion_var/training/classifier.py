"""Training of small image classifiers, such as those whose features score digits.

AdamW with a cosine rate on the cross-entropy. Two augmentations, drawn anew for each image and step: a shift by at most
one pixel each way (what moves in is black) and Gaussian noise in [-1, 1] units, which keeps the features smooth around
real images; samples of a diffusion model are never quite noise-free. Every random number comes from (seed, purpose,
step); dropout can only draw from PyTorch's global generators, which are lent to it and given back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..errors import InputError, NumericalError
from ..progress import progress_bar
from ..randomness import generator, normal


class Classifier(Protocol):
    """What is trained: a module with `logits`, float images (B, C, H, W) in [-1, 1] -> (B, classes)."""

    training: bool

    def logits(self, x: Tensor) -> Tensor: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def train(self, mode: bool = True) -> Any: ...


ClassifierT = TypeVar("ClassifierT", bound=Classifier)


def train_classifier(
    network: ClassifierT,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 60,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    noise: float = 0.1,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ClassifierT:
    """Train `network` in place on uint8 images (N, C, H, W) and integer labels (N,); returned in evaluation mode.

    `noise` is the standard deviation of the augmentation, in units of [-1, 1]. `autocast=torch.bfloat16` computes the
    logits in that precision (the loss, the gradients' sums and the weights stay float32); about twice as fast where the
    processor knows it. Runs where the network's parameters are.
    Raises InputError for images and labels that do not fit, NumericalError where the loss is not finite.
    """
    _check(images, labels)
    if epochs < 1 or batch_size < 1:
        raise InputError(f"epochs is {epochs} and batch_size is {batch_size}; expected at least 1 each.")
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay), ("noise", noise)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} is {value}; expected a number of at least 0.")
    device = next(network.parameters()).device
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * math.ceil(len(images) / batch_size)
    network.train()
    with progress_bar(steps, "classifier", "step", progress) as bar:
        for step, chosen in enumerate(_batches(len(images), batch_size, epochs, seed)):
            for group in optimiser.param_groups:
                group["lr"] = 0.5 * learning_rate * (1 + math.cos(math.pi * step / steps))
            x = augment(images[chosen], noise, generator(seed, "classifier augmentation", step)).to(device)
            dropout = _lent_generators(device, int(generator(seed, "classifier dropout", step).integers(2**63)))
            with dropout, torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = network.logits(x)
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen].to(device, torch.int64))
            if not bool(torch.isfinite(loss)):
                raise NumericalError(f"the classifier's loss is {loss.item()} at step {step}; lower the learning rate.")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimiser.step()
            bar.update()
    network.train(False)
    return network


def accuracy(network: Classifier, images: Tensor, labels: Tensor, batch_size: int = 1024) -> float:
    """The fraction, 0 to 1, of uint8 images (N, C, H, W) whose largest logit is at their label; mode is kept."""
    _check(images, labels)
    device, mode = next(network.parameters()).device, network.training
    network.train(False)
    try:
        with torch.inference_mode():
            hits: float = sum(
                (network.logits(_scaled(batch).to(device)).argmax(dim=1).cpu() == truth.cpu()).sum().item()
                for batch, truth in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
            )
    finally:
        network.train(mode)
    return hits / len(images)


def augment(images: Tensor, noise: float, stream: np.random.Generator) -> Tensor:
    """Float images in [-1, 1] plus noise, each shifted by -1, 0 or 1 pixels down and right; (B, C, H, W) uint8 in."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(_scaled(images), (1, 1, 1, 1), value=-1.0)
    down, right = torch.from_numpy(stream.integers(0, 3, (2, count)))
    # unfold: windows[i, :, y, x] is image i shifted by (1 − y, 1 − x) pixels.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    shifted: Tensor = windows[torch.arange(count), :, down, right]
    return shifted + noise * normal(stream, *images.shape)


def _scaled(images: Tensor) -> Tensor:
    return images.cpu().float() / 127.5 - 1


def _batches(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    for epoch in range(epochs):
        order = torch.from_numpy(generator(seed, "classifier order", epoch).permutation(count))
        yield from torch.split(order, batch_size)


@contextmanager
def _lent_generators(device: torch.device, seed: int) -> Iterator[None]:
    """PyTorch's global generators of the CPU and of `device`, seeded inside and as before outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check(images: Tensor, labels: Tensor) -> None:
    for name, value in (("images", images), ("labels", labels)):
        checks.instance(name, value, Tensor, "a tensor (stack them first)")
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0 or labels.shape != images.shape[:1]:
        raise InputError(
            f"the classifier got {images.dtype} images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected uint8 (N, C, H, W) and (N,), N at least 1."
        )
