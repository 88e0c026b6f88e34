"""DDIM inversion: against the closed form of Gaussian data, its order in the steps, and the round trip."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.sampling.inversion import invert_batch

SCHEDULE = dv.NoiseSchedule.linear(1000)
SHAPE = (1, 2, 3)
VARIANCE = np.geomspace(0.05, 1.5, 6).reshape(SHAPE)
MODEL = dv.oracles.GaussianDenoiser(SCHEDULE, 0.2, VARIANCE)


class Run:
    """A network run in the precision of its input."""

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, x: torch.Tensor, n: Any, condition: Any = None) -> dv.Posterior:
        self.evaluations += len(x)
        return MODEL(x, n)


def ddim(steps: Any, model: dv.Denoiser = MODEL) -> dv.Sampler:
    return dv.Sampler(model, dv.FixedSmall(), steps, 0.0)


def images(count: int = 4) -> torch.Tensor:
    return MODEL.sample(count, seed=1).double()


def flow(x_0: torch.Tensor) -> torch.Tensor:
    """The probability-flow ODE from clean data to N: x/α − μ grows with the standard deviation of x_t/α."""
    top = SCHEDULE.level(1000)
    growth = np.sqrt((VARIANCE + (top.sigma / top.alpha) ** 2) / VARIANCE)
    return top.alpha * (0.2 + torch.from_numpy(growth) * (x_0 - 0.2))


def round_trip(x: torch.Tensor, sampler: dv.Sampler) -> torch.Tensor:
    for kernel in sampler.kernels:
        x = sampler.mean(kernel, x, MODEL(x, kernel.level_t))
    return x


def found(K: int, iterations: int) -> tuple[torch.Tensor, dv.Sampler, int]:
    sampler, run = ddim(dv.steps.log_snr_levels(SCHEDULE, K)), Run()
    x = invert_batch(run, sampler.kernels, images(), None, iterations)  # type: ignore[arg-type]
    return x, sampler, run.evaluations


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_it_approaches_the_flow_to_first_order(iterations: int) -> None:
    """DDIM's step is Euler's, so that its very inverse is of first order too."""
    exact = flow(images())
    errors = [float((found(K, iterations)[0] - exact).abs().max()) for K in (40, 80, 160)]
    ratios = np.divide(errors[:-1], errors[1:])
    assert ((ratios > 1.7) & (ratios < 2.4)).all(), (errors, ratios)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_each_iteration_raises_the_order_of_the_round_trip(iterations: int) -> None:
    errors = []
    for K in (40, 80, 160):
        x, sampler, evaluations = found(K, iterations)
        errors.append(float((round_trip(x, sampler) - images()).abs().max()))
        assert evaluations == 4 * K * iterations
    ratios = np.divide(errors[:-1], errors[1:])
    assert (np.abs(np.log2(ratios) - iterations) < 0.3).all(), (errors, ratios)


def test_units_of_the_levels_do_not_matter() -> None:
    """The same flow in units of α = 1: the iterates are the same, x/√(α² + σ²), from the first on."""
    levels = dv.steps.log_snr_levels(SCHEDULE, 20)
    own = [dv.NoiseLevel(1.0, level.sigma / level.alpha, level.timestep) for level in levels]
    found = []
    for steps in (levels, own):
        sampler = ddim(steps)
        x = invert_batch(Run(), sampler.kernels, images(), None, 1)  # type: ignore[arg-type]
        found.append(x / np.hypot(steps[0].alpha, steps[0].sigma))
    torch.testing.assert_close(*found, rtol=1e-10, atol=0)


def test_a_sampler_goes_there_and_back() -> None:
    x_0, sampler = images(5).float(), ddim(60)
    noise = sampler.invert(x_0, iterations=12, batch_size=2)
    assert noise.dtype == torch.float32
    assert float((sampler.from_noise(noise, batch_size=3) - x_0).abs().max()) < 1e-4
    assert float((sampler.invert(x_0, iterations=12) - noise).abs().max()) < 1e-5
    # η = 0.5 from the same noise, with noise of its own: another image, the same for the same seed
    random = dv.Sampler(MODEL, dv.FixedSmall(), 60, 0.5)
    one, again, other = (random.from_noise(noise, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert float((one - other).abs().max()) > 0.1


def test_from_noise_is_the_rest_of_a_run() -> None:
    sampler = dv.Sampler(MODEL, dv.FixedLarge(), 20)
    prior = []
    direct = torch.cat(list(sampler.stream(range(3), seed=4, visit=lambda k, x: prior.append((k, x.clone())))))
    from diffusion_var.sampling.noise import ImageNoise

    start = ImageNoise(4, range(3), SHAPE, torch.device("cpu")).prior()
    assert torch.equal(sampler.from_noise(start, seed=4), direct)


def test_any_network_with_conditions_and_eight_bits() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (0.5 + 0.1 * label.view(-1, 1, 1, 1))

    model = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, data_range=(-1.0, 1.0), classes=3)
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, *SHAPE), dtype=np.uint8))
    sampler = ddim(100, model)
    noise = sampler.invert(x, iterations=8, conditions=[0, 1, 2, 0], batch_size=3)
    back = sampler.from_noise(noise, conditions=[0, 1, 2, 0])
    assert float((back - (x.float() / 127.5 - 1)).abs().max()) < 1e-3
    assert float((sampler.from_noise(noise, conditions=[1, 1, 2, 0])[0] - back[0]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dv.Sampler(MODEL, dv.FixedSmall(), 5), "eta=1 makes the steps random"),
        (lambda: dv.Sampler(MODEL, dv.FixedSmall(), 5, 0.3), "eta=0.3 makes the steps random"),
        (lambda: dv.Sampler(MODEL, dv.FixedSmall(), 5, tau=1.5), "tau=1.5 makes the steps random"),
        (lambda: dv.Sampler(MODEL, dv.EpsSquare(), 5, 0.0), "the covariance eps-square adds noise to the steps"),
        (
            lambda: ddim(5, dv.oracles.GaussianDenoiser(dv.NoiseSchedule.flow(50), 0.2, VARIANCE)),
            "the steps begin at index 50, which holds no signal",
        ),
    ],
)
def test_random_steps_are_refused(make: Any, message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        make().invert(images())


def test_the_odes_step_by_tau_is_invertible_too() -> None:
    x = dv.Sampler(MODEL, dv.FixedSmall(), 30, tau=0.0).invert(images())
    assert torch.equal(x, ddim(30).invert(images()))


def test_a_broken_network_is_named() -> None:
    broken = dv.Denoiser(lambda x, t: x * float("nan"), SCHEDULE, shape=SHAPE, clip=None)
    with pytest.raises(dv.NumericalError, match="the inversion of the images 0 to 1 gave NaN"):
        ddim(5, broken).invert(torch.zeros(2, *SHAPE))
