"""Training a UNet: the loss falls to what an oracle reaches, runs repeat, and broken input is named."""

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

import diffusion_var as dv
from diffusion_var.errors import InputError, NumericalError
from diffusion_var.randomness import generator
from diffusion_var.training.unet import evaluation_loss, simple_loss, train_unet

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)


class Out:
    """What a diffusers network returns."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


class Linear(torch.nn.Module):
    """ε̂ = w(timestep) x_t, with one weight per timestep: for Gaussian data the best possible is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(100))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Out:
        return Out(self.weight[timestep.long()][:, None, None, None] * x)


def small_unet() -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            dropout=0.1,
        )


def test_trained_weights_approach_the_closed_form() -> None:
    """For x_0 ~ N(0, v): E[ε|x_t] = σ/(α² v + σ²) x_t."""
    variance = 0.25
    images = 0.5 * torch.from_numpy(generator(1, "data").standard_normal((4000, 1, 4, 4))).float()
    network = Linear()
    result = train_unet(
        network, images, SCHEDULE, steps=1500, learning_rate=2e-2, weight_decay=0.0, warmup_steps=10, progress=False
    )
    alpha, sigma = SCHEDULE.alpha[1:], SCHEDULE.sigma[1:]
    expected = sigma / (alpha**2 * variance + sigma**2)
    weight = result.network.weight.detach().numpy()  # type: ignore[union-attr]
    assert np.abs(weight - expected).max() < 0.05
    oracle = Linear()
    oracle.weight.data = torch.from_numpy(expected).float()
    assert evaluation_loss(result.network, images, SCHEDULE) == pytest.approx(
        evaluation_loss(oracle, images, SCHEDULE), rel=5e-3
    )


def test_two_runs_with_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    images = torch.from_numpy(generator(1, "data").standard_normal((50, 1, 8, 8))).float().clamp(-1, 1)
    state = torch.get_rng_state()
    runs = [
        train_unet(small_unet(), images, SCHEDULE, steps=4, batch_size=8, seed=s, progress=False) for s in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in run.network.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not runs[0].network.training


def test_simple_loss_of_the_zero_network_is_one() -> None:
    """E‖0 − ε‖²/d = 1."""
    stream = generator(0, "test")
    loss = simple_loss(Linear(), torch.zeros(500, 1, 8, 8), SCHEDULE, stream).detach()
    assert float(loss) == pytest.approx(1.0, abs=0.03)


def test_refusals() -> None:
    with pytest.raises(InputError, match="steps=0"):
        train_unet(Linear(), torch.zeros(4, 1, 4, 4), SCHEDULE, steps=0)
    broken = Linear()
    broken.weight.data[:] = torch.nan
    with pytest.raises(NumericalError, match="step 0"):
        train_unet(broken, torch.zeros(4, 1, 4, 4), SCHEDULE, steps=2, progress=False)
