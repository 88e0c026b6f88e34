"""The channel is axis 1 of a batch in every layout: vectors, signals, images and videos with as many frames, rows and
columns as channels, where variances that were counted from the right would land on another axis in silence."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.process.structure import make_structure
from diffusion_var.training.hybrid_loss import range_bound, step_coefficients

C, SCHEDULE = 4, dv.NoiseSchedule.linear(100, 1e-3, 0.2)
VARIANCES = np.array([0.05, 0.2, 0.8, 3.2])
LAYOUTS = [(C,) * axes for axes in (1, 2, 3, 4)]
CONFIG = {
    "num_train_timesteps": 100,
    "beta_schedule": "linear",
    "beta_start": 1e-3,
    "beta_end": 0.2,
    "clip_sample": False,
    "prediction_type": "sample",
}


def over(shape: tuple[int, ...], values: np.ndarray[Any, Any] = VARIANCES) -> np.ndarray[Any, Any]:
    """One value a channel, at every element."""
    return values.reshape(C, *(1,) * (len(shape) - 1)) * np.ones(shape)


@cache
def exact(shape: tuple[int, ...]) -> dv.oracles.GaussianDenoiser:
    return dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, over(shape))


@cache
def table(shape: tuple[int, ...]) -> dv.VarianceTable:
    images = exact(shape).sample(4000 // math.prod(shape) + 40)
    options: dict[str, Any] = {"indices": [*range(1, 101, 9)], "structures": ["channel"], "progress": False}
    return dv.estimate(exact(shape), images, 1e9, **options)


def spread(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """(C,) standard deviation of each channel of a batch."""
    return x.transpose(0, 1).flatten(1).double().std(1).numpy()


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_schedulers_noise(shape: tuple[int, ...]) -> None:
    scheduler = dv.AnalyticScheduler.from_table(table(shape), CONFIG, structure="channel")
    scheduler.set_timesteps(5)
    t = int(scheduler.timesteps[2])
    x = torch.zeros(40_000 // math.prod(shape), *shape)
    found = spread(scheduler.step(x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample)
    kernel = dv.ReverseKernel(SCHEDULE, t + 1, scheduler.previous_timestep(t) + 1)
    v = table(shape).posterior_variance(t + 1, structure="channel").ravel()
    assert found == pytest.approx(np.sqrt(kernel.lambda2 + kernel.gain**2 * v), rel=0.04)
    assert found.max() > 1.2 * found.min()


@pytest.mark.parametrize("shape", LAYOUTS)
def test_a_samplers_images(shape: tuple[int, ...]) -> None:
    """Exact for Gaussian data, whatever the number of steps."""
    structure = make_structure("channel", shape)
    covariance = dv.Analytic(table(shape), structure="channel")
    assert covariance(None, dv.ReverseKernel(SCHEDULE, 60, 20)).variance.shape == structure.variance_shape  # type: ignore[union-attr]
    found = spread(dv.Sampler(exact(shape), covariance, 4).sample(20_000 // math.prod(shape), seed=1))
    assert found == pytest.approx(np.sqrt(VARIANCES), rel=0.15)


def test_a_bound_of_vectors_is_that_of_videos() -> None:
    """Independent elements: so many nats for one of each channel, in every layout."""
    found = {}
    for shape in LAYOUTS:
        data = exact(shape).sample(30_000 // math.prod(shape), seed=3)
        covariance = dv.Analytic(table(shape), structure="channel")
        found[shape] = float(dv.density_bound(exact(shape), covariance, data, 6).value)
    ideal = np.mean(0.5 * np.log2(2 * np.pi * np.e * VARIANCES))
    assert max(found.values()) - min(found.values()) < 0.06
    assert all(ideal - 0.03 < value < ideal + 0.5 for value in found.values())


@pytest.mark.parametrize("shape", LAYOUTS)
def test_eight_bit_bounds(shape: tuple[int, ...]) -> None:
    """The channels' own variances beat the same ones on another axis."""
    narrow = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, over(shape, VARIANCES / 40))
    images = narrow.sample(200, seed=2).clamp(-1, 1)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    options: dict[str, Any] = {"indices": [1, 30, 100], "structures": ["channel"], "progress": False}
    measured = dv.estimate(narrow, images, 1e9, **options)
    own = dv.bits_per_dim(narrow, dv.Analytic(measured, structure="channel"), pixels, 5, data_range=(-1, 1))
    one = dv.bits_per_dim(narrow, dv.Analytic(measured), pixels, 5, data_range=(-1, 1))
    assert own.value < one.value


@pytest.mark.parametrize("shape", LAYOUTS)
def test_the_terms_of_a_learned_range(shape: tuple[int, ...]) -> None:
    """Each row has its own index, and none another's: with as many images as channels."""
    rng = np.random.default_rng(0)
    raw, eps_hat, x_0, eps = (torch.from_numpy(rng.standard_normal((C, *shape))) for _ in range(4))
    n, coefficients = torch.tensor([2, 30, 60, 100]), step_coefficients(SCHEDULE)
    together = range_bound(raw, eps_hat, x_0, eps, n, coefficients, None)
    for k in range(C):
        row = slice(k, k + 1)
        alone = range_bound(raw[row], eps_hat[row], x_0[row], eps[row], n[row], coefficients, None)
        assert torch.allclose(together[row], alone, rtol=1e-12)


def test_an_axis_short_is_refused() -> None:
    from diffusion_var.covariance.reverse import StructuredCovariance

    for shape in LAYOUTS[1:]:
        with pytest.raises(dv.InputError, match=r"variances have shape \(4,\), but structure 'channel'"):
            StructuredCovariance(make_structure("channel", shape), torch.ones(C))
        with pytest.raises(dv.InputError, match="could be the channels or the last axis"):
            dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, VARIANCES, shape=shape)
