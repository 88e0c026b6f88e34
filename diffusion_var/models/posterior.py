"""What a denoiser says of the clean image behind a noisy one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .mean_jacobian import MeanJacobian


@dataclass(frozen=True)
class Posterior:
    """What is known of x_0 given x_t; tensors of shape (B, C, *spatial).

    Attributes:
        mean: the (clipped) estimate of E[x_0|x_t].
        eps: the network's own ε̂.
        range: the raw second half of a 2C-channel network, or None.
        features: the trunk's last activations where a head asks for them, or None.
        jacobian: products with the mean's derivative where a covariance asks for them, or None.
    """

    mean: torch.Tensor
    eps: torch.Tensor
    range: torch.Tensor | None = None
    features: torch.Tensor | None = None
    jacobian: MeanJacobian | None = None

    def rows(self, part: slice) -> Posterior:
        """Of some of the batch's images."""
        extra, features = (None if tensor is None else tensor[part] for tensor in (self.range, self.features))
        jacobian = None if self.jacobian is None else self.jacobian.rows(part)
        return Posterior(self.mean[part], self.eps[part], extra, features, jacobian)

    def detached(self) -> Posterior:
        """The same without a graph."""
        extra, features = (None if tensor is None else tensor.detach() for tensor in (self.range, self.features))
        return Posterior(self.mean.detach(), self.eps.detach(), extra, features, self.jacobian)
