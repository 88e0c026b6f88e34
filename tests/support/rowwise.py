"""What a user would write: a structure with one variance for every row of an image, and a covariance that uses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import diffusion_var as dv


class Rows(dv.Structure):
    """One variance for each row, shared by channels and columns."""

    name = "rows"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return (1, self.shape[1], 1)


class RowAnalytic(dv.ReverseCovariance):
    """λ² + γ² v with the table's pixel variances averaged over each row."""

    def __init__(self, table: dv.VarianceTable) -> None:
        self.table = table
        assert table.shape is not None
        self.structure = Rows(table.shape)

    @property
    def name(self) -> str:
        return "analytic-rows"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "table": self.table.digest}

    def check(self, denoiser: dv.Denoiser, kernels: list[dv.ReverseKernel]) -> None:
        self.table.check(denoiser)

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        v = self.structure.pool(np.asarray(self.table.posterior_variance(kernel.level_t, structure="pixel")))
        variance = torch.from_numpy(kernel.lambda2 + kernel.gain**2 * v)
        return dv.StructuredCovariance(self.structure, variance if posterior is None else variance.to(posterior.mean))
