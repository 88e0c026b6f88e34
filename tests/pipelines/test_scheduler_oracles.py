"""AnalyticScheduler step by step against diffusers' DDPM and DDIM schedulers, against the equations where those are
wrong, and over whole loops against `Sampler`.

diffusers keeps ᾱ in float32, which costs up to 1.5e-4 of the largest value at n = 3; with float64 ᾱ put into its
schedulers nothing but rounding is left. Where it takes other steps than its list of timesteps says, or adds noise to
the last one, the tests say so and hold ours against eq. (1), written out in numpy.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import diffusion_var as dv
from diffusion_var.sampling.noise import ImageNoise

N = 1000
BETAS = np.linspace(1e-4, 0.02, N)
ALPHA_BAR = np.cumprod(1 - BETAS)
#: dtype, ᾱ in float64?, largest difference relative to the largest value
AS_IS, ROUNDING, EXACT = (torch.float32, False, 2e-4), (torch.float32, True, 1e-6), (torch.float64, True, 1e-11)
PRECISIONS = [pytest.param(*p, id=name) for name, p in (("as-is", AS_IS), ("float32", ROUNDING), ("float64", EXACT))]
PREDICTIONS = ("epsilon", "sample", "v_prediction")
BOUNDS: dict[str, dict[str, Any]] = {
    "free": {"clip_sample": False},
    "clipped": {"clip_sample": True, "clip_sample_range": 0.6},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def output(dtype: torch.dtype = torch.float64, channels: int = 3) -> torch.Tensor:
    return 0.7 * normal(2, channels, 4, 4, seed=1).to(dtype)


def sample(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return normal(2, 3, 4, 4).to(dtype)


def streams() -> list[torch.Generator]:
    """A generator for each image."""
    return [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]


def worst(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    assert mine.dtype == theirs.dtype
    return float((mine - theirs).abs().max() / theirs.abs().max())


def sharpened(theirs: Any) -> Any:
    """A diffusers scheduler with ᾱ in float64."""
    theirs.alphas_cumprod = torch.from_numpy(ALPHA_BAR)
    theirs.one = theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return theirs


def pair(theirs: Any, K: int, precise: bool, **options: Any) -> tuple[dv.AnalyticScheduler, Any, list[int]]:
    """Ours with the other's config, both with K steps, and a dozen of their timesteps."""
    ours = dv.AnalyticScheduler.from_config(theirs.config, **options)
    ours.set_timesteps(K)
    theirs.set_timesteps(K)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    listed = theirs.timesteps.tolist()
    assert len(listed) == K
    some = dict.fromkeys([*listed[:2], *listed[:: max(1, K // 7)], *listed[-3:]])
    return ours, sharpened(theirs) if precise else theirs, list(some)


# ---- where diffusers is right ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "precise", "limit"), PRECISIONS)
@pytest.mark.parametrize("K", [10, 50, 1000])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(
    prediction: str, bound: str, variance_type: str, K: int, dtype: torch.dtype, precise: bool, limit: float
) -> None:
    theirs = DDPMScheduler(prediction_type=prediction, variance_type=variance_type, **BOUNDS[bound])
    mine, theirs, timesteps = pair(theirs, K, precise)
    out, x = output(dtype, 6 if variance_type == "learned_range" else 3), sample(dtype)
    for t in timesteps:
        got, expected = (s.step(out, t, x, generator=streams(), return_dict=False) for s in (mine, theirs))
        assert max(map(worst, got, expected)) < limit, t


@pytest.mark.parametrize(("dtype", "precise", "limit"), PRECISIONS)
@pytest.mark.parametrize("K", [10, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim(prediction: str, bound: str, eta: float, K: int, dtype: torch.dtype, precise: bool, limit: float) -> None:
    # At eta = 1 ours re-derives ε̂ unless told otherwise, as DDPM does and DDIM does not.
    mine, theirs, timesteps = pair(
        DDIMScheduler(prediction_type=prediction, **BOUNDS[bound]), K, precise, eta=eta, clipped_eps="network"
    )
    out, x = output(dtype), sample(dtype)
    for t in timesteps:
        for options in ({}, {"use_clipped_model_output": True}):
            got = mine.step(out, t, x, generator=streams(), return_dict=False, **options)
            expected = theirs.step(out, t, x, eta, generator=streams(), return_dict=False, **options)
            assert max(map(worst, got, expected)) < limit, t


@pytest.mark.parametrize(("N", "offset"), [(1000, 0), (50, 0), (1000, 1)])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timesteps(spacing: str, N: int, offset: int) -> None:
    theirs = DDPMScheduler(num_train_timesteps=N, timestep_spacing=spacing, steps_offset=offset)
    mine = dv.AnalyticScheduler.from_config(theirs.config)
    for K in {1, 2, 3, 7, 10, 25, 27, 29, 50, N // 3, N // 2, N} & set(range(1, N + 1 - offset)):
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(K)
        assert len(mine.timesteps) == mine.num_inference_steps == K
        if spacing == "linspace" and K == 1:  # theirs is timestep 0: pure noise, taken for a clean image
            assert (mine.timesteps.tolist(), theirs.timesteps.tolist()) == ([N - 1], [0])
            continue
        # For some K their trailing list has one timestep too many, −1.
        assert theirs.timesteps.tolist() == mine.timesteps.tolist() + [-1] * (len(theirs.timesteps) - K)
        assert len(theirs.timesteps) == K or (spacing, N, K) == ("trailing", 50, 29)


def test_what_float32_alphas_cost_diffusers() -> None:
    """The looser limit is theirs: the very step where they differ most agrees once their ᾱ is float64."""
    errors = []
    for precise in (False, True):
        mine, theirs, _ = pair(DDPMScheduler(), 1000, precise)
        out, x = output(torch.float32), sample(torch.float32)
        got, expected = (s.step(out, 2, x, generator=streams()).prev_sample for s in (mine, theirs))
        errors.append(worst(got, expected))
    assert errors[0] > 5e-5
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(0.001, 0.05, 100).tolist(), "num_train_timesteps": 100},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    ids=lambda options: next(iter(options.values())) if "beta_schedule" in options else next(iter(options)),
)
def test_schedules(kind: type, betas: dict[str, Any]) -> None:
    mine, theirs, timesteps = pair(kind(**betas), 10, False)
    out, x = output(torch.float32), sample(torch.float32)
    assert worst(mine.alphas_cumprod, theirs.alphas_cumprod) < 1e-5
    # At zero terminal SNR and eta = 1 DDIMScheduler takes the root of a rounding error below 0.
    options = {"eta": 0.5} if kind is DDIMScheduler else {}
    for t in timesteps:
        got = mine.step(out, t, x, generator=streams(), **options).prev_sample
        assert worst(got, theirs.step(out, t, x, generator=streams(), **options).prev_sample) < AS_IS[2], t


# ---- where it is not ---------------------------------------------------------------------------------------------


def equations(t: int, s: int, eta: float, variance: str, noise: torch.Tensor) -> torch.Tensor:
    """Eq. (1) for an unclipped ε-network, from α² = ᾱ and σ² = 1 − ᾱ alone; index t to s, noise in every step."""
    a_t, a_s = ALPHA_BAR[t - 1], ALPHA_BAR[s - 1] if s > 0 else 1.0
    beta = 1 - a_t / a_s
    beta_tilde = (1 - a_s) / (1 - a_t) * beta
    clean = (sample() - np.sqrt(1 - a_t) * output()) / np.sqrt(a_t)
    mean = np.sqrt(a_s) * clean + np.sqrt(1 - a_s - eta**2 * beta_tilde) * output()
    return mean + np.sqrt({"small": eta**2 * beta_tilde, "large": beta}[variance]) * noise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "K"), [("linspace", 7), ("linspace", 10), ("trailing", 7), ("trailing", 60)])
def test_the_step_ends_at_the_next_timestep_of_the_list(spacing: str, K: int, eta: float) -> None:
    """DDIMScheduler's ends at t − N//K: one that is not in the list, so that the next step begins somewhere else."""
    theirs = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    mine, theirs, _ = pair(theirs, K, True, eta=eta, clip_sample=False)
    listed, noise = [*mine.timesteps.tolist(), -1], normal(2, 3, 4, 4, seed=7)
    astray = 0.0
    for t, s in pairwise(listed):
        expected = equations(t + 1, s + 1, eta, "small", noise if s >= 0 else torch.zeros_like(noise))
        got = mine.step(output(), t, sample(), variance_noise=noise).prev_sample
        assert worst(got, expected) < EXACT[2], t
        theirs_then = theirs.step(output(), t, sample(), eta, variance_noise=noise).prev_sample
        beside = equations(t + 1, max(t - N // K, -1) + 1, eta, "small", noise)
        assert worst(theirs_then, beside) < EXACT[2], t
        astray = max(astray, worst(theirs_then, expected))
    assert astray > 1e-3


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize(
    "options",
    [{"timestep_spacing": "trailing"}, {"steps_offset": 1}, {"timesteps": [900, 500, 7]}],
    ids=["trailing", "offset", "custom"],
)
def test_the_last_step_is_the_mean(options: dict[str, Any], variance_type: str) -> None:
    """DDPMScheduler adds noise where t > 0, also after the last step: all of β, if the variance is fixed_large."""
    chosen = {"timesteps": options["timesteps"]} if "timesteps" in options else {"num_inference_steps": 10}
    config = {key: value for key, value in options.items() if key != "timesteps"}
    theirs = DDPMScheduler(clip_sample=False, variance_type=variance_type, **config)
    mine = dv.AnalyticScheduler.from_config(theirs.config)
    for scheduler in (mine, sharpened(theirs)):
        scheduler.set_timesteps(**chosen)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    t = int(mine.timesteps[-1])
    assert t > 0
    out = torch.cat([output(), normal(2, 3, 4, 4, seed=3).tanh()], 1) if variance_type == "learned_range" else output()
    expected = equations(t + 1, 0, 1.0, "small", torch.zeros(1))
    state = torch.get_rng_state()
    got = mine.step(out, t, sample())
    assert torch.equal(torch.get_rng_state(), state)  # not even drawn
    assert torch.equal(got.prev_sample, got.pred_original_sample)
    assert worst(got.prev_sample, expected) < EXACT[2]
    noise = normal(2, 3, 4, 4, seed=7)
    assert torch.equal(mine.step(out, t, sample(), variance_noise=noise).prev_sample, got.prev_sample)
    if variance_type == "fixed_large":
        theirs_then = theirs.step(out, t, sample(), generator=torch.Generator().manual_seed(0)).prev_sample
        drawn = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert worst(theirs_then, equations(t + 1, 0, 1.0, "large", drawn)) < EXACT[2]
        assert worst(theirs_then, expected) > 0.01


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_last_step_of_ddim_with_noise(eta: float) -> None:
    """Trailing timesteps for a K that does not divide N: DDIMScheduler's last step ends at t − N//K ≥ 0, with noise."""
    mine, theirs, _ = pair(DDIMScheduler(timestep_spacing="trailing", clip_sample=False), 7, True, eta=eta)
    t, noise = int(mine.timesteps[-1]), normal(2, 3, 4, 4, seed=7)
    assert t - N // 7 >= 0
    got = mine.step(output(), t, sample(), variance_noise=noise).prev_sample
    assert worst(got, equations(t + 1, 0, eta, "small", torch.zeros(1))) < EXACT[2]
    theirs_then = theirs.step(output(), t, sample(), eta, variance_noise=noise).prev_sample
    assert worst(theirs_then, got) > 0.003


def test_fixed_large_log_is_refused() -> None:
    """DDPMScheduler takes the root of a logarithm: NaN from the first step on."""
    theirs = DDPMScheduler(variance_type="fixed_large_log")
    theirs.set_timesteps(10)
    assert theirs.step(output(), 900, sample(), generator=streams()).prev_sample.isnan().all()
    with pytest.raises(dv.InputError, match=r"'fixed_large_log' is not known.*'fixed_large' is the variance"):
        dv.AnalyticScheduler.from_config(theirs.config)


# ---- whole loops -------------------------------------------------------------------------------------------------

SHORT = dv.NoiseSchedule.linear(50)


def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Imperfect enough for clipping to act, and dependent on time and neighbours."""
    return torch.tanh(1.4 * x_t) * (0.7 + 0.006 * timestep.to(x_t.dtype)[:, None, None, None]) + 0.1 * x_t.flip(-1)


def denoiser(clip: bool) -> dv.Denoiser:
    bounds = (-0.8, 0.8) if clip else None
    return dv.Denoiser(network, SHORT, "epsilon", (3, 4, 4), clip=bounds, data_range=(-0.8, 0.8))


@pytest.fixture(scope="module", params=[True, False], ids=["clipped", "free"])
def table(request: pytest.FixtureRequest) -> dv.VarianceTable:
    images = np.tanh(np.random.default_rng(0).standard_normal((40, 3, 4, 4))).clip(-0.8, 0.8)
    return dv.estimate(denoiser(request.param), images, 1e9, indices=[1, 8, 20, 35, 50], progress=False)


def loop(scheduler: dv.AnalyticScheduler, seed: int) -> torch.Tensor:
    """A pipeline's loop with the noise that `Sampler` draws, in its order."""
    noise = ImageNoise(seed, range(4), (3, 4, 4), torch.device("cpu"))
    x = noise.prior() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        last = t == scheduler.timesteps[-1]
        x = scheduler.step(network(x, t.expand(4)), t, x, variance_noise=None if last else noise.next()).prev_sample
    return x.clamp(-0.8, 0.8)


def test_several_capped_steps_are_the_samplers(table: dv.VarianceTable) -> None:
    config = {"num_train_timesteps": 50, "beta_schedule": "linear", "clip_sample": table.clip is not None}
    config |= {"clip_sample_range": 0.8, "timestep_spacing": "linspace"}
    images = []
    for capped_steps in (1, 3.0, 6):  # JSON may have written a whole number so
        options = {"final_noise_cap": 4.0, "capped_steps": capped_steps}
        scheduler = dv.AnalyticScheduler.from_table(table, config, structure="pixel", **options)
        scheduler.set_timesteps(7)
        indices = [int(t) + 1 for t in reversed(scheduler.timesteps)]
        sampler = dv.Sampler(denoiser(bool(table.clip)), dv.Analytic(table, structure="pixel"), indices, **options)
        images.append(sampler.sample(4, seed=3))
        assert worst(loop(scheduler, 3), images[-1]) < 1e-5, capped_steps
    assert min(worst(images[0], images[1]), worst(images[1], images[2])) > 1e-3
    with pytest.raises(dv.InputError, match="capped_steps=6 asks for caps of more steps than there are"):
        scheduler.set_timesteps(6)


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
def test_whole_loops_are_the_samplers(table: dv.VarianceTable, structure: str, eta: float, cap: float | None) -> None:
    config = {"num_train_timesteps": 50, "beta_schedule": "linear", "clip_sample": table.clip is not None}
    config |= {"clip_sample_range": 0.8, "timestep_spacing": "linspace"}
    images = {}
    for clipped_eps in (None, "network", "rederived"):
        options = {"final_noise_cap": cap, "clipped_eps": clipped_eps}
        scheduler = dv.AnalyticScheduler.from_table(table, config, structure=structure, eta=eta, **options)
        scheduler.set_timesteps(7)
        indices = [int(t) + 1 for t in reversed(scheduler.timesteps)]
        covariance = dv.Analytic(table, structure=structure)
        sampler = dv.Sampler(denoiser(bool(table.clip)), covariance, indices, eta, **options)
        images[clipped_eps] = sampler.sample(4, seed=3)
        assert worst(loop(scheduler, 3), images[clipped_eps]) < 1e-5, clipped_eps
    if table.clip is not None:
        assert worst(images["network"], images["rederived"]) > 0.01
    # The comparison can tell: the table adds something to λ².
    kernel = dv.ReverseKernel(SHORT, 50, 42, eta)
    assert dv.Analytic(table, structure=structure).variance(kernel).max() > 1.01 * kernel.lambda2
