"""Small networks in the calling conventions of codes that are not on PyPI, or cannot be installed beside this package.

Each is a smooth function of its input and of what it is told, with random weights, so that a wrong scale, sign, order
or time shows. The formulas are the published codes'.
"""

import math
from itertools import pairwise

import torch


class Body(torch.nn.Module):
    """(x, c) -> like x (or with `out` times the channels): a pointwise network of x and of a number c of any size."""

    def __init__(self, channels: int, out: int = 1, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inside, self.outside = torch.nn.Linear(channels + 2, 16), torch.nn.Linear(16, out * channels)

    def forward(self, x, c):
        c = c.to(x.dtype).reshape(-1, 1)
        told = torch.cat([torch.sin(c), torch.cos(0.1 * c)], 1).reshape(len(x), *(1,) * (x.ndim - 2), 2)
        told = told.expand(*(x.movedim(1, -1).shape[:-1]), 2)
        return self.outside(torch.tanh(self.inside(torch.cat([x.movedim(1, -1), told], -1)))).movedim(-1, 1)


class EDMPrecond(torch.nn.Module):
    """EDM's wrapper (arXiv:2206.00364, table 1): (x, σ, labels) -> x̂_0."""

    def __init__(self, channels=3, sigma_data=0.5, labels=0):
        super().__init__()
        self.sigma_data, self.label_dim, self.sigma_min, self.sigma_max = sigma_data, labels, 0.0, float("inf")
        self.model = Body(channels)
        self.of_labels = torch.nn.Linear(labels, channels) if labels else None

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in, c_noise = 1 / (self.sigma_data**2 + sigma**2).sqrt(), sigma.log() / 4
        out = self.model(c_in * x, c_noise.flatten())
        if self.of_labels is not None and class_labels is not None:
            out = out + self.of_labels(class_labels.to(torch.float32).reshape(-1, self.label_dim))[:, :, None, None]
        return c_skip * x + c_out * out

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


class EDM2Precond(EDMPrecond):
    """EDM2's: the same, without round_sigma."""

    round_sigma = property()  # hasattr says no


class CompVisDenoiser(torch.nn.Module):
    """k-diffusion's wrapper of a discrete network of ε (`external.DiscreteEpsDDPMDenoiser`, quantize=False)."""

    def __init__(self, inner_model, alphas_cumprod):
        super().__init__()
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.register_buffer("sigmas", sigmas)
        self.register_buffer("log_sigmas", sigmas.log())
        self.inner_model = inner_model

    def sigma_to_t(self, sigma):
        log_sigma = sigma.log()
        dists = log_sigma - self.log_sigmas[:, None]
        low = dists.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=len(self.log_sigmas) - 2)
        w = ((self.log_sigmas[low] - log_sigma) / (self.log_sigmas[low] - self.log_sigmas[low + 1])).clamp(0, 1)
        return ((1 - w) * low + w * (low + 1)).view(sigma.shape)

    def forward(self, x, sigma):
        wide = sigma.view(-1, *(1,) * (x.ndim - 1))
        return x - wide * self.inner_model(x / (wide**2 + 1).sqrt(), self.sigma_to_t(sigma))


class VEScore(torch.nn.Module):
    """Score SDE's VE network (`scale_by_sigma`, Fourier features of ln σ): (x, σ) -> the score."""

    def __init__(self, channels=3):
        super().__init__()
        self.model = Body(channels)

    def forward(self, x, sigma):
        return self.model(x, sigma.log()) / sigma.view(-1, 1, 1, 1)


class OpenAIModel(torch.nn.Module):
    """improved-diffusion's call: (x, timesteps, y=None) -> 2C channels."""

    def __init__(self, channels=3, out=2):
        super().__init__()
        self.model = Body(channels, out)

    def forward(self, x, timesteps, y=None):
        return self.model(x, timesteps.float() / 100)


def heun_free_edm_sampler(net, latents, num_steps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """EDM's `edm_sampler` without churn and second-order correction, in its own words."""
    step_indices = torch.arange(num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    t_steps = (high + step_indices / (num_steps - 1) * (low - high)) ** rho
    t_steps = torch.cat([t_steps, torch.zeros_like(t_steps[:1])])
    x_next = latents.to(torch.float64) * t_steps[0]
    for t_cur, t_next in pairwise(t_steps):
        denoised = net(x_next, t_cur.expand(len(latents))).to(torch.float64)
        x_next = x_next + (t_next - t_cur) * (x_next - denoised) / t_cur
    return x_next


def vp_marginal(t, beta_0=0.1, beta_1=20.0):
    """Score SDE's `VPSDE.marginal_prob`: (factor of x_0, std)."""
    log_mean = -0.25 * t**2 * (beta_1 - beta_0) - 0.5 * t * beta_0
    return math.exp(log_mean), math.sqrt(1 - math.exp(2 * log_mean))
