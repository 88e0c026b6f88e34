"""Classifier-free guidance (arXiv:2207.12598): the prediction in use is free + w (conditional − free).

Every prediction type is linear in x̂_0 at a given x_t, so that guiding any of them guides x̂_0. The guided mean is not
E[x_0|x_t]: what holds for the posterior mean (its bounds, `score_norm`, `data_variance`) does not hold for it, and the
`residual` about it grows with w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import InputError


@dataclass(frozen=True)
class Guidance:
    """A scale w and the condition of one image that stands for "no condition" (a null label, an empty prompt)."""

    scale: float
    unconditional: torch.Tensor

    def predict(
        self, network: Callable[..., torch.Tensor], x: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """The guided output, (B, C or 2C, H, W), from one call with twice the batch. Of a 2C-channel network the second
        half is the conditional one, as in DiT's own code."""
        null = self._null_for(condition)
        twice = torch.cat([x, x])
        out = network_output(network(twice, torch.cat([timestep, timestep]), torch.cat([condition, null])), twice)
        channels = x.shape[1]
        given, free = out.chunk(2)
        guided = free[:, :channels] + self.scale * (given[:, :channels] - free[:, :channels])
        return torch.cat([guided, given[:, channels:]], dim=1)

    def _null_for(self, condition: torch.Tensor) -> torch.Tensor:
        null = self.unconditional
        if null.shape != condition.shape[1:] or null.is_floating_point() != condition.is_floating_point():
            raise InputError(
                f"unconditional has shape {tuple(null.shape)} and dtype {null.dtype}, but one condition has "
                f"{tuple(condition.shape[1:])} and {condition.dtype}; give one of the same kind."
            )
        return null.to(condition.device, condition.dtype).expand_as(condition)


def network_output(out: Any, x: torch.Tensor) -> torch.Tensor:
    """What a network returned for x, as a tensor with x's batch, height and width; InputError for anything else."""
    out = getattr(out, "sample", out)
    if not isinstance(out, torch.Tensor) or out.shape[:1] + out.shape[2:] != x.shape[:1] + x.shape[2:]:
        found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            f"the network returned {found} for x_t of shape {tuple(x.shape)}; expected the same batch, height and "
            "width."
        )
    return out


def make_guidance(scale: float, unconditional: Any) -> Guidance | None:
    """None for w = 1 (the conditional prediction itself); InputError for a w that is no number, or without a null."""
    if not isinstance(scale, (int, float, np.number)) or not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale!r} must be a finite number; 1 means no guidance.")
    if scale == 1:
        return None
    if unconditional is None:
        raise InputError(
            f"guidance_scale={scale:g} needs the condition that stands for none; pass unconditional= (a null label or "
            "the embedding of the empty prompt), or guidance_scale=1."
        )
    return Guidance(float(scale), condition_tensor(unconditional))


def condition_tensor(condition: Any) -> torch.Tensor:
    """Conditions as a tensor: labels as int64, embeddings in their own floating-point type."""
    if isinstance(condition, torch.Tensor):
        return condition
    try:
        array = np.asarray(condition)
    except ValueError:
        raise InputError("conditions must be of one shape, but they are a ragged list; pad them.") from None
    if array.dtype.kind not in "iufb":
        raise InputError(
            f"conditions must be numbers (class labels or embeddings), but they are {array.dtype}; embed prompts first "
            "(denoiser.prompts.encode)."
        )
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iub" else array.astype(np.float32))


def check_classes(labels: torch.Tensor, classes: int) -> None:
    """Refuse class labels that are not whole numbers, one per image, below `classes`."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(
            f"class labels must be whole numbers, one per image, but they have shape {tuple(labels.shape)} and dtype "
            f"{labels.dtype}."
        )
    # On the GPU the look would wait for it.
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"class labels go from 0 to {classes - 1} for this network, but they are from {int(labels.min())} to "
            f"{int(labels.max())}."
        )
