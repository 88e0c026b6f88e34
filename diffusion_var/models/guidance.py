"""Classifier-free guidance (arXiv:2207.12598): the prediction in use is free + w (conditional − free).

Every prediction type is linear in x̂_0 at a given x_t, so that guiding any of them guides x̂_0. The guided mean is not
E[x_0|x_t]: what holds for the posterior mean (its bounds, `score_norm`, `data_variance`) does not hold for it, and the
`residual` about it grows with w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .. import checks
from ..errors import InputError
from .conditions import as_nest, concatenate, leaves


@dataclass(frozen=True)
class Guidance:
    """A scale w and the condition of one image that stands for "no condition" (a null label, an empty prompt)."""

    scale: float
    unconditional: Any

    def predict(
        self, network: Callable[..., torch.Tensor], x: torch.Tensor, timestep: torch.Tensor, condition: Any
    ) -> torch.Tensor:
        """The guided output, (B, C or 2C, …), from one call with twice the batch. Of a 2C-channel network the second
        half is the conditional one, as in DiT's own code."""
        both = concatenate(condition, self._null_for(condition))
        twice = torch.cat([x, x])
        out = network_output(network(twice, torch.cat([timestep, timestep]), both), twice)
        channels = x.shape[1]
        given, free = out.chunk(2)
        guided = free[:, :channels] + self.scale * (given[:, :channels] - free[:, :channels])
        return torch.cat([guided, given[:, channels:]], dim=1)

    def _null_for(self, condition: Any) -> Any:
        """The unconditional condition for every image of a batch. What a condition by name has more (an image beside
        the noisy one) stays."""
        if isinstance(condition, dict) and isinstance(self.unconditional, dict):
            beside = {name: part for name, part in condition.items() if name not in self.unconditional}
            rest = {name: part for name, part in condition.items() if name in self.unconditional}
            null = self._spread(rest) | beside
            return {name: null.get(name) for name in condition}  # in the condition's own order
        return self._spread(condition)

    def _spread(self, condition: Any) -> Any:
        mine, theirs = leaves(self.unconditional), leaves(condition)
        same = [name for name, _ in mine] == [name for name, _ in theirs]
        checks.refuse(not same, "unconditional is another nest than the conditions; give one of the same kind.")
        for (name, null), (_, leaf) in zip(mine, theirs, strict=True):
            if null.shape != leaf.shape[1:] or null.is_floating_point() != leaf.is_floating_point():
                raise InputError(
                    f"unconditional{name} has shape {tuple(null.shape)} and dtype {null.dtype}, but one condition has "
                    f"{tuple(leaf.shape[1:])} and {leaf.dtype}; give one of the same kind."
                )

        def spread(null: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
            return null.to(leaf.device, leaf.dtype).expand_as(leaf)

        return pytree.tree_map(spread, self.unconditional, condition)


@dataclass(frozen=True)
class OwnGuidance(Guidance):
    """Guidance that the network applies itself, as a pipeline's loop does."""

    def predict(self, network: Callable[..., Any], x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> Any:
        """What the network gives."""
        return network(x, timestep, condition)


def network_output(out: Any, x: torch.Tensor) -> torch.Tensor:
    """What a network returned for x, as a tensor with x's batch and spatial axes; InputError for anything else."""
    out = getattr(out, "sample", out)
    if isinstance(out, torch.Tensor) and not (out.is_floating_point() and out.device == x.device):
        raise InputError(
            f"the network returned {out.dtype} on {out.device} for x_t in {x.dtype} on {x.device}; expected floats on "
            "the same device."
        )
    if not isinstance(out, torch.Tensor) or out.shape[:1] + out.shape[2:] != x.shape[:1] + x.shape[2:]:
        found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        axes = "batch, height and width" if x.ndim == 4 else "batch and spatial axes"
        raise InputError(f"the network returned {found} for x_t of shape {tuple(x.shape)}; expected the same {axes}.")
    return out


def make_guidance(scale: float, unconditional: Any) -> Guidance | None:
    """None for w = 1 (the conditional prediction itself); InputError for a w that is no number, or without a null."""
    scale = checks.number("guidance_scale", scale, "a finite number; 1 means no guidance")
    if scale == 1:
        return None
    if unconditional is None:
        raise InputError(
            f"guidance_scale={scale:g} needs the condition that stands for none; pass unconditional= (a null label or "
            "the embedding of the empty prompt), or guidance_scale=1."
        )
    return Guidance(scale, as_nest(unconditional))
