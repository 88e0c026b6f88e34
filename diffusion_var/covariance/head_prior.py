"""What a head multiplies: a table's variances, isotropic for heads per pixel, a structure's for the factor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.denoiser import Denoiser
from ..process.kernel import ReverseKernel
from ..process.structure import Pixel, Shape, Structure
from ..variance.estimators import upper_bound
from ..variance.table import VarianceTable
from .head_targets import PIXEL_TARGETS, TINY, FactorTarget, Target
from .reverse import Analytic, mean_error_variance

_KEPT_BYTES = 256 * 1024**2


class Prior:
    """The table's side of a head.

    Args:
        table: a measured table (published arrays lack the residual variance).
        target: name of the head's target.
        structure: whose variances the target "factor" multiplies; None for the others.

    Attributes: `table` (of it what is needed), `shape`, `target`, `structure` (of the head's covariance) and `indices`,
    the first and last index that it knows. Raises InputError for a table that does not hold what is needed.
    """

    def __init__(self, table: VarianceTable, target: str, structure: str | None) -> None:
        if not isinstance(table, VarianceTable):
            raise InputError(
                f"a head needs a VarianceTable, but got {type(table).__name__}; make one with dv.estimate."
            )
        if table.data is None or table.shape is None:
            raise InputError(
                "a head multiplies the residual variance, which a table of published arrays does not know; make one "
                "with dv.estimate."
            )
        self.table = table.subset([] if structure is None else [structure])
        self.shape: Shape = table.shape
        self.analytic = Analytic(self.table, structure=structure or "isotropic")
        self.structure: Structure = Pixel(self.shape) if structure is None else table.structure(structure)
        self.target: Target = PIXEL_TARGETS[target]() if structure is None else FactorTarget(self.structure.forward)
        self.indices = int(table.indices[0]), int(table.indices[-1])
        self._g, self._v, self._most = self._levels()
        self._gap = torch.zeros_like(self._g) if self.target.any_mean else self._disagreement()
        self._elements: dict[int, torch.Tensor] = {}

    def _levels(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """g, v and the upper bound of v at every index, (N + 1,) float64; nan outside the measured ones."""
        schedule, table = self.table.schedule, self.table
        g, v, most = (np.full(schedule.num_steps + 1, math.nan) for _ in range(3))
        for n in range(self.indices[0], self.indices[1] + 1):
            v[n] = table.posterior_variance(n)
            if not v[n] > 0:
                raise InputError(
                    f"the table's residual variance at index {n} is {v[n]:g}, but a head multiplies it and needs a "
                    "positive one; measure the table to a smaller tolerance, or without that index."
                )
            alpha, sigma = float(schedule.alpha[n]), float(schedule.sigma[n])
            g[n] = (alpha / sigma) ** 2 * v[n]
            most[n] = float(upper_bound(alpha, sigma, None, table.data_range))
        return torch.from_numpy(g), torch.from_numpy(v), torch.from_numpy(most)

    def _disagreement(self) -> torch.Tensor:
        """How far an imperfect mean is from what targets of the exact one take for granted, in units of v; (N + 1,).

        With δ_n = (α²/σ²)(score_norm − residual), √(δ_n² + mean of δ²)/g_n: at an index where δ happens to change its
        sign, the network is no better than at its neighbours.
        """
        g, schedule = self._g.numpy(), self.table.schedule
        delta = np.zeros(len(g))
        for n in range(self.indices[0], self.indices[1] + 1):
            if schedule.alpha[n] > 0:
                value = float(self.table.nodes.value("score_norm", "isotropic", n))
                delta[n] = (schedule.alpha[n] / schedule.sigma[n]) ** 2 * value - g[n]
        measured = delta[self.indices[0] : self.indices[1] + 1]
        return torch.from_numpy(np.sqrt(delta**2 + np.mean(measured**2)) / np.maximum(g, TINY))

    def gap(self, indices: torch.Tensor) -> torch.Tensor:
        """That disagreement at indices (B,); (B, 1, 1, 1) float32; 0 for targets that are right for any mean."""
        gap: torch.Tensor = self._gap[indices.cpu()].float()[:, None, None, None]
        return gap

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """g = (α²/σ²) v and v, the isotropic variance, of indices (B,) on the CPU; each (B, 1, 1, 1) float32."""
        g, v = (level[indices.cpu()].float()[:, None, None, None] for level in (self._g, self._v))
        return g, v

    def largest_ratio(self, indices: torch.Tensor) -> torch.Tensor:
        """The upper bound of v that holds for every pixel under the exact mean, divided by v; (B, 1, 1, 1) float32."""
        ratio: torch.Tensor = (self._most / self._v)[indices.cpu()].float()[:, None, None, None]
        return ratio

    def variances(self, indices: torch.Tensor) -> torch.Tensor:
        """What ρ multiplies: the isotropic v, (B, 1, 1, 1), or a structure's, (B, C, H, W); float32 on the CPU."""
        if self.analytic.structure == "isotropic":
            return self.at(indices)[1]
        return torch.stack([self._element_variances(int(n)) for n in indices])

    def _element_variances(self, n: int) -> torch.Tensor:
        if n not in self._elements:
            found = torch.from_numpy(self.table.posterior_variance(n, "residual", self.analytic.structure)).float()
            if (len(self._elements) + 1) * 4 * found.numel() > _KEPT_BYTES:
                self._elements.clear()
            self._elements[n] = found
        return self._elements[n]

    def mean_error(self, kernel: ReverseKernel) -> Any:
        """The table's part of Σ that ρ multiplies, γ² v or its three-moment value; float64, () or (C, H, W)."""
        return mean_error_variance(kernel, *self.analytic.moments(kernel))

    def refuse_guided(self, denoiser: Denoiser) -> None:
        """Refuse a guided mean where the target takes the network's mean for the posterior's."""
        if denoiser.guidance_scale != 1.0 and not self.target.any_mean:
            raise InputError(
                f"the target {self.target.name!r} takes the mean for E[x_0|x_t], which a guided one (scale "
                f"{denoiser.guidance_scale:g}) is not; use 'npr' or 'factor'."
            )
