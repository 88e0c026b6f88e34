"""The equations of one reverse step: identities, limits, published numbers, and diffusers' DDIM step."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from places import golden

from diffusion_var import InputError, NoiseSchedule, ReverseKernel
from diffusion_var.process.kernel import noise_floor
from diffusion_var.process.level import NoiseLevel

GOLDEN = golden()
EPS = np.finfo(np.float64).eps
LEVELS = np.arange(101) / 100
SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "linear, short": NoiseSchedule.linear(20, 1e-3, 0.5),
    "cosine": NoiseSchedule.cosine(1000),
    "scaled_linear": NoiseSchedule.scaled_linear(1000),
    "vp_sde": NoiseSchedule.vp_sde(1000),
    "variance exploding": NoiseSchedule(np.ones(101), np.r_[0.0, np.geomspace(0.002, 80.0, 100)], LEVELS),
    "flow, zero terminal SNR": NoiseSchedule(1 - LEVELS, LEVELS, LEVELS),
}
VARIANCE_PRESERVING = [name for name, s in SCHEDULES.items() if np.allclose(s.alpha**2 + s.sigma**2, 1.0)]


@dataclass
class Point:
    mean: torch.Tensor
    eps: torch.Tensor


@st.composite
def kernels(draw: st.DrawFn, names: list[str] | None = None, eta: float | None = None) -> ReverseKernel:
    schedule = SCHEDULES[draw(st.sampled_from(names or list(SCHEDULES)))]
    s = draw(st.integers(0, schedule.num_steps - 1))
    t = draw(st.one_of(st.just(s + 1), st.integers(s + 1, schedule.num_steps)))
    drawn = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0, allow_subnormal=False))
    return ReverseKernel(schedule, t, s, draw(drawn) if eta is None else eta)


sweep = settings(derandomize=True, deadline=None, max_examples=300, database=None)


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-10, abs_tol=0.0)


# ---- identities -----------------------------------------------------------------------------------------------


@sweep
@given(kernels())
def test_every_coefficient_against_its_definition_in_fifty_digits(k: ReverseKernel) -> None:
    with mpmath.workdps(50):
        alpha_t, sigma_t, alpha_s, sigma_s, eta = map(mpmath.mpf, (k.alpha_t, k.sigma_t, k.alpha_s, k.sigma_s, k.eta))
        beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
        beta_tilde = beta * sigma_s**2 / sigma_t**2
        lambda2 = eta**2 * beta_tilde
        c = mpmath.sqrt(sigma_s**2 - lambda2)
        b = c * alpha_t / sigma_t
        expected = [float(x) for x in (beta, beta_tilde, lambda2, c, b, alpha_s - b)]
    assert (k.alpha_t, k.sigma_t) == (k.schedule.alpha[k.t], k.schedule.sigma[k.t])
    assert (k.alpha_s, k.sigma_s) == (k.schedule.alpha[k.s], k.schedule.sigma[k.s])
    for name, value in zip(("beta", "beta_tilde", "lambda2", "eps_gain", "b", "gain"), expected, strict=True):
        assert close(getattr(k, name), value), name


@sweep
@given(kernels(eta=1.0))
def test_noise_floor_is_the_steps_own_noise_over_its_gain(k: ReverseKernel) -> None:
    log_snr = k.schedule.log_snr
    found = noise_floor(float(log_snr[k.t]), float(log_snr[k.s]))
    assert close(found, k.lambda2 / k.gain**2)
    both = noise_floor(log_snr[[k.t, k.t]], log_snr[[k.s, 0]])
    assert both[0] == pytest.approx(found, rel=1e-14)
    assert both[1] == 0.0


@given(kernels())
def test_variances_add_up(k: ReverseKernel) -> None:
    assert close(k.lambda2, k.eta**2 * k.beta_tilde)
    assert math.isclose(k.eps_gain**2 + k.lambda2, k.sigma_s**2, rel_tol=1e-10)
    assert k.beta > 0
    assert k.gain > 0


@sweep
@given(st.data())
def test_beta_composes_over_skipped_steps(data: st.DataObject) -> None:
    schedule = SCHEDULES[data.draw(st.sampled_from([n for n in SCHEDULES if n != "linear, short"]))]
    s, r, t = sorted(data.draw(st.sets(st.integers(0, schedule.num_steps), min_size=3, max_size=3)))
    whole, late, early = (ReverseKernel(schedule, *pair) for pair in ((t, s), (t, r), (r, s)))
    assert close(whole.beta, late.beta + (late.alpha_t / late.alpha_s) ** 2 * early.beta)


def points(k: ReverseKernel, clip: float | None) -> tuple[torch.Tensor, Point]:
    stream = np.random.default_rng(k.t * 1009 + k.s)
    x_t, eps = (torch.from_numpy(stream.standard_normal((2, 1, 3, 3))) for _ in range(2))
    mean = (x_t - k.sigma_t * eps) / k.alpha_t
    return x_t, Point(mean if clip is None else mean.clamp(-clip, clip), eps)


def ddpm_mean(k: ReverseKernel, x_t: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """Equation (7) of DDPM for the step t → s of a variance-preserving schedule."""
    alpha_bar_t, alpha_bar_s = k.alpha_t**2, k.alpha_s**2
    alpha_ts = alpha_bar_t / alpha_bar_s
    one_less = k.sigma_t**2  # 1 - alpha_bar_t
    return math.sqrt(alpha_bar_s) * k.beta / one_less * x_0 + math.sqrt(alpha_ts) * k.sigma_s**2 / one_less * x_t


def distance(k: ReverseKernel, a: torch.Tensor, b: torch.Tensor, point: Point) -> float:
    """Largest difference, relative to the largest term that is summed."""
    scale = max(1.0, float((k.alpha_s * point.mean).abs().max()))
    return float((a - b).abs().max()) / scale


@sweep
@given(kernels(VARIANCE_PRESERVING, eta=1.0))
def test_ddpm_is_ddim_with_eta_one(k: ReverseKernel) -> None:
    x_t, point = points(k, clip=None)
    expected = ddpm_mean(k, x_t, point.mean)
    for clipped_eps in ("network", "rederived", None):
        kernel = ReverseKernel(k.schedule, k.t, k.s, 1.0, clipped_eps)
        assert distance(k, kernel.mean(x_t, point), expected, point) < 1e-10


@sweep
@given(kernels(VARIANCE_PRESERVING, eta=1.0))
def test_ddpm_rederives_where_the_mean_is_clipped(k: ReverseKernel) -> None:
    x_t, point = points(k, clip=0.3)
    expected = ddpm_mean(k, x_t, point.mean)
    assert distance(k, k.mean(x_t, point), expected, point) < 1e-10
    own = ReverseKernel(k.schedule, k.t, k.s, 1.0, "network").mean(x_t, point)
    torch.testing.assert_close(own, k.alpha_s * point.mean + k.eps_gain * point.eps, rtol=1e-12, atol=1e-12)


@sweep
@given(kernels(eta=0.0))
def test_ddim_moves_along_the_networks_noise(k: ReverseKernel) -> None:
    if k.alpha_t == 0:
        return
    x_t, point = points(k, clip=0.3)
    expected = k.alpha_s * point.mean + k.sigma_s * point.eps
    assert k.lambda2 == 0.0
    assert distance(k, k.mean(x_t, point), expected, point) < 1e-12
    rederived = ReverseKernel(k.schedule, k.t, k.s, 0.0, "rederived").mean(x_t, point)
    eps = (x_t - k.alpha_t * point.mean) / k.sigma_t
    assert distance(k, rederived, k.alpha_s * point.mean + k.sigma_s * eps, point) < 1e-10


def test_which_eps_is_used() -> None:
    schedule = SCHEDULES["linear"]
    assert [ReverseKernel(schedule, 9, 5, eta).rederives_eps for eta in (0.0, 0.5, 0.999, 1.0)] == [False] * 3 + [True]
    assert all(ReverseKernel(schedule, 9, 5, eta, "rederived").rederives_eps for eta in (0.0, 0.5, 1.0))
    assert not any(ReverseKernel(schedule, 9, 5, eta, "network").rederives_eps for eta in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("clipped_eps", ["network", "rederived"])
def test_the_step_to_clean_data_is_the_mean_itself(name: str, eta: float, clipped_eps: str) -> None:
    schedule = SCHEDULES[name]
    for t in (1, schedule.num_steps // 2, schedule.num_steps):
        k = ReverseKernel(schedule, t, 0, eta, clipped_eps)
        assert k.lambda2 == 0.0
        assert k.eps_gain == 0.0
        assert k.gain == pytest.approx(1.0, rel=1e-14)
        stream = np.random.default_rng(t)
        x_t, mean, eps = (torch.from_numpy(stream.standard_normal((2, 1, 2, 2))) for _ in range(3))
        torch.testing.assert_close(k.mean(x_t, Point(mean, eps)), mean, rtol=1e-14, atol=1e-14)


def test_frozen() -> None:
    kernel = ReverseKernel(SCHEDULES["linear"], 9, 5)
    with pytest.raises(AttributeError, match="cannot assign"):
        kernel.beta = 0.0  # type: ignore[misc]


# ---- off the grid, and other noise ------------------------------------------------------------------------------

COEFFICIENTS = ("beta", "beta_tilde", "lambda2", "eps_gain", "gain", "b")


def apart(one: ReverseKernel, other: ReverseKernel) -> float:
    """Largest difference of the two steps' coefficients, relative to each (0 where both are 0)."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in COEFFICIENTS]
    return max(0.0 if a == b else abs(a - b) / max(abs(a), abs(b)) for a, b in pairs)


@sweep
@given(kernels())
def test_a_step_between_the_levels_of_two_indices_is_the_indices_step(k: ReverseKernel) -> None:
    """To the bit with the schedule's own levels; to rounding with levels that are made from α and σ alone."""
    own = ReverseKernel.between(k.level_t, k.level_s, k.eta)
    assert apart(own, k) == 0.0
    assert own == k
    made = [NoiseLevel(level.alpha, level.sigma, level.timestep) for level in (k.level_t, k.level_s)]
    # Δ of neighbours is a difference of two logarithms, and every coefficient a smooth function of it.
    rounding = 64 * EPS * max(abs(x) for x in (1.0, *(m.log_snr for m in made if math.isfinite(m.log_snr))))
    delta = abs(k.level_t.log_snr - k.level_s.log_snr)
    assert apart(ReverseKernel.between(made[0], made[1], k.eta), k) <= rounding / min(delta, 1.0)


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING, "variance exploding", "flow, zero terminal SNR"])
@pytest.mark.parametrize("noise", [{"eta": 1.0}, {"eta": 0.5}, {"eta": 0.0}, {"tau": 1.5}], ids=str)
def test_between_its_indices_a_coarse_schedule_has_the_steps_of_a_finer_one(name: str, noise: dict) -> None:
    fine = SCHEDULES[name]
    kept = [0, *range(1, fine.num_steps + 1, 2)]
    coarse = NoiseSchedule(*(array[kept] for array in (fine.alpha, fine.sigma, fine.timestep)))
    for t, s in ((kept[-2] + 1, 4), (10, 2), (6, 4)):
        off = [coarse.level_at(float(fine.log_snr[n])) for n in (t, s)]
        assert [level.index for level in off] == [None, None]
        expected = ReverseKernel(fine, t, s, noise.get("eta"), tau=noise.get("tau"))
        assert apart(ReverseKernel.between(*off, **noise), expected) < 1e-13


@sweep
@given(kernels(eta=1.0))
def test_tau_one_is_ddpm_and_tau_zero_the_odes_step(k: ReverseKernel) -> None:
    assert apart(ReverseKernel(k.schedule, k.t, k.s, tau=1.0), k) < 1e-13
    still = ReverseKernel(k.schedule, k.t, k.s, 0.0)
    assert apart(ReverseKernel(k.schedule, k.t, k.s, tau=0.0), still) < 1e-13
    assert ReverseKernel(k.schedule, k.t, k.s, tau=0.0).lambda2 == 0.0


@sweep
@given(kernels(eta=1.0), st.sampled_from([0.3, 1.5, 3.0, math.inf]))
def test_any_tau_keeps_the_variance_of_the_marginal(k: ReverseKernel, tau: float) -> None:
    other = ReverseKernel(k.schedule, k.t, k.s, tau=tau)
    assert math.isclose(other.eps_gain**2 + other.lambda2, k.sigma_s**2, rel_tol=1e-12)
    assert 0.0 <= other.lambda2 <= k.sigma_s**2
    if tau == math.inf and k.s > 0:
        assert (other.lambda2, other.eps_gain) == (k.sigma_s**2, 0.0)
        assert math.isclose(other.gain, k.alpha_s, rel_tol=1e-14)
    assert (other.lambda2 >= k.lambda2 * (1 - 1e-12)) == (tau >= 1.0) or k.s == 0 or k.alpha_t == 0.0
    alpha, sigma = mpmath.mpf(k.alpha_t), mpmath.mpf(k.sigma_t)
    with mpmath.workdps(40):
        gamma = mpmath.mpf(k.alpha_s) - mpmath.mpf(other.eps_gain) * alpha / sigma
    assert math.isclose(other.gain, float(gamma), rel_tol=1e-10, abs_tol=1e-14)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 3.0, math.inf])
@pytest.mark.parametrize("name", SCHEDULES)
def test_any_tau_keeps_the_exact_marginal_with_the_exact_covariance(name: str, tau: float) -> None:
    """Gaussian x_0 of variance l: the step's mean and its own covariance give x_s the variance α_s² l + σ_s²."""
    schedule = SCHEDULES[name]
    for t, s in ((schedule.num_steps, schedule.num_steps // 2), (12, 5), (3, 2)):
        for l in (0.01, 1.0, 4.0):
            k = ReverseKernel(schedule, t, s, tau=tau)
            whole = k.alpha_t**2 * l + k.sigma_t**2
            mean_gain = k.alpha_t * l / whole  # x̂_0 = mean_gain x_t
            eps_gain = (1 - k.alpha_t * mean_gain) / k.sigma_t
            moved = (k.alpha_s * mean_gain + k.eps_gain * eps_gain) ** 2 * whole
            v = l * k.sigma_t**2 / whole
            expected = k.alpha_s**2 * l + k.sigma_s**2
            assert math.isclose(moved + k.lambda2 + k.gain**2 * v, expected, rel_tol=1e-10)


def test_a_step_to_clean_data_may_leave_its_end_out() -> None:
    level = SCHEDULES["linear"].level(3)
    assert ReverseKernel.between(level).last
    assert apart(ReverseKernel.between(level), ReverseKernel(SCHEDULES["linear"], 3, 0)) == 0.0
    assert str(ReverseKernel.between(level)) == "3 to 0"
    assert str(ReverseKernel.between(NoiseLevel(0.6, 0.8, 1.0), level)) == "log SNR -0.5754 to 3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: ReverseKernel.between(a, b, eta=0.5, tau=1.0), "eta=0.5 and tau=1.0 both say how much noise"),
        (lambda a, b: ReverseKernel.between(a, b, tau=-0.1), "tau=-0.1 must be at least 0"),
        (lambda a, b: ReverseKernel.between(a, b, tau=math.nan), "tau=nan must be at least 0"),
        (lambda a, b: ReverseKernel.between(a, b, tau=True), "tau=True must be at least 0"),
        (lambda a, b: ReverseKernel.between(a, b, eta=1.5), "eta=1.5 is outside"),
        (lambda a, b: ReverseKernel.between(b, a), "noise levels must fall, from more noise to less"),
        (lambda a, b: ReverseKernel.between(a, a), "noise levels must fall"),
        (lambda a, b: ReverseKernel.between(a, 3), "a noise level must be a dv.NoiseLevel, .* but got int"),
        (lambda a, b: ReverseKernel.between(NoiseLevel.clean()), "noise levels must fall"),
    ],
)
def test_bad_steps_between_levels_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(SCHEDULES["linear"].level(500), SCHEDULES["linear"].level(400))


# ---- the limit of small steps ---------------------------------------------------------------------------------

N = 2**14
FINE = NoiseSchedule.vp_sde(N)


def optimal_variance(k: ReverseKernel, v0: float) -> float:
    v = v0 * k.sigma_t**2 / (k.alpha_t**2 * v0 + k.sigma_t**2)
    return k.lambda2 + k.gain**2 * v


@pytest.mark.parametrize("t", [N // 8, N // 2, N])
@pytest.mark.parametrize("v0", [0.05, 0.5])
@pytest.mark.parametrize("eta", [1.0, 0.6, 0.2])
def test_variance_over_beta_tends_to_eta_squared_at_first_order(t: int, v0: float, eta: float) -> None:
    errors = []
    for h in (64, 32, 16):
        k = ReverseKernel(FINE, t, t - h, eta)
        errors.append(optimal_variance(k, v0) / k.beta - eta**2)
    assert abs(errors[-1]) < 0.05
    for coarse, fine in pairwise(errors):
        assert 1.8 <= coarse / fine <= 2.2


@pytest.mark.parametrize("t", [N // 8, N // 2, N])
@pytest.mark.parametrize("v0", [0.05, 0.5])
def test_variance_of_ddim_is_of_second_order(t: int, v0: float) -> None:
    variances, errors = [], []
    for h in (64, 32, 16):
        k = ReverseKernel(FINE, t, t - h, 0.0)
        variances.append(optimal_variance(k, v0))
        v = v0 * k.sigma_t**2 / (k.alpha_t**2 * v0 + k.sigma_t**2)
        errors.append(variances[-1] / (k.alpha_t * k.beta / (2 * k.sigma_t**2)) ** 2 / v - 1)
    assert abs(errors[-1]) < 0.05
    for k in (0, 1):
        assert 3.6 <= variances[k] / variances[k + 1] <= 4.4
        assert 1.8 <= errors[k] / errors[k + 1] <= 2.2


# ---- published numbers and diffusers --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_golden_reverse_variances(name: str) -> None:
    schedule, golden = SCHEDULES[name], GOLDEN[name]
    v0, kinds = golden["v0"], set()
    for row in golden["rows"]:
        k = ReverseKernel(schedule, row["t"], row["s"], 1.0 if row["forward"] == "ddpm" else row["eta"])
        kinds.add((row["forward"], row["type"]))
        allowed = 1e-10
        if row["type"] == "small":
            value = k.lambda2
        elif row["type"] == "big":
            value = k.beta
        else:
            eps_square = k.sigma_t**2 / (k.alpha_t**2 * v0 + k.sigma_t**2)
            # The file has v = σ²/α² (1 − E ε̂²), which keeps eps/(1 − E ε̂²) of its digits: 4e-7 for cosine's t = 1000.
            # Here v is written without that difference, so only the file's error is allowed for.
            allowed += EPS / (k.alpha_t**2 * v0 / (k.alpha_t**2 * v0 + k.sigma_t**2))
            value = k.lambda2 + k.gain**2 * min(max(v0 * eps_square, 0.0), 1.0)
        assert value == pytest.approx(row["sigma2"], rel=allowed, abs=0), row
    assert kinds == {("ddpm", "small"), ("ddpm", "big"), ("ddpm", "optimal"), ("ddim", "small"), ("ddim", "optimal")}
    assert len(golden["rows"]) == 63


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clipped_eps", ["network", "rederived"])
@pytest.mark.parametrize("timestep", [999 - 100, 500, 100])
def test_mean_and_variance_against_diffusers_ddim(eta: float, clipped_eps: str, timestep: int) -> None:
    scheduler = DDIMScheduler(clip_sample=True, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    stream = np.random.default_rng(timestep)
    x_t, eps = (torch.from_numpy(stream.standard_normal((2, 1, 4, 4)).astype(np.float32)) for _ in range(2))
    theirs = scheduler.step(
        eps,
        timestep,
        x_t,
        eta=eta,
        use_clipped_model_output=clipped_eps == "rederived",
        variance_noise=torch.zeros_like(x_t),
    )
    k = ReverseKernel(SCHEDULES["linear"], timestep + 1, timestep + 1 - 100, eta, clipped_eps)
    mean = ((x_t - k.sigma_t * eps) / k.alpha_t).clamp(-1, 1)
    assert float(mean.abs().max()) == 1.0  # something is clipped, so that the two choices differ
    torch.testing.assert_close(k.mean(x_t, Point(mean, eps)), theirs.prev_sample, rtol=1e-4, atol=1e-4)
    # diffusers' 1 - alphas_cumprod in float32 is off by 1.7e-4 at n = 1.
    assert k.beta_tilde == pytest.approx(float(scheduler._get_variance(timestep, timestep - 100)), rel=3e-4)


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": 5, "s": 5}, "t=5 and s=5"),
        ({"t": 5, "s": 9}, "t=5 and s=9"),
        ({"t": 0, "s": 0}, "t=0 is not an index"),
        ({"t": 1001, "s": 5}, "t=1001 is not an index"),
        ({"t": 5, "s": -1}, "s=-1 is not an index"),
        ({"t": 5.5, "s": 1}, "t=5.5 is not an index"),
        ({"t": 5, "s": float("nan")}, "s=nan is not an index"),
        ({"t": 5, "s": 1, "eta": -0.1}, "eta=-0.1 is outside"),
        ({"t": 5, "s": 1, "eta": 1.001}, "eta=1.001 is outside"),
        ({"t": 5, "s": 1, "eta": float("nan")}, "eta=nan is outside"),
        ({"t": 5, "s": 1, "clipped_eps": "clipped"}, "clipped_eps='clipped' is not known"),
    ],
)
def test_bad_steps_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReverseKernel(SCHEDULES["linear"], **arguments)
