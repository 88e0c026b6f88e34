"""A flow of exact Gaussian data, its table and a head, small enough for dense matrices."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from small_pipelines import small_unet

import diffusion_var as dv
from diffusion_var.randomness import generator

SHAPE = (3, 4, 6)
STRUCTURES = ("isotropic", "channel", "pixel", "dct")
SCHEDULE = dv.NoiseSchedule.flow(1000)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def oracle() -> dv.oracles.GaussianDenoiser:
    """Data whose variances differ by element, eightfold by channel."""
    variance = np.random.default_rng(3).uniform(0.2, 1.0, SHAPE) * np.array([0.25, 1.0, 2.0])[:, None, None]
    return dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, variance)


@cache
def measured() -> dv.VarianceTable:
    """Of the exact denoiser, on the grid of shift 1, in few draws."""
    return dv.estimate(oracle(), oracle().sample(400), 1e9, structures=STRUCTURES, progress=False)


@cache
def table() -> dv.VarianceTable:
    """The same, of a network that says F."""
    return replace(measured(), prediction="flow")


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """F = ε̂ − x̂_0 of the exact denoiser, in the sample's dtype."""
    posterior = oracle()(x.double(), dv.NoiseLevel.flow(t))
    return (posterior.eps - posterior.mean).to(x.dtype)


def run(scheduler: Any, x: torch.Tensor, inverted: bool = False, **options: Any) -> torch.Tensor:
    """A scheduler's loop around the exact denoiser, over the timesteps that it has been set."""
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        output = -velocity(x, 1.0 - sigma) if inverted else velocity(x, sigma)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


# ---- a network with features ----------------------------------------------------------------------------------------

HEAD_SHAPE = (1, 8, 8)


@cache
def head_denoiser() -> dv.Denoiser:
    network = small_unet(in_channels=1, out_channels=1)
    return dv.Denoiser(network, SCHEDULE, "flow", HEAD_SHAPE, clip=None, data_range=(-1.0, 1.0))


@cache
def head_table() -> dv.VarianceTable:
    images = torch.from_numpy(generator(1, "small flow images").integers(0, 256, (40, *HEAD_SHAPE))).to(torch.uint8)
    return dv.estimate(head_denoiser(), images, 1e9, indices=[1, 100, 500, 900, 1000], progress=False)


def small_head(**spec: Any) -> dv.Head:
    """An untrained head of the small network, whose factors differ."""
    chosen = dv.HeadSpec(**spec)
    network = chosen.new_network((8, *HEAD_SHAPE[1:]), HEAD_SHAPE)
    for parameter in network.out.parameters():
        drawn = generator(0, "small head", parameter.ndim).standard_normal(parameter.shape)
        parameter.data = torch.from_numpy(0.3 * drawn).float()
    return dv.Head(network.eval().requires_grad_(False), head_table(), chosen)
