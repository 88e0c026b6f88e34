"""Products with the derivative of a mean, as a posterior holds them; `derivative` makes them [E16]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class MeanJacobian:
    """Products with (σ²/α) J at the images of a posterior; 0 for images without signal, of which J says nothing.

    Attributes:
        probed: pairs (v, (σ²/α) J v) that came with the mean, (B, C, *spatial) each.
        product: (σ²/α) J v of (R, C, *spatial) for R of the images that were evaluated together, by their places (R,).
        places: which of them this one's are, (B,) int64 on the CPU.
    """

    probed: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    places: torch.Tensor

    def times(self, v: torch.Tensor) -> torch.Tensor:
        """(σ²/α) J v of (B, C, *spatial): one more pass through the network, without a graph."""
        return self.product(v, self.places)

    def rows(self, part: Any) -> MeanJacobian:
        """Of some of the images: a slice, or their indices."""
        probed = tuple((v[part], image[part]) for v, image in self.probed)
        where = part.to(self.places.device) if isinstance(part, torch.Tensor) else part
        return replace(self, probed=probed, places=self.places[where])
