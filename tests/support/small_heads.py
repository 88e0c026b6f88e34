"""A small model of random weights with its table and heads, and an exact trunk whose features a head can learn from."""

from functools import cache
from typing import Any

import torch
from small_pipelines import small_unet

import diffusion_var as dv
from diffusion_var.models.heads import groups_of
from diffusion_var.randomness import generator

SHAPE = (1, 8, 8)


def images(count: int = 40) -> torch.Tensor:
    return torch.from_numpy(generator(1, "small head images").integers(0, 256, (count, *SHAPE))).to(torch.uint8)


def denoiser(clip: Any = (-1.0, 1.0)) -> dv.Denoiser:
    network = small_unet(in_channels=1, out_channels=1)
    return dv.Denoiser(network, dv.NoiseSchedule.linear(50, 1e-3, 0.2), shape=SHAPE, clip=clip, data_range=(-1.0, 1.0))


@cache
def table(clipped: bool = True) -> dv.VarianceTable:
    model = denoiser((-1.0, 1.0) if clipped else None)
    return dv.estimate(model, images(), indices=[1, 5, 20, 50], tolerance=0.05, progress=False)


def head(scale: float = 0.0, clipped: bool = True, groups: Any = groups_of, **spec: Any) -> dv.Head:
    """An untrained head of the small model, its last layer's weights drawn with standard deviation `scale`."""
    chosen = dv.HeadSpec(**spec)
    features = 8, *SHAPE[1:]
    network = chosen.new_network(features, SHAPE, groups)
    for parameter in network.out.parameters():
        drawn = generator(0, "small head", parameter.ndim).standard_normal(parameter.shape)
        parameter.data = torch.from_numpy(scale * drawn).float()
    return dv.Head(network.eval().requires_grad_(False), table(clipped), chosen)


class MixtureTrunk(torch.nn.Module):
    """The exact ε̂ of a mixture of Gaussians (plus a bias), with what its posterior depends on as features."""

    def __init__(self, exact: dv.oracles.MixtureDenoiser, bias: float = 0.0) -> None:
        super().__init__()
        self.exact, self.bias = exact, bias
        self.last = torch.nn.Identity()
        self.one = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        n = timestep.long() + 1
        posterior = self.exact(x_t, n)
        alpha, sigma = self.exact.schedule.coefficients(n, x_t)
        r = self.exact.responsibilities(x_t.double(), alpha.double(), sigma.double()).float()
        maps = [(r[:, j, None, None, None] * (1 - r[:, j, None, None, None])).expand_as(x_t) for j in range(r.shape[1])]
        level = (sigma / alpha).log().expand_as(x_t)
        features = [x_t, posterior.mean, posterior.eps, posterior.mean**2, level, level**2, *maps, maps[0] * level]
        self.last(torch.cat(features, 1))
        eps = (x_t - alpha * posterior.mean) / sigma
        return eps + self.bias
