"""LearnedRange against Improved DDPM's formula (arXiv:2102.09672, eq. 15), worked out here from the betas alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.sampling.noise import ImageNoise

SHAPE = (2, 4, 4)
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "rough": np.random.default_rng(3).uniform(0.001, 0.3, 40),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def posterior_with(raw: torch.Tensor) -> dv.Posterior:
    return dv.Posterior(torch.zeros_like(raw), torch.zeros_like(raw), raw)


def respaced(betas: np.ndarray, steps: list[int], raw: torch.Tensor, k: int) -> np.ndarray:
    """Improved DDPM's variance of step k of a respaced process: its own betas, and the logarithm of β̃ with the first
    entry, which is that of 0, replaced by the second."""
    log_kept = np.cumsum(np.log1p(-betas))[np.array(steps) - 1]  # log ᾱ
    log_before = np.append(0.0, log_kept[:-1])
    beta = -np.expm1(log_kept - log_before)
    beta_tilde = np.expm1(log_before) / np.expm1(log_kept) * beta
    log_clipped = np.log(np.append(beta_tilde[1], beta_tilde[1:]))
    f = (raw.numpy() + 1) / 2
    return np.exp(f * np.log(beta)[k] + (1 - f) * log_clipped[k])


@pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
@pytest.mark.parametrize("spacing", [1, 3, 7])
def test_every_step_of_a_respaced_process(betas: np.ndarray, spacing: int) -> None:
    N, raw = len(betas), normal(3, *SHAPE)
    schedule, steps = dv.NoiseSchedule.from_betas(betas), list(range(2, N + 1, spacing))
    covariance = dv.LearnedRange(steps)
    for k in {0, 1, 2, len(steps) // 2, len(steps) - 1}:
        kernel = dv.ReverseKernel(schedule, steps[k], steps[k - 1] if k else 0)
        found = covariance(posterior_with(raw), kernel).variance
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), respaced(betas, steps, raw, k), rtol=1e-10)
        if k:  # only the step to s = 0 asks for the list
            assert torch.equal(dv.LearnedRange()(posterior_with(raw), kernel).variance, found)


def test_the_ends_of_the_range() -> None:
    kernel = dv.ReverseKernel(dv.NoiseSchedule.from_betas(BETAS["linear"]), 700, 500)
    for value, expected in ((-1.0, kernel.beta_tilde), (1.0, kernel.beta), (0.0, None)):
        found = dv.LearnedRange()(posterior_with(torch.full((1, *SHAPE), value).double()), kernel).variance
        middle = math.sqrt(kernel.beta * kernel.beta_tilde)
        np.testing.assert_allclose(found.numpy(), middle if expected is None else expected, rtol=1e-12)


def test_the_first_step_of_the_full_process_and_of_a_number_of_steps() -> None:
    betas, raw = BETAS["linear"], normal(3, *SHAPE)
    schedule = dv.NoiseSchedule.from_betas(betas)
    kernel = dv.ReverseKernel(schedule, 1, 0)
    full = dv.LearnedRange()(posterior_with(raw), kernel).variance
    np.testing.assert_allclose(full.numpy(), respaced(betas, list(range(1, 1001)), raw, 0), rtol=1e-10)
    for K in (2, 25):
        found = dv.LearnedRange(K)(posterior_with(raw), kernel).variance
        np.testing.assert_allclose(found.numpy(), respaced(betas, dv.steps.linspace(1000, K), raw, 0), rtol=1e-10)
        assert not torch.allclose(found, full)
    # A single step has no β̃ but 0: whatever the network says, β is left.
    kernel = dv.ReverseKernel(schedule, 1000, 0)
    only = dv.LearnedRange(1)(posterior_with(raw), kernel).variance
    np.testing.assert_allclose(only.numpy(), kernel.beta, rtol=1e-12)


@pytest.mark.parametrize("steps", [None, [30, 400, 1000], 25])
def test_another_first_index_is_refused(steps: Any) -> None:
    kernel = dv.ReverseKernel(dv.NoiseSchedule.from_betas(BETAS["linear"]), 20, 0)
    first = 30 if isinstance(steps, list) else 1
    with pytest.raises(dv.InputError, match=rf"goes from index 20 to 0, but its steps begin with {first}; pass the"):
        dv.LearnedRange(steps)(posterior_with(normal(1, *SHAPE)), kernel)


# ---- in a sampler ------------------------------------------------------------------------------------------------


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """ε̂ and a raw range that depend on x_t, on time and on the place."""
    time = timestep.to(x_t.dtype)[:, None, None, None] / 1000
    return torch.cat([torch.tanh(x_t) * (0.8 + 0.2 * time), torch.sin(2 * x_t.flip(-1) + time)], dim=1)


def denoiser(net: Any = network) -> dv.Denoiser:
    return dv.Denoiser(net, dv.NoiseSchedule.linear(1000), shape=SHAPE, clip=(-1.0, 1.0))


@pytest.mark.parametrize("steps", [[1, 250, 500, 750, 1000], [40, 333, 1000]])
def test_a_sampler_is_the_loop_written_out(steps: list[int]) -> None:
    """Improved DDPM's p_sample: the clipped x̂_0 in the posterior's mean, and exp(½ log variance) times noise."""
    betas, noise = BETAS["linear"], ImageNoise(5, range(3), SHAPE, torch.device("cpu"))
    alpha_bar = np.append(1.0, np.cumprod(1 - betas))
    x = noise.prior().double()
    for k in reversed(range(len(steps))):
        t, s = steps[k], steps[k - 1] if k else 0
        eps, raw = network(x, torch.full((3,), t - 1)).chunk(2, dim=1)
        clean = ((x - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha_bar[t])).clamp(-1, 1)
        beta = 1 - alpha_bar[t] / alpha_bar[s]
        x = (np.sqrt(alpha_bar[s]) * beta * clean + np.sqrt(1 - beta) * (1 - alpha_bar[s]) * x) / (1 - alpha_bar[t])
        if k:
            x = x + torch.from_numpy(respaced(betas, steps, raw, k)).sqrt() * noise.next()
    for covariance in (dv.LearnedRange(), dv.LearnedRange(steps)):  # the last step adds no noise, and asks for no list
        images = dv.Sampler(denoiser(), covariance, steps).sample(3, seed=5)
        assert float((images - x.clamp(-1, 1)).abs().max()) < 1e-5
    plain = dv.Sampler(denoiser(), dv.FixedSmall(), steps).sample(3, seed=5)
    assert float((images - plain).abs().max()) > 0.01


def test_images_do_not_depend_on_the_batch() -> None:
    """The covariance is of each image's own, and not the first batch's for all."""
    sampler = dv.Sampler(denoiser(), dv.LearnedRange(), [1, 300, 700, 1000])
    together = sampler.sample(5, seed=1, batch_size=5)
    assert float((sampler.sample(5, seed=1, batch_size=2) - together).abs().max()) < 1e-5
    assert sampler.covariance.name == "learned_range"


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_other_eta_is_refused(eta: float) -> None:
    with pytest.raises(dv.InputError, match=f"eta=1 only, but eta={eta}"):
        dv.Sampler(denoiser(), dv.LearnedRange(), 5, eta)
    kernel = dv.ReverseKernel(dv.NoiseSchedule.linear(1000), 500, 400, eta)
    with pytest.raises(dv.InputError, match=f"eta=1 only, but eta={eta}"):
        dv.LearnedRange()(posterior_with(normal(1, *SHAPE)), kernel)


def test_a_network_that_learned_no_range_is_refused() -> None:
    plain = denoiser(lambda x_t, timestep: network(x_t, timestep)[:, :2])
    with pytest.raises(dv.InputError, match="needs a network with 2C output channels"):
        dv.Sampler(plain, dv.LearnedRange(), 5).sample(2)
    with pytest.raises(dv.InputError, match="needs a network with 2C output channels"):
        dv.LearnedRange()(None, dv.ReverseKernel(dv.NoiseSchedule.linear(1000), 500, 400))


def test_inverted_it_is_what_the_network_leaves_of_x_0() -> None:
    """A network that says E2's variance of Gaussian data gives their Cov[x_0|x_t] back, in float32 too."""
    schedule = dv.NoiseSchedule.from_betas(BETAS["linear"])
    exact = dv.oracles.GaussianDenoiser(schedule, 0.0, np.exp(np.random.default_rng(1).uniform(-3, 0, SHAPE)))
    for n in (2, 100, 500, 1000):
        kernel, v = dv.ReverseKernel(schedule, n, n - 1), exact.posterior_variance(n)
        # In the range there is room for it: β̃ + γ² v is below β for data of variance below 1.
        fraction = np.log(1 + kernel.gain**2 * v / kernel.beta_tilde) / np.log(kernel.beta / kernel.beta_tilde)
        assert 0.0 <= fraction.min() <= fraction.max() <= 1.0
        raw = torch.from_numpy(2 * fraction - 1)[None]
        for dtype, close in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
            posterior = posterior_with(raw.to(dtype))
            found = dv.LearnedRange(25).posterior_covariance(posterior, schedule.level(n), schedule)
            assert found.variance.dtype == dtype
            np.testing.assert_allclose(found.variance[0].double().numpy(), v, rtol=close)
    below = posterior_with(torch.full((1, *SHAPE), -1.1))  # networks leave the range: less than β̃ leaves nothing
    assert float(dv.LearnedRange().posterior_covariance(below, schedule.level(500), schedule).variance.max()) == 0.0


def test_inverted_it_asks_for_a_level_of_the_schedule() -> None:
    schedule = dv.NoiseSchedule.from_betas(BETAS["rough"])
    raw = posterior_with(normal(1, *SHAPE))
    off = dv.NoiseLevel(0.8, 0.5, 3.5)
    for level, known in ((off, schedule), (off, None), (schedule.level(3), None)):
        with pytest.raises(dv.InputError, match="is of none; take indices of the denoiser's schedule as steps"):
            dv.LearnedRange().posterior_covariance(raw, level, known)
