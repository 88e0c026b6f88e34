"""Training the mean and the covariance together: a network and a head on its last features, from one evaluation [E23].

    L = E‖ε̂ − ε‖² + w E‖h − (y + left)‖²

with the published heads' output h, their target y, and `left`, what h holds beside y (ε̂² for SN, −1 for OCM; see [E9]):
the joint objective of arXiv:2206.07309 and arXiv:2406.10808. y is of the mean as it is and carries no gradient, so
that the head's loss cannot make the mean worse to make its error easier to predict; through the features it may train
the network too, or not (`gradient=False`: then the network is that of the simple loss alone, bit for bit). No variance
table is needed to train; the head that comes out of it belongs to the trained network, and gets that network's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..covariance.head_targets import PUBLISHED_TARGETS, HeadDraw, Target
from ..models.features import FeatureTap
from ..models.heads import HeadKind, HeadNetwork
from ..models.posterior import Posterior
from ..process.schedule import NoiseSchedule
from .loss import drawn_noise


@dataclass(frozen=True)
class JointOutput:
    """What a `JointNetwork` returns: the network's `sample` and the head's raw output, None where it was not asked."""

    sample: torch.Tensor
    raw: torch.Tensor | None


class JointNetwork(torch.nn.Module):
    """A network and a head on its last features as one module, so that one optimiser and one average hold both.

    Args:
        trunk: called as trunk(x_t, timestep).sample.
        target: of the head, "npr", "sn" or "ocm".
        kind, shape: see `HeadNetwork`; the head starts from random weights.
        seed: of the head's weights.
        module: whose input the features are; None: found for diffusers UNets.
        gradient: whether the head's loss reaches the trunk.
    """

    def __init__(
        self,
        trunk: torch.nn.Module,
        target: str,
        kind: HeadKind,
        shape: tuple[int, ...],
        seed: int,
        module: str | None = None,
        gradient: bool = True,
    ) -> None:
        super().__init__()
        self.trunk, self.gradient = trunk, gradient
        self.target: Target = PUBLISHED_TARGETS[target]()
        self._tap = FeatureTap(trunk, module, spatial_axes=len(shape) - 1)
        device = next(trunk.parameters()).device
        trunk.eval()  # nothing random, and no statistics of batches
        with torch.no_grad(), self._tap.reading() as seen:
            trunk(torch.zeros(1, *shape, device=device), torch.ones(1, device=device))
        features = tuple(self._tap.features(seen, 1).shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head = HeadNetwork(kind, features, shape, zero=False).to(device)

    @property
    def config(self) -> Any:
        """The trunk's."""
        return getattr(self.trunk, "config", {})

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, time: torch.Tensor | None = None) -> JointOutput:
        """The trunk's output and, at times n/N, the head's, which is float32 whatever the trunk's precision."""
        if time is None:
            return JointOutput(self.trunk(x_t, timestep).sample, None)
        with self._tap.reading() as seen:
            sample = self.trunk(x_t, timestep).sample
        features = self._tap.features(seen, len(x_t)).float()
        with torch.autocast(x_t.device.type, enabled=False):
            return JointOutput(sample, self.head(features if self.gradient else features.detach(), time))


def joint_losses(
    network: Any,
    x_0: torch.Tensor,
    schedule: NoiseSchedule,
    stream: np.random.Generator,
    n: torch.Tensor | None = None,
    share: slice = slice(None),
    *,
    target: Target,
) -> tuple[torch.Tensor, torch.Tensor]:
    """‖ε̂ − ε‖² and ‖h − (y + left)‖² of [E23], each averaged over the batch and its elements.

    Args: as of `simple_loss`, with the same noise and indices for the same stream; `network` is a `JointNetwork`, or
    its distributed form.
    """
    images, n, eps = drawn_noise(x_0, schedule, stream, n, share)
    probe = torch.from_numpy(stream.integers(0, 2, x_0.shape, dtype=np.int8)).float()[share] * 2 - 1
    device = next(network.parameters()).device
    alpha, sigma = schedule.coefficients(n, images)
    timestep, time = schedule.timesteps(n, len(n)).float(), (n.double() / schedule.num_steps).float()
    product = None
    with torch.set_grad_enabled(torch.is_grad_enabled() or target.needs_probe):
        x_t = (alpha * images + sigma * eps).to(device).requires_grad_(target.needs_probe)
        out = network(x_t, timestep.to(device), time.to(device))
        eps_hat, eps, probe = out.sample.float(), eps.to(device), probe.to(device)
        if target.needs_probe:
            gradient = torch.autograd.grad((eps_hat * probe).sum(), x_t, retain_graph=True)[0]
            product = probe, gradient.float()
    one = torch.ones((len(n), *(1,) * (x_0.ndim - 1)), device=device)  # y in its own units
    posterior = Posterior(images.to(device), eps_hat.detach())  # no published target looks at x̂_0
    draw = HeadDraw(images.to(device), eps, posterior, sigma.to(device), one, 0 * one, one, 0 * one, product)
    said = target.published(out.raw, posterior)
    return torch.nn.functional.mse_loss(eps_hat, eps), target.loss(said, draw, "papers")


def joint_loss(weight: float, simple: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """L [E23] of the two losses."""
    return simple + weight * head
