"""Diffusers' solvers on a denoiser: their loops are diffusers' own, their evaluations are counted, and what is asked of
them in vain is refused."""

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.process.kernel import ReverseKernel
from diffusion_var.sampling.noise import ImageNoise
from diffusion_var.sampling.solvers import SOLVERS, SolverSampler, steps_within

SCHEDULE = dv.NoiseSchedule.linear(1000)
SHAPE = (2, 3, 3)


def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """No function of one pixel, and none that is linear."""
    time = timestep.view(-1, 1, 1, 1) / 1000.0
    return torch.tanh(x.roll(1, -1)) * (0.3 + time) + 0.5 * x


def solver(name: str, steps: Any = 10, order: int | None = None, **changes: Any) -> SolverSampler:
    settings = {"clip": None, **changes}
    return SolverSampler(dv.Denoiser(network, SCHEDULE, shape=SHAPE, **settings), name, steps, order)


#: A scheduler as a user of diffusers makes it, on the schedule and spacing of `SCHEDULE`.
THEIRS: dict[str, dict[str, Any]] = {
    "dpm_solver_pp": {"timestep_spacing": "linspace"},
    "unipc": {"timestep_spacing": "linspace"},
    "heun": {"timestep_spacing": "trailing"},
    "euler": {"timestep_spacing": "trailing"},
    "euler_ancestral": {"timestep_spacing": "trailing"},
    "sde_dpm_solver_pp": {"timestep_spacing": "linspace", "algorithm_type": "sde-dpmsolver++"},
}


@pytest.mark.parametrize(
    ("name", "order", "clip"),
    [
        *((name, order, None) for name, held in SOLVERS.items() for order in (held.orders or (None,))),
        ("heun", None, (-1.0, 1.0)),  # the one that clips as the denoiser does
    ],
)
def test_the_loop_is_diffusers_own(name: str, order: int | None, clip: Any) -> None:
    """Their loop with an ε-network, on their own timesteps, from the same first noise."""
    config = {**THEIRS[name], **({} if order is None else {"solver_order": order})}
    config |= {} if clip is None else {"clip_sample": True}
    theirs = getattr(diffusers, SOLVERS[name].scheduler)(beta_start=1e-4, beta_end=0.02, **config)
    theirs.set_timesteps(6)
    shown = [float(t) for t in theirs.timesteps]
    levels = [int(t) + 1 for t in dict.fromkeys(shown)][::-1]
    ours = solver(name, levels, order, clip=clip)
    noise = ImageNoise(3, range(4), SHAPE, torch.device("cpu")).prior()
    x = noise if not SOLVERS[name].per_alpha else noise * theirs.sigmas[0].square().add(1).sqrt()
    generators = [torch.Generator().manual_seed(s) for s in seeds_of(3, 4)]
    kinds: dict[str, Any] = {"generator": generators} if SOLVERS[name].is_random else {}
    evaluations = 0
    for t in theirs.timesteps:
        out = network(theirs.scale_model_input(x, t), t.repeat(4))
        x = theirs.step(out, t, x, **kinds).prev_sample
        evaluations += 1
    found = ours.sample(4, seed=3, batch_size=4)
    expected = x if clip is None else x.clamp(*clip)
    assert ours.evaluations == evaluations
    assert float((found - expected).abs().max()) < 2e-4 * max(1.0, float(expected.abs().max()))


def seeds_of(seed: int, images: int) -> list[int]:
    from diffusion_var.randomness import generator

    return [int(generator(seed, "solver noise", i).integers(2**63)) for i in range(images)]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_counted_evaluations_are_the_calls(name: str, steps: int) -> None:
    calls: list[int] = []

    def counted(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return network(x, timestep)

    made = SolverSampler(dv.Denoiser(counted, SCHEDULE, shape=SHAPE), name, steps)
    images = made.sample(3, batch_size=3)
    assert calls == [3] * made.evaluations
    assert made.evaluations == (2 * steps - 1 if name == "heun" else steps)
    assert torch.isfinite(images).all()
    assert images.shape == (3, *SHAPE)
    assert images.abs().max() <= 1.0  # in the data range


@pytest.mark.parametrize("name", SOLVERS)
def test_as_many_steps_as_fit(name: str) -> None:
    for evaluations in range(1, 12):
        steps = steps_within(name, evaluations)
        assert solver(name, steps).evaluations <= evaluations
        assert solver(name, steps + 1).evaluations > evaluations


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    made = solver(name, 5)
    whole = made.sample(7, seed=2, batch_size=7)
    parts = torch.cat(list(made.stream(range(2, 7), seed=2, batch_size=3)))
    assert float((whole[2:] - parts).abs().max()) < 1e-5
    assert float((whole - made.sample(7, seed=3, batch_size=7)).abs().max()) > 0.1


def test_all_begin_with_the_noise_of_the_sampler() -> None:
    """At one step each gives x̂_0 of the noisiest level: DDIM's."""
    ddim = dv.Sampler(dv.Denoiser(network, SCHEDULE, shape=SHAPE), dv.FixedSmall(), 1, eta=0.0).sample(5, seed=4)
    for name in SOLVERS:
        assert float((solver(name, 1, clip=(-1.0, 1.0)).sample(5, seed=4) - ddim).abs().max()) < 1e-3  # σ/α is 157


def test_euler_is_ddim() -> None:
    """Euler's step of dx/dσ = (x − x̂_0)/σ is DDIM's, on any levels."""
    levels = dv.steps.karras(SCHEDULE, 12)
    denoiser = dv.Denoiser(network, SCHEDULE, shape=SHAPE, clip=None, data_range=None)
    ddim = dv.Sampler(denoiser, dv.FixedSmall(), levels, eta=0.0).sample(5)
    assert float((SolverSampler(denoiser, "euler", levels).sample(5) - ddim).abs().max()) < 1e-4


@pytest.mark.parametrize("schedule", [dv.NoiseSchedule.edm(100), dv.NoiseSchedule.vp_sde(100)])
@pytest.mark.parametrize("name", [n for n in SOLVERS if not SOLVERS[n].is_random])
def test_a_schedule_is_a_matter_of_units(name: str, schedule: dv.NoiseSchedule) -> None:
    """Two schedules of the same σ/α give the same images, of a denoiser that says the same of both."""
    sigma = schedule.sigma / schedule.alpha
    for factor in (np.ones_like(sigma), 1.0 / np.sqrt(1.0 + sigma**2), 1.0 / (1.0 + sigma)):
        other = dv.NoiseSchedule(factor, factor * sigma, np.arange(len(sigma)) - 1.0)
        pair = [dv.oracles.MixtureDenoiser(s, [[[0.5]], [[-0.25]]], 0.01) for s in (schedule, other)]
        start = torch.linspace(-2.0, 2.0, 9).view(9, 1, 1)
        images = []
        for denoiser in pair:
            made = SolverSampler(denoiser, name, 8, low_start=True)
            level = made.kernels[0].level_t
            images.append(made.from_noise(start * math.hypot(level.alpha, level.sigma)))
        assert float((images[0] - images[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("schedule", [SCHEDULE, dv.NoiseSchedule.edm(1000)])
@pytest.mark.parametrize("name", SOLVERS)
def test_visits_see_every_step_in_the_units_of_the_data(name: str, schedule: dv.NoiseSchedule) -> None:
    """Data of unit variance: x_s has about that of α_s² + σ_s²."""
    made = SolverSampler(dv.oracles.GaussianDenoiser(schedule, 0.0, np.ones(4)), name, dv.steps.karras(schedule, 30))
    seen: list[tuple[ReverseKernel, torch.Tensor]] = []
    images = torch.cat(
        list(made.stream(range(400), batch_size=400, visit=lambda kernel, x: seen.append((kernel, x.float()))))
    )
    assert [kernel.level_s for kernel, _ in seen] == [kernel.level_s for kernel in made.kernels]
    assert torch.equal(seen[-1][1], images)
    for kernel, x in seen:
        assert 0.6 < float(x.std()) / math.hypot(kernel.alpha_s, kernel.sigma_s) < 1.5, kernel


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solver("heun", order=2), "order=2 has no meaning for the solver heun"),
        (lambda: solver("dpm_solver_pp", order=4), "order=4 must be a whole number from 1 to 3; the solver dpm_solver"),
        (lambda: solver("sde_dpm_solver_pp", order=3), "order=3 must be a whole number from 1 to 2"),
        (lambda: solver("ddim"), "solver=.*ddim.* is not known; use one of dpm_solver_pp, "),
        (
            lambda: SolverSampler(dv.oracles.MixtureDenoiser(dv.NoiseSchedule.flow(50), [[[0.5]]], 1.0), "unipc", 5),
            r"the solver unipc steps by the log-SNR, which is infinite at index 50: no signal .*\(zero terminal SNR\)",
        ),
        (lambda: solver("unipc").invert(torch.zeros(1, *SHAPE)), "the solver unipc cannot be inverted"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_below_the_level_without_signal_they_run() -> None:
    schedule = dv.NoiseSchedule.flow(50)
    denoiser = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full(SHAPE, 0.25))
    levels = [schedule.level(n) for n in range(49, 0, -4)]
    for name in SOLVERS:
        images = SolverSampler(denoiser, name, levels, low_start=True).sample(400, batch_size=400)
        assert 0.3 < float(images.std()) < 0.7, name


def test_a_network_that_fails_is_named_with_its_level() -> None:
    broken = dv.Denoiser(lambda x, t: x * (math.nan if t[0] < 500 else 1.0), SCHEDULE, shape=SHAPE)
    with pytest.raises(dv.NumericalError, match="NaN or infinite values at index n=1"):
        SolverSampler(broken, "heun", [1, 1000]).sample(2)
