"""Plain loops that the package is compared with; docs/equations.md shows the same lines."""

from itertools import pairwise

import numpy as np
import torch
from scipy.stats import norm


@torch.no_grad()
def naive_posterior_variance(denoiser, images, n, draws, seed=0):
    """v at index n, isotropic: the mean squared error of the mean."""
    rng, total = np.random.default_rng(seed), 0.0
    alpha, sigma = denoiser.schedule.alpha[n], denoiser.schedule.sigma[n]
    for _ in range(draws):
        x_0 = images[rng.integers(len(images))]
        x_t = alpha * x_0 + sigma * rng.standard_normal(x_0.shape)
        mean = denoiser(torch.from_numpy(x_t)[None], n).mean[0].numpy()
        total += np.mean((x_0 - mean) ** 2)
    return total / draws


@torch.no_grad()
def naive_sample(denoiser, v, steps, noise):
    """One image; v[t] is the posterior variance at index t."""
    alpha, sigma = denoiser.schedule.alpha, denoiser.schedule.sigma
    x = noise[0]
    for k, (t, s) in enumerate(pairwise([*steps[::-1], 0]), start=1):
        x_0 = denoiser(torch.from_numpy(x)[None], t).mean[0].numpy()
        lambda2 = (sigma[t] ** 2 - (alpha[t] / alpha[s]) ** 2 * sigma[s] ** 2) * (sigma[s] / sigma[t]) ** 2
        c = np.sqrt(sigma[s] ** 2 - lambda2)
        gamma = alpha[s] - c * alpha[t] / sigma[t]
        mean = alpha[s] * x_0 + c * (x - alpha[t] * x_0) / sigma[t]
        x = mean if s == 0 else mean + np.sqrt(lambda2 + gamma**2 * v[t]) * noise[k]
    return x


@torch.no_grad()
def naive_bits_per_dim(denoiser, v, decoder_variance, x_0, steps, rng):
    """An upper bound on −log₂ P(x_0) per dimension; its average over `rng` is the bound."""
    alpha, sigma, d = denoiser.schedule.alpha, denoiser.schedule.sigma, x_0.size
    N, std = steps[-1], np.sqrt(decoder_variance)
    nats = 0.5 * np.sum((alpha[N] * x_0) ** 2 + sigma[N] ** 2 - 1 - np.log(sigma[N] ** 2))
    for s, t in pairwise([0, *steps]):
        x_t = alpha[t] * x_0 + sigma[t] * rng.standard_normal(x_0.shape)
        error = x_0 - denoiser(torch.from_numpy(x_t)[None], t).mean[0].numpy()
        if s == 0:
            above = np.where(x_0 > 1 - 1e-6, 1.0, norm.cdf((error + 1 / 255) / std))
            below = np.where(x_0 < -1 + 1e-6, 0.0, norm.cdf((error - 1 / 255) / std))
            nats -= np.sum(np.log(above - below))
        else:
            lambda2 = (sigma[t] ** 2 - (alpha[t] / alpha[s]) ** 2 * sigma[s] ** 2) * (sigma[s] / sigma[t]) ** 2
            gamma = alpha[s] - np.sqrt(sigma[s] ** 2 - lambda2) * alpha[t] / sigma[t]
            own = lambda2 + gamma**2 * v[t]
            nats += 0.5 * (d * (lambda2 / own - 1 + np.log(own / lambda2)) + gamma**2 * np.sum(error**2) / own)
    return nats / (d * np.log(2))
