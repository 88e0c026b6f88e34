"""What a head is trained on: noisy images, and what the frozen trunk says of them.

A batch's noise, probes, conditions and floors are drawn for all of it, so that parts fit together whatever the number
of processes and of parts. No graph is kept through the trunk but for the target ocm, which takes one vector-Jacobian
product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..covariance.head import Head
from ..covariance.head_targets import HeadDraw
from ..data.fixed_images import FixedImages
from ..models.conditions import Conditions, as_conditions
from ..models.denoiser import Denoiser
from ..models.network_run import NetworkRun
from ..models.posterior import Posterior
from ..process.kernel import noise_floor
from ..process.schedule import NoiseSchedule
from ..randomness import normal

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Source:
    """Images and their conditions, or None."""

    images: FixedImages
    conditions: Conditions | None

    @classmethod
    def of(cls, images: Any, conditions: Any, denoiser: Denoiser, name: str) -> Source:
        """What a user gives, looked through once, so that a bad image does not end a long run."""
        found = FixedImages(images, denoiser.shape, denoiser.data_range)
        given = as_conditions(conditions, len(found))
        denoiser.require_condition_of(given, name)
        if given is not None:
            given.check(denoiser.classes)
        found.scan()
        return cls(found, given)

    def fingerprint(self) -> tuple[str, str | None]:
        """Of the images, and of their conditions."""
        return self.images.scan(), None if self.conditions is None else self.conditions.fingerprint

    def first_condition(self, device: torch.device) -> Any:
        """The condition of one image, as a batch of one; None without."""
        return None if self.conditions is None else self.conditions.take(np.zeros(1, dtype=np.int64), device)


class HeadDraws:
    """Draws for one head on one trunk.

    Args:
        head: whose target says what is needed of a draw.
        denoiser: the frozen trunk, with features.
    """

    def __init__(self, head: Head, denoiser: Denoiser) -> None:
        self.head, self.denoiser, self.run = head, denoiser, NetworkRun(denoiser)

    def batch(
        self, source: Source, picks: IntArray, n: IntArray, stream: np.random.Generator, parts: Sequence[IntArray]
    ) -> Iterator[tuple[IntArray, HeadDraw, Posterior]]:
        """(rows, draw, posterior) of parts of a batch.

        Args:
            picks, n: of the whole batch, which images and indices.
            stream: of all its other random numbers.
            parts: the rows of each that this process evaluates.
        """
        eps = normal(stream, len(picks), *self.denoiser.shape)
        probe = torch.from_numpy(stream.integers(0, 2, eps.shape, dtype=np.int8)).float() * 2 - 1
        chosen = None if source.conditions is None else source.conditions.pick(picks, stream)
        floor = random_floors(self.denoiser.schedule, n, stream).view(-1, *(1,) * len(self.denoiser.shape))
        for part in parts:
            x_0, condition = source.images.take(picks[part]), None
            if chosen is not None and source.conditions is not None:
                condition = source.conditions.take(chosen[part], self.denoiser.device)
            indices = torch.from_numpy(n[part])
            yield (part, *self._draw(x_0, eps[part], probe[part], indices, floor[part], condition))

    def _draw(
        self,
        x_0: torch.Tensor,
        eps: torch.Tensor,
        probe: torch.Tensor,
        n: torch.Tensor,
        floor: torch.Tensor,
        condition: Any,
    ) -> tuple[HeadDraw, Posterior]:
        """Noisy images, and the trunk's posterior without a graph."""
        device, target, prior = self.denoiser.device, self.head.target, self.head.prior
        x_0, eps, probe = x_0.to(device), eps.to(device), probe.to(device)
        alpha, sigma = self.denoiser.schedule.coefficients(n, x_0)
        x_t = alpha * x_0 + sigma * eps
        product = None
        with torch.set_grad_enabled(target.needs_probe):
            x_t = x_t.requires_grad_(target.needs_probe)
            posterior = self.run(x_t, n, condition)
            if target.needs_probe:
                product = probe, torch.autograd.grad((posterior.eps * probe).sum(), x_t)[0]
        posterior = posterior.detached()
        g, gap, v = (level.to(device) for level in (prior.at(n)[0], prior.gap(n), prior.variances(n)))
        return HeadDraw(x_0, eps, posterior, sigma, g, gap, v, floor.to(device), product), posterior


def random_floors(schedule: NoiseSchedule, n: IntArray, stream: np.random.Generator) -> torch.Tensor:
    """λ²/γ² of a step down from each index, (B,) float32: its length is log-uniform in 1…N, so that fine and coarse
    trajectories count alike, and it ends at 1, for the step to 0 is the decoder's."""
    length = np.round(schedule.num_steps ** stream.random(len(n))).astype(np.int64)
    s = np.maximum(n - np.maximum(length, 1), np.minimum(n - 1, 1))
    return torch.from_numpy(noise_floor(schedule.log_snr[n], schedule.log_snr[s])).float()
