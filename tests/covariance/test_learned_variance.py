"""LearnedVariance against Improved DDPM's LEARNED (exp of the second half), worked out here from the betas alone."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.sampling.noise import ImageNoise

SHAPE, N = (2, 4, 4), 30
BETAS = np.linspace(1e-3, 0.2, N)
SCHEDULE = dv.NoiseSchedule.from_betas(BETAS)


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """ε̂ and a log-variance that depend on x_t, on time and on the place."""
    time = timestep.to(x_t.dtype)[:, None, None, None] / N
    return torch.cat([torch.tanh(x_t) * (0.8 + 0.2 * time), torch.sin(2 * x_t.flip(-1) + time) - 4], dim=1)


def denoiser(net: Any = network, prediction: Any = "epsilon") -> dv.Denoiser:
    return dv.Denoiser(net, SCHEDULE, prediction, SHAPE)


@pytest.mark.parametrize("steps", [list(range(1, N + 1)), [3, 12, 30]], ids=["all", "respaced"])
def test_a_sampler_is_the_loop_written_out(steps: list[int]) -> None:
    """Improved DDPM's p_sample: the clipped x̂_0 in the posterior's mean, and exp(½ log variance) times noise."""
    noise = ImageNoise(5, range(3), SHAPE, torch.device("cpu"))
    kept = np.append(1.0, np.cumprod(1 - BETAS))
    x = noise.prior().double()
    for t, s in zip(steps[::-1], [*steps[-2::-1], 0], strict=True):
        eps, log_variance = network(x, torch.full((3,), t - 1)).chunk(2, dim=1)
        clean = ((x - np.sqrt(1 - kept[t]) * eps) / np.sqrt(kept[t])).clamp(-1, 1)
        beta = 1 - kept[t] / kept[s]
        x = (np.sqrt(kept[s]) * beta * clean + np.sqrt(1 - beta) * (1 - kept[s]) * x) / (1 - kept[t])
        if s:
            x = x + torch.exp(0.5 * log_variance) * noise.next()
    covariance = dv.LearnedVariance(respaced=len(steps) < N)
    images = dv.Sampler(denoiser(), covariance, steps).sample(3, seed=5)
    assert float((images - x.clamp(-1, 1)).abs().max()) < 1e-5
    other = dv.Sampler(denoiser(), dv.LearnedRange(steps), steps).sample(3, seed=5)
    assert float((images - other).abs().max()) > 0.01
    assert covariance.name == "learned"


def test_the_step_to_clean_data_has_a_variance_too() -> None:
    """For densities the decoder may be the covariance's own: exp of what the network says at the first index."""
    raw = torch.from_numpy(np.random.default_rng(0).normal(-3, 1, (2, *SHAPE)))
    found = dv.LearnedVariance()(dv.Posterior(raw, raw, raw), dv.ReverseKernel(SCHEDULE, 1, 0))
    np.testing.assert_allclose(found.variance.numpy(), np.exp(raw.numpy()), rtol=1e-14)
    assert found.structure.name == "pixel"


def test_the_optimal_log_variance_gives_the_exact_bound() -> None:
    """A network that says E2's log-variance of Gaussian data is as good as the table of them, and better than β̃."""
    variance = np.exp(np.random.default_rng(1).uniform(-3, 0, SHAPE))
    exact = dv.oracles.GaussianDenoiser(SCHEDULE, 0.1, variance)

    def learned(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        n = int(timestep[0]) + 1
        kernel = dv.ReverseKernel(SCHEDULE, n, n - 1)
        log = np.log(kernel.lambda2 + kernel.gain**2 * exact.posterior_variance(n))
        return torch.cat([exact(x_t, n).mean, torch.from_numpy(log).to(x_t).expand_as(x_t)], dim=1)

    model, images = dv.Denoiser(learned, SCHEDULE, "sample", SHAPE, clip=None), exact.sample(400, seed=2)
    options: dict[str, Any] = {"steps": N, "decoder_variance": "covariance", "progress": False}
    learned_bound = dv.density_bound(model, dv.LearnedVariance(), images, **options)
    # Gaussian data and every step exact: the bound is the entropy, ½ log₂(2πe l) a dimension, up to the images drawn.
    entropy = float(np.mean(0.5 * np.log2(2 * np.pi * np.e * variance)))
    assert abs(float(learned_bound) - entropy) < 4 * learned_bound.standard_error + 1e-3
    worse = dv.density_bound(model, dv.FixedSmall(), images, N, decoder_variance=0.05, progress=False)
    assert float(worse) > float(learned_bound) + 0.05


def test_inverted_it_is_what_the_network_leaves_of_x_0() -> None:
    exact = dv.oracles.GaussianDenoiser(SCHEDULE, 0.1, np.exp(np.random.default_rng(1).uniform(-3, 0, SHAPE)))
    for n in (1, 2, 15, N):
        kernel, v = dv.ReverseKernel(SCHEDULE, n, n - 1), exact.posterior_variance(n)
        raw = torch.from_numpy(np.log(kernel.lambda2 + kernel.gain**2 * v))[None]
        for covariance in (dv.LearnedVariance(), dv.LearnedVariance(respaced=True)):
            found = covariance.posterior_covariance(dv.Posterior(raw, raw, raw), SCHEDULE.level(n), SCHEDULE)
            np.testing.assert_allclose(found.variance[0].numpy(), v, rtol=1e-9)


@pytest.mark.parametrize("steps", [[1, 3, 30], 7, [SCHEDULE.level(N), SCHEDULE.level_at(2.0)]])
def test_steps_that_leave_out_indices_are_refused(steps: Any) -> None:
    with pytest.raises(
        dv.InputError, match=r"from an index to the one before, but the step .* is another one; take ev"
    ):
        dv.Sampler(denoiser(), dv.LearnedVariance(), steps)
    dv.Sampler(denoiser(), dv.LearnedVariance(respaced=True), steps).sample(1)


def test_another_schedules_indices_are_refused() -> None:
    other = dv.NoiseSchedule.linear(N)
    with pytest.raises(dv.InputError, match=r"the step 30 to 29 is of another schedule than the denoiser's\.$"):
        dv.Sampler(denoiser(), dv.LearnedVariance(), [other.level(n) for n in range(N, 0, -1)])


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_other_eta_is_refused(eta: float) -> None:
    with pytest.raises(dv.InputError, match=f"LearnedVariance is defined for eta=1 only, but eta={eta}"):
        dv.Sampler(denoiser(), dv.LearnedVariance(respaced=True), 5, eta)


def test_a_network_that_learned_no_variance_is_refused() -> None:
    plain = denoiser(lambda x_t, timestep: network(x_t, timestep)[:, :2])
    with pytest.raises(dv.InputError, match=r"LearnedVariance needs a network with 2C output channels"):
        dv.Sampler(plain, dv.LearnedVariance(), N).sample(2)


def test_respaced_is_yes_or_no() -> None:
    with pytest.raises(dv.InputError, match=r"respaced=25 must be True or False\.$"):
        dv.LearnedVariance(25)  # type: ignore[arg-type]
