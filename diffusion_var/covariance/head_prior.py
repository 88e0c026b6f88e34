"""What a head multiplies: a table's variances, isotropic for heads per pixel, a structure's for heads per band."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .. import checks
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.structure import Pixel, Shape, Structure
from ..variance.table import VarianceTable
from .analytic import Analytic, mean_error_variance
from .head_spec import HeadSpec
from .head_targets import PIXEL_TARGETS, PUBLISHED_TARGETS, TINY, BandTarget, Target

_KEPT_BYTES = 256 * 1024**2


class Prior:
    """The table's side of a head.

    Args:
        table: a measured table (published arrays lack the residual variance).
        spec: of the head. With the papers' output its target is the papers', who know no clipping of x̂_0.

    Attributes: `table` (of it what is needed), `shape`, `target`, `structure` (of the head's covariance), `bands` (None
    of heads per pixel) and `indices`, the first and last index that it knows. Raises InputError for a table that does
    not hold what is needed.
    """

    def __init__(self, table: VarianceTable, spec: HeadSpec) -> None:
        kind = type(table).__name__
        wrong = not isinstance(table, VarianceTable)
        checks.refuse(wrong, f"a head needs a VarianceTable, but got {kind}; make one with dv.estimate.")
        if table.data is None or table.shape is None:
            raise InputError(
                "a head multiplies the residual variance, which a table of published arrays does not know; make one "
                "with dv.estimate."
            )
        name = spec.structure
        self.table = table.subset([] if name is None else [name])
        self.shape: Shape = table.shape
        self.analytic = Analytic(self.table, structure=name or "isotropic")
        self.structure: Structure = Pixel(self.shape) if name is None else table.structure(name)
        self.bands = spec.bands_of(self.shape)
        self.target: Target = (
            (PUBLISHED_TARGETS if spec.output == "papers" else PIXEL_TARGETS)[spec.target]()
            if self.bands is None
            else BandTarget(spec.target, self.structure.forward, self.bands)
        )
        self.indices = int(table.indices[0]), int(table.indices[-1])
        self._g, self._v = self._levels()
        self._gap = torch.zeros_like(self._g) if self.target.any_mean else self._disagreement()
        self._elements: dict[int, torch.Tensor] = {}

    # ---- at every index ---------------------------------------------------------------------------------------

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """g and v at every index, (N + 1,) float64; nan outside the measured ones."""
        schedule = self.table.schedule
        found = np.full((2, schedule.num_steps + 1), math.nan)
        for n in range(self.indices[0], self.indices[1] + 1):
            found[:, n] = self._at_level(schedule.level(n))
        g, v = found
        return torch.from_numpy(g), torch.from_numpy(v)

    def _at_level(self, level: NoiseLevel) -> tuple[float, float]:
        """g = (α²/σ²) v and v."""
        v = self.table.posterior_variance(level)
        if not v > 0:
            raise InputError(
                f"the table's residual variance at {level.name} is {v:g}, but a head multiplies it and needs a "
                "positive one; measure the table to a smaller tolerance, or without that index."
            )
        return (level.alpha / level.sigma) ** 2 * v, v

    def _disagreement(self) -> torch.Tensor:
        """How far an imperfect mean is from what targets of the exact one take for granted, in units of v; (N + 1,).

        With δ_n = (α²/σ²)(score_norm − residual), √(δ_n² + mean of δ²)/g_n: at an index where δ happens to change its
        sign, the network is no better than at its neighbours.
        """
        g, schedule = self._g.numpy(), self.table.schedule
        delta = np.zeros(len(g))
        for n in range(self.indices[0], self.indices[1] + 1):
            if schedule.alpha[n] > 0:
                value = float(self.table.interpolation.value("score_norm", "isotropic", schedule.level(n)))
                delta[n] = (schedule.alpha[n] / schedule.sigma[n]) ** 2 * value - g[n]
        measured = delta[self.indices[0] : self.indices[1] + 1]
        return torch.from_numpy(np.sqrt(delta**2 + np.mean(measured**2)) / np.maximum(g, TINY))

    # ---- of a batch -------------------------------------------------------------------------------------------

    def gap(self, indices: torch.Tensor) -> torch.Tensor:
        """That disagreement at indices (B,); (B, 1, …) float32; 0 for targets that are right for any mean."""
        return self._column(self._gap[indices.cpu()])

    def at(self, n: torch.Tensor | NoiseLevel) -> tuple[torch.Tensor, torch.Tensor]:
        """g = (α²/σ²) v and v, the isotropic variance, of indices (B,) or of one level; each (B or 1, 1, …) float32."""
        if isinstance(n, NoiseLevel):
            g, v = (torch.tensor([value], dtype=torch.float64) for value in self._at_level(n))
        else:
            g, v = self._g[n.cpu()], self._v[n.cpu()]
        return self._column(g), self._column(v)

    def variances(self, indices: torch.Tensor) -> torch.Tensor:
        """What ρ multiplies: the isotropic v, (B, 1, …), or a structure's, (B, C, *spatial); float32 on the CPU."""
        if self.analytic.structure == "isotropic":
            return self.at(indices)[1]
        return torch.stack([self._element_variances(int(n)) for n in indices])

    def _column(self, values: torch.Tensor) -> torch.Tensor:
        """(B,) as (B, 1, …) float32."""
        return values.float().view(-1, *(1,) * len(self.shape))

    def _element_variances(self, n: int) -> torch.Tensor:
        if n not in self._elements:
            found = torch.from_numpy(self.table.posterior_variance(n, "residual", self.analytic.structure)).float()
            if (len(self._elements) + 1) * 4 * found.numel() > _KEPT_BYTES:
                self._elements.clear()
            self._elements[n] = found
        return self._elements[n]

    def mean_error(self, kernel: ReverseKernel) -> Any:
        """The table's part of Σ that ρ multiplies, γ² v or its three-moment value; float64, () or (C, *spatial)."""
        return mean_error_variance(kernel, *self.analytic.moments(kernel))

    def variance_error(self, kernel: ReverseKernel) -> float:
        """γ² v, which a variance of x_0 alone adds to λ², however x̂_0 is clipped [E2]."""
        return kernel.gain**2 * float(self.table.posterior_variance(kernel.level_t))

    def refuse_guided(self, denoiser: Denoiser) -> None:
        """Refuse a guided mean where the target takes the network's mean for the posterior's."""
        if (scale := denoiser.guided_by) is not None and not self.target.any_mean:
            raise InputError(
                f"the target {self.target.name!r} takes the mean for E[x_0|x_t], which a guided one (scale "
                f"{scale:g}) is not; use 'npr', 'factor' or 'bands'."
            )
