"""Finite populations whose mean and covariance are exactly what a test wants."""

import numpy as np
import torch


def exact_population(count, mean, variance, structure, seed=0):
    """(count, C, H, W) float64: mean exactly `mean`, covariance exactly Bᵀ diag(variance) B in the structure's basis.

    A linear denoiser for these moments then has E r² = (1 − κα)² l + κ²σ² exactly, as for truly Gaussian data.
    """
    z = np.random.default_rng(seed).standard_normal((count, structure.d))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / count)).T
    coefficients = torch.from_numpy(z.reshape(count, *structure.shape) * np.sqrt(variance))
    return structure.inverse(coefficients).numpy() + mean


def elementwise_in(structure, basis, variance):
    """diag of the covariance Bᵀ diag(variance) B (B of `basis`) in another structure's basis, pooled as it pools."""
    d = structure.d
    columns = structure.forward(basis.inverse(torch.eye(d, dtype=torch.float64).reshape(d, *structure.shape)))
    mixed = (columns.flatten(1).square() * torch.from_numpy(variance.reshape(d, 1))).sum(0)
    return structure.pool(mixed.reshape(structure.shape).numpy())
