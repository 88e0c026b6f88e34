"""A step's covariance that is made outside of the scheduler: it takes the place of the scheduler's own."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

import diffusion_var as dv
from diffusion_var.process.structure import Isotropic

SHAPE = (1, 6, 6)
BETAS: dict[str, Any] = {"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.2, "clip_sample": False}


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x_t.flip(-1)) + 0.3 * x_t


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE))).float()


@pytest.mark.filterwarnings("ignore::diffusion_var.errors.DiffusionVarWarning")
def test_steps_follow_the_image_as_the_samplers_do() -> None:
    """The scheduler's trajectory with a Jacobian's covariances is the sampler's, from the same noise."""
    schedule = dv.NoiseSchedule.from_diffusers(DDPMScheduler(**BETAS))
    denoiser = dv.Denoiser(network, schedule, "epsilon", SHAPE, clip=None)
    scheduler = dv.AnalyticScheduler(**BETAS, eta=0.5)
    scheduler.set_timesteps(4)
    covariance = dv.Jacobian(bands=3)
    follow = covariance.prepare(denoiser)
    x, generator, scores = images(), torch.Generator().manual_seed(1), []
    for t in scheduler.timesteps:
        kernel = scheduler.kernel(t)
        assert (kernel.t, kernel.eta) == (int(t) + 1, 0.5)
        posterior = follow(x, kernel.level_t)
        own = None if kernel.last else covariance(posterior, kernel)
        noise = torch.randn(x.shape, generator=generator)
        expected = kernel.mean(x, posterior) + (0.0 if own is None else own.colour(noise))
        out = scheduler.step(network(x, t), t, x, variance_noise=noise, covariance=own)
        torch.testing.assert_close(out.prev_sample, expected, rtol=1e-5, atol=1e-5)
        if own is not None:
            plain = scheduler.step(network(x, t), t, x, variance_noise=noise)
            assert float((plain.prev_sample - expected).abs().max()) > 1e-3  # the scheduler's own is another
            error = (out.prev_sample - kernel.mean(x, posterior)).double()
            log_p = -0.5 * (own.quadratic(error) + own.log_det() + 36 * np.log(2 * np.pi)) / 36
            scores.append((out.log_prob, log_p))
        x = out.prev_sample
    assert len(scores) == 3
    for found, wanted in scores:
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-3, atol=1e-3)


def test_a_cap_is_on_it_too() -> None:
    scheduler = dv.AnalyticScheduler(**BETAS, data_range=(-1.0, 1.0), final_noise_cap=1.0)
    scheduler.set_timesteps(4)
    wide = dv.StructuredCovariance(Isotropic(SHAPE), torch.tensor(4.0))
    deviations = [
        float(scheduler.step(0.1 * images(), t, images(), covariance=wide).std_dev_t.max())
        for t in scheduler.timesteps[:3]
    ]
    assert deviations[:2] == [2.0, 2.0]
    assert deviations[2] == pytest.approx(np.sqrt(np.pi / 2) * 2 / 255, rel=1e-5)
    last = scheduler.step(0.1 * images(), scheduler.timesteps[3], images(), covariance=wide)
    assert float(last.std_dev_t.max()) == 0.0  # the step to clean data adds nothing


def test_flows_take_one_too() -> None:
    scheduler = dv.AnalyticFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    scheduler.set_timesteps(4)
    t, wide = scheduler.timesteps[1], dv.StructuredCovariance(Isotropic(SHAPE), torch.full((4, 1, 1, 1), 4.0))
    kernel = scheduler.kernel(t, eta=0.5)
    assert kernel.eta == 0.5
    assert kernel.sigma_t == pytest.approx(float(scheduler.sigmas[1]))
    noise = images()
    # Scoring leaves the run's place where it is.
    with_it = scheduler.step(0.1 * images(), t, images(), prev_sample=noise, covariance=wide, eta=0.5)
    none = scheduler.step(0.1 * images(), t, images(), prev_sample=noise, noise=False)
    assert float(with_it.std_dev_t.mean()) == 2.0
    assert with_it.log_prob is not None
    assert none.log_prob is None
    scheduler.set_begin_index(3)
    last = scheduler.step(0.1 * images(), scheduler.timesteps[3], images(), covariance=wide)
    assert float(last.std_dev_t.max()) == 0.0  # the step to clean data adds nothing


def test_a_kernel_is_of_its_timestep_and_noise() -> None:
    betas = dv.AnalyticScheduler(**BETAS, eta=0.3)
    flow = dv.AnalyticFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    for scheduler in (betas, flow):
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[1]
        assert (scheduler.kernel(t, eta=0.7).eta, scheduler.kernel(t, tau=0.6).tau) == (0.7, 0.6)
        assert scheduler.kernel(t, tau=0.6).lambda2 != scheduler.kernel(t, tau=0.9).lambda2 > 0.0
        assert scheduler.kernel(t, eta=0.0).lambda2 == 0.0
        assert scheduler.kernel(scheduler.timesteps[3]).last
    assert betas.kernel(betas.timesteps[1]).eta == 0.3


@pytest.mark.parametrize("kind", ["betas", "flow"])
def test_what_does_not_fit_a_step_is_refused(kind: str) -> None:
    made: Any = dv.AnalyticScheduler.from_config(DDPMScheduler(**BETAS).config)
    if kind == "flow":
        made = dv.AnalyticFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    made.set_timesteps(4)
    t, x = made.timesteps[1], images()
    wide = dv.StructuredCovariance(Isotropic(SHAPE), torch.tensor(4.0))
    other = dv.StructuredCovariance(Isotropic((1, 5, 5)), torch.tensor(4.0))
    for given, said in (
        ({"covariance": dv.Jacobian()}, "covariance"),
        ({"covariance": other}, "give one of the same"),
        ({"covariance": wide, "noise": False}, "no meaning with noise=False"),
    ):
        with pytest.raises(dv.InputError, match=said):
            made.step(0.1 * x, t, x, prev_sample=x, **given)


def test_products_alone_are_no_covariance_of_a_scheduler() -> None:
    schedule = dv.NoiseSchedule.from_diffusers(DDPMScheduler(**BETAS))
    scheduler = dv.AnalyticScheduler(**BETAS)
    scheduler.set_timesteps(4)
    lanczos, t = dv.Lanczos(steps=1), scheduler.timesteps[1]
    kernel = scheduler.kernel(t)
    posterior = lanczos.prepare(dv.Denoiser(network, schedule, "epsilon", SHAPE, clip=None))(images(), kernel.level_t)
    with pytest.raises(dv.InputError, match=r"products alone \(dv.Lanczos\)"):
        scheduler.step(network(images(), t), t, images(), covariance=lanczos(posterior, kernel))
