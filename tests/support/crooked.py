"""A tiny imperfect network whose expectations are known to float precision: for tests of the estimator's statistics.

It is neither linear (or the control variates would remove all noise) nor exact (or the estimators would agree).
"""

import numpy as np
import torch

import diffusion_var as dv

SHAPE = (1, 4, 2)
IMAGES = np.random.default_rng(7).normal(0.1, 0.6, size=(8, *SHAPE)).astype(np.float32)
SCHEDULE = dv.NoiseSchedule.linear(1000)


def network(x_t, timestep):
    return 0.8 * torch.tanh(1.3 * x_t) + 0.15 * x_t.flip(-1) + 0.1


def crooked_denoiser(**options):
    return dv.Denoiser(network, SCHEDULE, shape=SHAPE, **{"clip": None, **options})


def expectations(n, images=IMAGES):
    """E over the images and ε of (ε̂², (x_0 − x̂_0)², (x̂_0 − μ)²), each averaged over the pixels, by Gauss-Hermite:
    the network mixes no more than the two pixels of a row."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    eps = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 1, 1, 2)
    weights = np.outer(weights, weights).ravel()
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    total, mu = np.zeros(3), images.astype(np.float64).mean(0)
    for x_0 in images.astype(np.float64):
        x_t = alpha * x_0 + sigma * eps
        eps_hat = network(torch.from_numpy(x_t), None).numpy()
        mean = (x_t - sigma * eps_hat) / alpha
        squares = eps_hat**2, (x_0 - mean) ** 2, (mean - mu) ** 2
        total += [weights @ s.mean((1, 2, 3)) for s in squares]
    return total / len(images)


def truth(n, estimator):
    eps_square, residual, mean_square = expectations(n)
    if estimator == "residual":
        return residual
    if estimator == "score_norm":
        return (SCHEDULE.sigma[n] / SCHEDULE.alpha[n]) ** 2 * (1 - eps_square)
    return IMAGES.astype(np.float64).var(0).mean() - mean_square
