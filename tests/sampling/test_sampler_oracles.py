"""Whole sampling loops against diffusers' schedulers, with the same network and the same noise; and Gaussian data,
where the Gaussian step is exact.

Traps of diffusers: its previous timestep is t − N//K, which is right for "leading" spacing only; DDPM adds noise
"where t > 0" and not "unless last" (the same for leading spacing with offset 0); DDIM ends at alpha 1 only with
set_alpha_to_one=True. Its own alphas are float32: they are compared as they are (loosely) and in float64 (closely).
"""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from naive import naive_sample
from populations import exact_population

import diffusion_var as dv
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator
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
    sampler = dv.Sampler(denoiser, covariance, steps, eta, clipped_eps=clipped_eps, low_start=True)
    return sampler.sample(BATCH, SEED, BATCH)


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


# ---- Gaussian data, independent in the basis of the structure ----------------------------------------------------
#
# Then x_s has exactly its own distribution for every s > 0, whatever K and η or τ, and the images, the last step's
# means, have variance l²/(l + σ²/α²) of the last level. No structure that gives all elements one variance can do that.

SCHEDULE = dv.NoiseSchedule.linear(1000)
SHAPES = {"vector": (12,), "signal": (3, 4), "image": (1, 3, 4), "video": (1, 2, 2, 3)}
COUNT = 6000
LOWEST = 30  # the smallest index visited: high enough for l/(l + σ²/α²) to matter
STEPS = {2: [LOWEST, 1000], 5: [LOWEST, 150, 400, 700, 1000], 10: [LOWEST, *range(100, 1001, 112)]}


class Exact:
    """Gaussian data of one shape, its denoiser, and a table whose values have no Monte Carlo error at all."""

    def __init__(self, basis, kind):
        self.basis, shape = basis, SHAPES[kind]
        variance = generator(1, "variance").permutation(np.geomspace(0.01, 2.0, 12)).reshape(shape)
        rotation = None
        if (basis, kind) == ("dct", "vector"):  # the data's principal axes, the widest first
            rotation = np.linalg.qr(generator(2, "axes").standard_normal((12, 12)))[0]
            variance = np.sort(variance)[::-1].copy()
        self.variance = variance
        self.denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, variance, basis=basis, rotation=rotation)
        images = exact_population(400, 0.0, variance, make_structure(basis, shape, rotation))
        indices = sorted({n for K, steps in STEPS.items() for n in [*steps, *dv.steps.linspace(SCHEDULE, K)]})
        self.table = dv.estimate(self.denoiser, images, 0.01, indices=indices, batch_size=1024, progress=False)
        for n in indices:
            exact = self.denoiser.posterior_variance(n)
            assert np.abs(self.table.posterior_variance(n, structure=basis) / exact - 1).max() < 1e-3

    def covariance(self):
        return dv.Analytic(self.table, structure=self.basis)

    def worst(self, images, expected):
        """Largest deviation of the coefficients' second moments from those expected, in standard errors."""
        squares = self.denoiser.structure.forward(images.double()).square().mean(0).numpy()
        return float(np.abs(squares / expected - 1).max() / np.sqrt(2 / len(images)))

    def final_variance(self, level):
        return self.variance**2 / (self.variance + (level.sigma / level.alpha) ** 2)


@cache
def exact(basis, kind="image"):
    return Exact(basis, kind)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 5, 10])
def test_own_structure_is_exact_and_no_other(basis, K, eta):
    model = exact(basis)

    def images(covariance):
        return dv.Sampler(model.denoiser, covariance, STEPS[K], eta).sample(COUNT, seed=3, batch_size=3000)

    expected = model.final_variance(SCHEDULE.level(LOWEST))
    assert model.worst(images(model.covariance()), expected) < 4
    other = "dct" if basis == "pixel" else "pixel"
    others = [dv.FixedSmall(), dv.Analytic(model.table), dv.Analytic(model.table, structure=other)]
    for covariance in [*others, *([dv.FixedLarge()] if eta == 1.0 else [])]:
        assert model.worst(images(covariance), expected) > 4, covariance.name


@pytest.mark.parametrize("noise", [{"eta": 0.0}, {"eta": 1.0}, {"tau": 1.5}], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_two_steps_are_exact_for_images_of_any_shape(basis, kind, noise):
    model = exact(basis, kind)
    sampler = dv.Sampler(model.denoiser, model.covariance(), STEPS[2], **noise)
    images = sampler.sample(COUNT, seed=6, batch_size=3000)
    assert images.shape == (COUNT, *SHAPES[kind])
    expected = model.final_variance(SCHEDULE.level(LOWEST))
    assert model.worst(images, expected) < 4
    one_for_all = dv.Sampler(model.denoiser, dv.Analytic(model.table), STEPS[2], **noise)
    assert model.worst(one_for_all.sample(COUNT, seed=6, batch_size=3000), expected) > 4


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 3.0, np.inf])
@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_any_re_noising_is_exact(basis, tau):
    model = exact(basis)
    for steps in (STEPS[5], dv.steps.karras(SCHEDULE, 6)[:-1]):  # on the grid and off it
        sampler = dv.Sampler(model.denoiser, model.covariance(), steps, tau=tau)
        images = sampler.sample(COUNT, seed=8, batch_size=3000)
        assert model.worst(images, model.final_variance(sampler.kernels[-1].level_t)) < 4


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 10])
def test_every_state_on_the_way_is_exact(basis, K, eta):
    model = exact(basis)
    denoiser, sampler = model.denoiser, dv.Sampler(model.denoiser, model.covariance(), STEPS[K], eta)
    noise = ImageNoise(5, range(COUNT), denoiser.shape, torch.device("cpu"))
    x = noise.prior()
    visited = []
    for kernel in sampler.kernels:
        posterior = denoiser(x, kernel.t)
        x = kernel.mean(x, posterior)
        visited.append((kernel.t, kernel.s))
        if kernel.s > 0:
            x = x + sampler.covariance(posterior, kernel).colour(noise.next())
            expected = SCHEDULE.alpha[kernel.s] ** 2 * model.variance + SCHEDULE.sigma[kernel.s] ** 2
            assert model.worst(x, expected) < 4, kernel.s
    assert visited == list(zip(STEPS[K][::-1], [*STEPS[K][-2::-1], 0], strict=True))
    # and this loop, written out, is the sampler's
    assert float((x - sampler.sample(COUNT, seed=5, batch_size=COUNT)).abs().max()) < 1e-6


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("K", [2, 5, 10])
def test_even_steps_begin_at_index_one_and_are_exact_too(basis, K, eta):
    model = exact(basis)
    sampler = dv.Sampler(model.denoiser, model.covariance(), K, eta)
    assert (sampler.steps[0], sampler.steps[-1], len(sampler.steps)) == (1, 1000, K)
    images = sampler.sample(COUNT, seed=4, batch_size=3000)
    assert model.worst(images, model.final_variance(SCHEDULE.level(1))) < 4


# ---- the plain loop ------------------------------------------------------------------------------------------------


def test_images_are_the_plain_loops():
    """Isotropic, η = 1, an imperfect network, image by image from the same noise."""
    denoiser = dv.Denoiser(network, dv.NoiseSchedule.linear(N), shape=SHAPE, clip=None)
    images = np.tanh(generator(3, "plain images").standard_normal((30, *SHAPE)))
    steps = [1, 50, 400, 1000]
    table = dv.estimate(denoiser, images, 1e9, indices=steps, structures=("isotropic",), progress=False)
    found = dv.Sampler(denoiser, dv.Analytic(table), steps).sample(3, seed=SEED, batch_size=2)
    source = ImageNoise(SEED, range(3), SHAPE, torch.device("cpu"))
    noise = [source.prior(), *(source.next() for _ in steps[1:])]
    v = {n: table.posterior_variance(n) for n in steps}
    for i in range(3):
        expected = naive_sample(denoiser, v, steps, [part[i].double().numpy() for part in noise])
        # float32: the first step multiplies by 1/α of 160
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=0, atol=5e-5 * max(1.0, np.abs(expected).max()))
