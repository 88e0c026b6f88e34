"""Euler–Maruyama: against a plain loop of the VP-SDE, and its order against closed forms, without Monte Carlo.

For Gaussian data every step is linear in x_t, so that the variance of x_s follows from that of x_t exactly.
"""

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance
from diffusion_var.process.structure import Pixel
from diffusion_var.sampling.noise import ImageNoise

VARIANCE = np.array([0.02, 0.3, 1.0, 2.5]).reshape(1, 2, 2)


class Exact(ReverseCovariance):
    """The optimal covariance of Gaussian data."""

    name = "exact"

    def __init__(self, model: dv.oracles.GaussianDenoiser) -> None:
        self.model = model

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> StructuredCovariance:
        v = kernel.lambda2 + kernel.gain**2 * self.model.posterior_variance(kernel.level_t)
        return StructuredCovariance(Pixel(self.model.shape), torch.from_numpy(v))


def gaussian(schedule: dv.NoiseSchedule) -> dv.oracles.GaussianDenoiser:
    return dv.oracles.GaussianDenoiser(schedule, 0.0, VARIANCE)


def variances(sampler: dv.Sampler) -> list[np.ndarray]:
    """Var x_s after each step, from the sampler's own mean and noise: the steps are linear."""
    one = torch.ones(1, *VARIANCE.shape, dtype=torch.float64)
    start = sampler.kernels[0].level_t
    found, out = start.alpha**2 * VARIANCE + start.sigma**2, []
    for kernel in sampler.kernels:
        posterior = sampler.denoiser(one, kernel.level_t)
        factor = sampler.mean(kernel, one, posterior)[0].numpy()
        noise = 0.0 if kernel.last else sampler.covariance(posterior, kernel).variance.double().numpy()
        found = factor**2 * found + noise
        out.append(found)
    return out


def test_it_is_the_plain_loop_of_the_vp_sde() -> None:
    """As published for the VP-SDE: t even from ε = 1/N to 1, β(t) in closed form; an imperfect network."""
    N, K, shape = 1000, 10, (2, 3, 4)
    schedule = dv.NoiseSchedule.vp_sde(N)

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (0.7 + 0.3 * timestep.view(-1, 1, 1, 1) / 999) + 0.1 * x.flip(-1)

    model = dv.Denoiser(network, schedule, shape=shape, clip=None)
    steps = [1 + 111 * k for k in range(K)]
    seen = []
    sampler = dv.EulerMaruyama(model, steps=steps)
    images = torch.cat(list(sampler.stream(range(3), seed=5, visit=lambda _, x: seen.append(x.clone()))))
    noise = ImageNoise(5, range(3), shape, torch.device("cpu"))
    x = noise.prior().double()
    for (n, s), state in zip(zip(steps[::-1], steps[-2::-1], strict=False), seen, strict=False):
        t, h = n / N, (n - s) / N
        beta = 0.1 + 19.9 * t
        sigma = np.sqrt(-np.expm1(-(0.1 * t + 19.9 * t**2 / 2)))
        score = -network(x, torch.full((3,), 999.0 * t)) / sigma
        x = x - h * (-beta / 2 * x - beta * score) + np.sqrt(beta * h) * noise.next().double()
        assert float((state - x).abs().max()) < 2e-5 * float(x.abs().max()), n
    assert len(seen) == K
    last = model(seen[-2], 1).mean
    assert torch.equal(images, last)


SCHEDULES = {"vp": dv.NoiseSchedule.vp_sde(1601), "linear": dv.NoiseSchedule.linear(1601, 1e-4, 0.0125)}


@pytest.mark.parametrize("optimal", [False, True], ids=["g²h", "optimal"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_of_first_order(name: str, optimal: bool) -> None:
    """Twice the steps, half the error of every variance at n = 1 (and not a quarter)."""
    schedule = SCHEDULES[name]
    model = gaussian(schedule)
    exact = schedule.alpha[1] ** 2 * VARIANCE + schedule.sigma[1] ** 2
    errors = []
    for intervals in (200, 400, 800, 1600):
        steps = list(range(1, 1602, 1600 // intervals))
        sampler = dv.EulerMaruyama(model, Exact(model) if optimal else None, steps)
        errors.append(np.abs(variances(sampler)[-2] / exact - 1).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert errors[-1] < 0.02
    assert ((ratios > 1.75) & (ratios < 2.6)).all(), (errors, ratios)


def test_the_two_noises_err_to_opposite_sides() -> None:
    """Of variance 1 a VP step makes 1 + (βh)²/4 with g² h, and 1 − (βh)²/4 − β′h²/2 + O(h³) with the optimal noise."""
    schedule = SCHEDULES["vp"]
    model = dv.oracles.GaussianDenoiser(schedule, 0.0, np.ones_like(VARIANCE))
    for t, s in ((1601, 1593), (800, 788), (300, 280)):
        sampler = dv.EulerMaruyama(model, steps=[1, s, t], low_start=True)
        kernel, one = sampler.kernels[0], torch.ones(1, *VARIANCE.shape, dtype=torch.float64)
        posterior = model(one, kernel.level_t)
        square = float(sampler.mean(kernel, one, posterior)[0, 0, 0, 0]) ** 2
        own, best = (float(c(posterior, kernel).variance.double().mean()) for c in (sampler.covariance, Exact(model)))
        step = sampler.sde.at(kernel.level_t)[2] * (t - s)
        assert 0.01 < step < 0.2
        assert (square + own - 1) / (step**2 / 4) == pytest.approx(1.0, abs=1e-4)
        slope = 19.9 / 1601**2 * (t - s) ** 2 / 2
        assert (square + best - 1) / (step**2 / 4 + slope) == pytest.approx(-1.0, abs=step)


@pytest.mark.parametrize("optimal", [False, True], ids=["g²h", "optimal"])
def test_images_have_the_variances_that_follow(optimal: bool) -> None:
    model = gaussian(dv.NoiseSchedule.linear(300, 1e-4, 0.07))
    sampler = dv.EulerMaruyama(model, Exact(model) if optimal else None, 60)
    images = sampler.sample(6000, seed=2, batch_size=3000).double()
    found = images.square().mean(0).numpy() / variances(sampler)[-1]
    assert np.abs(found - 1).max() < 4.5 * np.sqrt(2 / 6000)
    # and the comparison can tell
    assert np.abs(images.square().mean(0).numpy() / VARIANCE - 1).max() > 4.5 * np.sqrt(2 / 6000)


def test_off_the_grid_and_capped() -> None:
    schedule = dv.NoiseSchedule.linear(300, 1e-4, 0.07)
    model = dv.oracles.GaussianDenoiser(schedule, 0.0, VARIANCE)
    levels = dv.steps.karras(schedule, 80)
    exact = levels[-1].alpha ** 2 * VARIANCE + levels[-1].sigma ** 2
    assert np.abs(variances(dv.EulerMaruyama(model, steps=levels))[-2] / exact - 1).max() < 0.25
    clipped = dv.Denoiser(lambda x, t: 0.5 * x, schedule, shape=(1, 2, 2))
    with pytest.raises(dv.InputError, match="capped_steps=9 asks for caps of more steps"):
        dv.EulerMaruyama(clipped, steps=5, final_noise_cap=1.0, capped_steps=9)
    network, rederived = (dv.EulerMaruyama(clipped, steps=9, clipped_eps=c).sample(4) for c in ("network", None))
    assert float((network - rederived).abs().max()) > 1e-3


def test_levels_without_signal_are_refused() -> None:
    model = gaussian(dv.NoiseSchedule.flow(100))
    with pytest.raises(dv.InputError, match="the reverse SDE is singular at index 100, where there is no signal"):
        dv.EulerMaruyama(model, steps=5)
    below = dv.EulerMaruyama(model, steps=list(range(1, 100)), low_start=True)
    exact = 0.99**2 * VARIANCE + 0.01**2
    assert np.abs(variances(below)[-2] / exact - 1).max() < 0.2
    assert bool(torch.isfinite(below.sample(3)).all())
    with pytest.raises(dv.InputError, match="eta=1 makes the steps random, so that they have no inverse"):
        below.invert(torch.zeros(1, 1, 2, 2))
