"""What a step of either scheduler gives back, and the log-probability of the step [E13]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.utils.outputs import BaseOutput

from .. import checks
from ..covariance.reverse import StructuredCovariance
from ..process.divergence import gaussian_nats

Reduction = Literal["mean", "sum"]
REDUCTIONS = ("mean", "sum")


@dataclass
class AnalyticSchedulerOutput(BaseOutput):
    """One step x_t → x_s of B images.

    Attributes:
        prev_sample: x_s, as it is stored.
        prev_sample_mean: the mean that it was drawn around, float32 (float64 for samples of float64), with its graph.
        std_dev_t: √(tr Σ/d), (1, 1, …), or (B, 1, …) where it is each image's own; 0 where no noise is added.
        log_prob: log p(x_s | x_t) in nats, (B,) float32 (or float64), a dimension or in all; None where Σ = 0. (In all
            of 100,000 dimensions float32 rounds it to hundredths of a nat: for ratios take that of a dimension.)
        pred_original_sample: x̂_0 as it was used (clipped).
    """

    prev_sample: torch.Tensor
    prev_sample_mean: torch.Tensor | None = None
    std_dev_t: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None
    pred_original_sample: torch.Tensor | None = None


def log_probability(
    covariance: StructuredCovariance | None, previous: torch.Tensor, mean: torch.Tensor, reduction: Reduction
) -> torch.Tensor | None:
    """log p(x_s | x_t) of x_s as it is stored, (B,) in nats [E13]; None without a covariance, or for a singular one.

    Args:
        covariance: Σ, in which no gradient flows.
        previous: x_s, images (B, C, *spatial), in which no gradient flows.
        mean: m, alike; its gradient is the log-probability's.
        reduction: "mean" over the d dimensions, or their "sum".
    """
    if covariance is None:
        return None
    # A clone: what was kept by a run in inference mode cannot be differentiated through.
    variance = _exact(covariance.variance.detach().clone())
    if bool((variance <= 0).any()):
        return None
    frozen, stored = StructuredCovariance(covariance.structure, variance), _exact(previous.detach()).to(mean.dtype)
    nats = gaussian_nats(frozen.log_det(), _quadratic(frozen, stored, _exact(mean)), covariance.structure.d)
    value = -nats if reduction == "sum" else -nats / covariance.structure.d
    return value.expand(len(mean)).to(mean.device, mean.dtype)


def _quadratic(covariance: StructuredCovariance, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """(x − m)ᵀ Σ⁻¹ (x − m), (B,). On a CPU one image after another: what is computed with stays in its cache, and an
    image gives the same number in any batch."""
    if x.device.type != "cpu":
        return covariance.quadratic(x - mean)
    structure, variance = covariance.structure, covariance.variance
    own = variance.ndim > len(structure.shape) and len(variance) > 1
    rows = [slice(i, i + 1) for i in range(len(x))]
    parts = [StructuredCovariance(structure, variance[i] if own else variance).quadratic(x[i] - mean[i]) for i in rows]
    return torch.cat(parts)


def deviation(covariance: StructuredCovariance | None, like: torch.Tensor) -> torch.Tensor:
    """√(tr Σ/d), (1 or B, 1, …) like a batch (B, …); 0 without a covariance."""
    axes = (1,) * like.ndim
    if covariance is None:
        return like.new_zeros(axes)
    mean = _exact(covariance.variance.detach())
    mean = mean.double().mean(dim=covariance.structure.axes[-mean.ndim :]) if mean.ndim else mean.double()
    return mean.sqrt().to(like.device, like.dtype).reshape(-1, *axes[1:])


def check_reduction(reduction: str) -> None:
    """Refuse anything but "mean" and "sum"."""
    checks.one_of("log_prob_reduction", reduction, REDUCTIONS, "mean is a dimension's")


def check_previous(prev_sample: object, sample: torch.Tensor) -> None:
    """Refuse an x_s that is no tensor of x_t's shape."""
    found: torch.Tensor = checks.instance("prev_sample", prev_sample, torch.Tensor, "a tensor, the x_s to score")
    shape, wanted = tuple(found.shape), tuple(sample.shape)
    checks.refuse(shape != wanted, f"prev_sample has shape {shape}, but sample has {wanted}; give one of the same.")
    checks.refuse(not found.is_floating_point(), f"prev_sample is {found.dtype}, but floats are expected.")


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """On a device that has float64: Apple's have none."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
