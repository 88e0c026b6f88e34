"""Recomputed activations: the same conditioned mean, of twice the forward passes of the blocks, and the network left as
it was."""

from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from measurements import normal
from small_pipelines import small_unet

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.restoration.checkpointing import recomputing

SHAPE = (1, 8, 8)


def conditioned(network: Any, **options: Any) -> dv.ConditionedDenoiser:
    base = dv.Denoiser(network, dv.NoiseSchedule.linear(50, 1e-3, 0.2), shape=SHAPE, clip=(-1.0, 1.0))
    y = normal(2, *SHAPE, seed=1).float()
    return dv.ConditionedDenoiser(base, dv.PiGDM(), dv.Measurement(y, lambda x: x, noise=0.3), **options)


class Calls:
    """How often a UNet's first block runs."""

    def __init__(self, network: UNet2DModel) -> None:
        self.count = 0
        network.down_blocks[0].resnets[0].register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def test_the_mean_is_the_same_and_the_blocks_run_twice() -> None:
    network = small_unet(in_channels=1, out_channels=1)
    x_t, calls = normal(2, *SHAPE).float(), Calls(network)
    plain = conditioned(network)(x_t, 20)
    assert calls.count == 1
    found = conditioned(network, checkpointing=True)(x_t, 20)
    assert calls.count == 3
    assert float((found.mean - plain.mean).abs().max()) < 1e-6
    with torch.inference_mode():
        assert torch.equal(conditioned(network, checkpointing=True)(x_t, 20).mean, found.mean)
    assert calls.count == 5
    assert not network.is_gradient_checkpointing


@pytest.mark.parametrize("before", [False, True])
def test_the_network_is_left_as_it_was_also_after_an_error(before: bool) -> None:
    network = small_unet(in_channels=1, out_channels=1)
    if before:
        network.enable_gradient_checkpointing()
    context = recomputing(network)
    with context():
        assert network.is_gradient_checkpointing
    assert network.is_gradient_checkpointing is before
    with pytest.raises(KeyError), context():
        raise KeyError
    assert network.is_gradient_checkpointing is before


def test_through_a_wrapper() -> None:
    """The network of diffusers inside is what recomputes."""
    network = small_unet(in_channels=1, out_channels=1)
    with recomputing(torch.nn.DataParallel(network))():
        assert network.is_gradient_checkpointing
    assert not network.is_gradient_checkpointing


def test_networks_that_cannot() -> None:
    class Own(torch.nn.Module):
        def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return x

    for network in (Own(), lambda x, t: x):
        with pytest.raises(InputError, match=r"recompute its activations, but this is a (Own|function); leave it out"):
            recomputing(network)
