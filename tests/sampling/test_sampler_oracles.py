"""Whole sampling loops against diffusers' schedulers, with the same network and the same noise.

Traps of diffusers: its previous timestep is t − N//K, which is right for "leading" spacing only; DDPM adds noise
"where t > 0" and not "unless last" (the same for leading spacing with offset 0); DDIM ends at alpha 1 only with
set_alpha_to_one=True. Its own alphas are float32: they are compared as they are (loosely) and in float64 (closely).
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

import diffusion_var as dv
from diffusion_var.sampling.noise import ImageNoise

N, SHAPE, BATCH, SEED = 1000, (2, 3, 4), 5, 11
COMMON = {"num_train_timesteps": N, "beta_schedule": "linear", "timestep_spacing": "leading", "steps_offset": 0}


def network(x_t, timestep):
    """Imperfect enough for clipping to act, and dependent on time and neighbours."""
    time = (timestep.double() / N).to(x_t.dtype)[:, None, None, None]
    return torch.tanh(1.4 * x_t) * (0.7 + 0.3 * time) + 0.1 * x_t.flip(-1) - 0.05


def ours(K, eta, covariance, clipping, clipped_eps=None):
    denoiser = dv.Denoiser(network, dv.NoiseSchedule.linear(N), shape=SHAPE, clip=(-1.0, 1.0) if clipping else None)
    steps = dv.steps.leading(N, K)
    return dv.Sampler(denoiser, covariance, steps, eta, clipped_eps=clipped_eps).sample(BATCH, SEED, BATCH)


def prepared(scheduler, K, precise):
    scheduler.set_timesteps(K)
    assert scheduler.timesteps.tolist() == [n - 1 for n in dv.steps.leading(N, K)][::-1]
    if precise:
        schedule = dv.NoiseSchedule.linear(N)
        scheduler.alphas_cumprod = torch.from_numpy(schedule.alpha[1:] ** 2)
    return scheduler


def loop(scheduler, step):
    """diffusers' loop from our noise; `step(eps, t, x, noise)` gives the previous sample."""
    noise = ImageNoise(SEED, range(BATCH), SHAPE, torch.device("cpu"))
    x = noise.prior()
    for t in scheduler.timesteps:
        eps = network(x, t.expand(BATCH))
        x = step(eps, t, x, noise.next() if t > 0 else torch.zeros_like(x)).float()
    return x


def tolerance(precise, images):
    # x̂_0 = (x − σ ε̂)/α has float32 rounding of 1/α ~ 160 at the first step; alphas in float32 lose 1.7e-4 of σ_1².
    return (5e-5 if precise else 3e-3) * max(1.0, float(images.abs().max()))


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("K", [1, 7, 10, 100])
def test_ddpm_loops(K, variance_type, clipping, precise, monkeypatch):
    scheduler = DDPMScheduler(**COMMON, variance_type=variance_type, clip_sample=clipping, clip_sample_range=1.0)
    scheduler = prepared(scheduler, K, precise)

    def step(eps, t, x, noise):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise)
        return scheduler.step(eps, t, x).prev_sample

    theirs = loop(scheduler, step)
    mine = ours(K, 1.0, dv.FixedSmall() if variance_type == "fixed_small" else dv.FixedLarge(), clipping)
    assert float((mine - theirs).abs().max()) < tolerance(precise, theirs)
    assert float(theirs.std()) > 0.05


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("clipping", [None, "network", "rederived"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [1, 7, 10, 100])
def test_ddim_loops(K, eta, clipping, precise):
    scheduler = DDIMScheduler(**COMMON, clip_sample=clipping is not None, clip_sample_range=1.0, set_alpha_to_one=True)
    scheduler = prepared(scheduler, K, precise)
    assert float(scheduler.final_alpha_cumprod) == 1.0
    options = {"eta": eta, "use_clipped_model_output": clipping == "rederived"}
    theirs = loop(
        scheduler,
        lambda eps, t, x, noise: (
            scheduler.step(eps, t, x, variance_noise=noise if eta else None, **options).prev_sample
        ),
    )
    mine = ours(K, eta, dv.FixedSmall(), clipping is not None, clipping)
    assert float((mine - theirs).abs().max()) < tolerance(precise, theirs)
    if clipping is None and K > 1:
        # the comparison can tell: the wrong eta is far off
        other = ours(K, 0.3, dv.FixedSmall(), False)
        assert float((other - theirs).abs().max()) > 10 * tolerance(precise, theirs)


def test_the_conventions_of_clipping_are_told_apart():
    images = {c: ours(10, 0.5, dv.FixedSmall(), True, c) for c in ("network", "rederived", None)}
    assert float((images["network"] - images["rederived"]).abs().max()) > 0.05
    assert torch.equal(images[None], images["network"])
    ddpm = {c: ours(10, 1.0, dv.FixedSmall(), True, c) for c in ("network", "rederived", None)}
    assert torch.equal(ddpm[None], ddpm["rederived"])
    assert float((ddpm["network"] - ddpm["rederived"]).abs().max()) > 0.05


def test_ddpm_without_clipping_is_ddim_with_eta_one():
    a = ours(10, 1.0, dv.FixedSmall(), False, "network")
    b = ours(10, 1.0, dv.FixedSmall(), False, "rederived")
    assert float((a - b).abs().max()) < 5e-5 * float(a.abs().max())
    assert np.isfinite(a.numpy()).all()
