"""Noise schedules against published numbers and exact arithmetic, and what they refuse."""

import json
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion_var import InputError, NoiseSchedule

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reverse_variance.json").read_text())
EPS = np.finfo(np.float64).eps


# ---- the numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_golden_cumulative_products(name: str) -> None:
    schedule, golden = getattr(NoiseSchedule, name)(1000), GOLDEN[name]
    assert len(golden["cum_alphas"]) == len(golden["cum_betas"]) == 10
    for key, alpha_bar in golden["cum_alphas"].items():
        assert schedule.alpha[int(key)] ** 2 == pytest.approx(alpha_bar, rel=1e-12, abs=0)
    for key, beta_bar in golden["cum_betas"].items():
        # The file's cosine betas are 1 - (ratio of cosines), a difference of numbers near 1: good to eps absolutely.
        own_error = EPS / beta_bar if name == "cosine" and beta_bar else 0.0
        assert schedule.sigma[int(key)] ** 2 == pytest.approx(beta_bar, rel=1e-12 + own_error, abs=0)


@pytest.mark.parametrize("n", [1, 2, 57, 1000])
def test_linear_against_exact_arithmetic(n: int) -> None:
    schedule, betas = NoiseSchedule.linear(1000), np.linspace(1e-4, 0.02, 1000)
    with mpmath.workdps(50):
        alpha_bar = mpmath.fprod(1 - mpmath.mpf(float(b)) for b in betas[:n])
        alpha, sigma = float(mpmath.sqrt(alpha_bar)), float(mpmath.sqrt(1 - alpha_bar))
    assert schedule.alpha[n] == pytest.approx(alpha, rel=1e-13, abs=0)
    assert schedule.sigma[n] == pytest.approx(sigma, rel=1e-13, abs=0)


@pytest.mark.parametrize("n", [1, 2, 57, 999, 1000])
def test_cosine_against_exact_arithmetic(n: int) -> None:
    with mpmath.workdps(50):

        def f(k: int) -> mpmath.mpf:
            return mpmath.cos((mpmath.mpf(k) / 1000 + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2) ** 2

        alpha_bar = f(n) / f(0) if n < 1000 else f(999) / f(0) / 1000
        alpha, sigma = float(mpmath.sqrt(alpha_bar)), float(mpmath.sqrt(1 - alpha_bar))
    schedule = NoiseSchedule.cosine(1000)
    assert schedule.alpha[n] == pytest.approx(alpha, rel=1e-13, abs=0)
    assert schedule.sigma[n] == pytest.approx(sigma, rel=1e-13, abs=0)


def test_scaled_linear_first_and_last_beta() -> None:
    schedule = NoiseSchedule.scaled_linear(1000)
    assert schedule.sigma[1] ** 2 == pytest.approx(0.00085, rel=1e-12)
    assert 1 - (schedule.alpha[1000] / schedule.alpha[999]) ** 2 == pytest.approx(0.012, rel=1e-12)
    roots = np.sqrt(1 - (schedule.alpha[1:] / schedule.alpha[:-1]) ** 2)
    np.testing.assert_allclose(np.diff(roots), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-7)


@pytest.mark.parametrize("n", [1, 137, 500, 1000])
def test_vp_sde_integrates_its_beta(n: int) -> None:
    schedule = NoiseSchedule.vp_sde(1000)
    integral = quad(lambda u: 0.1 + (20.0 - 0.1) * u, 0.0, n / 1000)[0]
    assert schedule.alpha[n] == pytest.approx(np.exp(-0.5 * integral), rel=1e-12)
    assert schedule.sigma[n] == pytest.approx(np.sqrt(-np.expm1(-integral)), rel=1e-12)
    assert schedule.timestep[n] == pytest.approx(999.0 * n / 1000, rel=1e-15)


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vp_sde"])
@pytest.mark.parametrize("N", [1, 7, 1000])
def test_form_of_every_constructor(name: str, N: int) -> None:
    schedule = getattr(NoiseSchedule, name)(N)
    assert schedule.num_steps == N
    assert all(len(a) == N + 1 for a in (schedule.alpha, schedule.sigma, schedule.timestep, schedule.log_snr))
    assert all(a.dtype == np.float64 for a in (schedule.alpha, schedule.sigma, schedule.timestep))
    assert schedule.alpha[0] == 1.0
    assert schedule.sigma[0] == 0.0
    assert np.isnan(schedule.timestep[0])
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, rtol=1e-14)
    assert schedule.log_snr[0] == np.inf
    np.testing.assert_allclose(
        schedule.log_snr[1:], np.log(schedule.alpha[1:] ** 2 / schedule.sigma[1:] ** 2), atol=1e-12
    )
    assert (schedule.log_snr[1:] < schedule.log_snr[:-1]).all()
    assert schedule.prior_std == 1.0
    assert not schedule.zero_terminal_snr


# ---- flow and EDM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("N", [1, 2, 7, 1000])
def test_flow_against_exact_arithmetic(N: int, shift: float) -> None:
    """Both alpha and sigma keep all their digits, alpha also where 1 - t would cancel."""
    schedule = NoiseSchedule.flow(N, shift, timestep_scale=500.0)
    for n in range(1, N + 1):
        t = Fraction(shift) * Fraction(n, N) / (1 + (Fraction(shift) - 1) * Fraction(n, N))
        assert schedule.sigma[n] == pytest.approx(float(t), rel=4 * EPS, abs=0)
        assert schedule.alpha[n] == pytest.approx(float(1 - t), rel=4 * EPS, abs=0)
        assert schedule.timestep[n] == pytest.approx(500.0 * float(t), rel=4 * EPS, abs=0)
    assert schedule.alpha[N] == 0.0
    assert schedule.sigma[N] == schedule.prior_std == 1.0
    assert schedule.zero_terminal_snr


def test_flow_is_unshifted_and_told_a_thousand_t_by_default() -> None:
    schedule = NoiseSchedule.flow()
    np.testing.assert_allclose(schedule.sigma, np.arange(1001) / 1000, rtol=2 * EPS)
    np.testing.assert_allclose(schedule.timestep[1:], np.arange(1.0, 1001.0), rtol=2 * EPS)


@pytest.mark.parametrize("rho", [7.0, 3.0, 1.0])
def test_edm_levels_are_even_in_a_root_of_sigma(rho: float) -> None:
    schedule = NoiseSchedule.edm(50, 0.01, 40.0, rho)
    assert schedule.sigma[1] == pytest.approx(0.01, rel=1e-13)
    assert schedule.sigma[50] == pytest.approx(40.0, rel=1e-13)
    roots = schedule.sigma[1:] ** (1 / rho)
    np.testing.assert_allclose(np.diff(roots), (40.0 ** (1 / rho) - 0.01 ** (1 / rho)) / 49, rtol=1e-11)


def test_edm_with_infinite_rho_is_geometric() -> None:
    schedule = NoiseSchedule.edm(50, 0.01, 40.0, np.inf)
    assert schedule.sigma[1] == pytest.approx(0.01, rel=1e-13)
    np.testing.assert_allclose(schedule.sigma[2:] / schedule.sigma[1:-1], 4000.0 ** (1 / 49), rtol=1e-13)
    nearly = NoiseSchedule.edm(50, 0.01, 40.0, 1e6)
    np.testing.assert_allclose(nearly.sigma[1:], schedule.sigma[1:], rtol=1e-4)


@pytest.mark.parametrize("rho", [7.0, np.inf])
@pytest.mark.parametrize("N", [1, 2, 1000])
def test_form_of_edm(N: int, rho: float) -> None:
    schedule = NoiseSchedule.edm(N, rho=rho)
    assert schedule.num_steps == N
    assert (schedule.alpha == 1.0).all()
    assert schedule.sigma[0] == 0.0
    assert schedule.sigma[N] == pytest.approx(80.0, rel=1e-13)
    assert schedule.prior_std == schedule.sigma[N]
    np.testing.assert_allclose(schedule.timestep[1:], np.log(schedule.sigma[1:]) / 4, atol=1e-15)
    assert not schedule.zero_terminal_snr
    # x_N's prior has the last level's standard deviation also where that is less than one.
    assert NoiseSchedule.edm(N, 0.01, 0.5, rho).prior_std == pytest.approx(0.5, rel=1e-13)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flow", {"shift": 0.0}, "shift=0.0 must be a positive"),
        ("flow", {"shift": -1.0}, "shift=-1.0 must be a positive"),
        ("flow", {"shift": np.nan}, "shift=nan must be a positive"),
        ("flow", {"shift": np.inf}, "shift=inf must be a positive"),
        ("flow", {"timestep_scale": np.nan}, r"timestep\[1\] is nan"),
        ("edm", {"sigma_min": 0.0}, "sigma_min=0.0"),
        ("edm", {"sigma_min": -1.0}, "sigma_min=-1.0"),
        ("edm", {"sigma_min": 80.0}, "sigma_min < sigma_max"),
        ("edm", {"sigma_min": np.nan}, "sigma_min=nan"),
        ("edm", {"sigma_max": np.inf}, "sigma_max=inf"),
        ("edm", {"sigma_max": np.nan}, "sigma_max=nan"),
        ("edm", {"rho": 0.0}, "rho=0.0"),
        ("edm", {"rho": -7.0}, "rho=-7.0"),
        ("edm", {"rho": np.nan}, "rho=nan"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_levels_are_refused(name: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(NoiseSchedule, name)(10, **arguments)


# ---- zero terminal SNR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("N", [2, 1000])
def test_zero_terminal_snr_against_exact_arithmetic(name: str, N: int) -> None:
    before = getattr(NoiseSchedule, name)(N)
    schedule = before.with_zero_terminal_snr()
    with mpmath.workdps(50):
        # The schedule that is moved is taken from sigma: 1 - alpha**2 in float64 would have lost its digits.
        roots = [mpmath.sqrt(1 - mpmath.mpf(float(s)) ** 2) for s in before.sigma[1:]]
        moved = [(a - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for a in roots]
        sigma = [float(mpmath.sqrt(1 - a * a)) for a in moved]
    np.testing.assert_allclose(schedule.sigma[1:], sigma, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha[1:], [float(a) for a in moved], rtol=1e-9, atol=0)
    assert schedule.alpha[N] == 0.0
    assert schedule.sigma[N] == 1.0
    assert schedule.zero_terminal_snr
    assert schedule.alpha[1] == pytest.approx(before.alpha[1], rel=1e-14)
    np.testing.assert_array_equal(schedule.timestep, before.timestep)


# ---- identity -------------------------------------------------------------------------------------------------


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([1.0, 0.9, 0.5]), np.array([0.0, 0.3, 0.8]), np.array([0.0, 10.0, 20.0])


def test_equality_hash_and_digest() -> None:
    schedule, again = NoiseSchedule(*arrays()), NoiseSchedule(*arrays())
    assert schedule == again
    assert hash(schedule) == hash(again)
    assert schedule.digest == again.digest
    assert schedule != "schedule"
    assert len({schedule, again}) == 1
    for k in range(3):
        changed = [a.copy() for a in arrays()]
        changed[k][1] = np.nextafter(changed[k][1], 100.0)
        assert NoiseSchedule(*changed).digest != schedule.digest
        assert NoiseSchedule(*changed) != schedule
    assert NoiseSchedule(*arrays(), prior_std=2.0).digest != schedule.digest


def test_equality_ignores_the_clean_timestep_and_the_sign_of_zero() -> None:
    alpha, sigma, timestep = arrays()
    for first in (np.nan, -1.0, 5.0):
        timestep[0] = first
        assert NoiseSchedule(alpha, sigma, timestep) == NoiseSchedule(*arrays())
    for made in (NoiseSchedule.linear(10), NoiseSchedule.vp_sde(10)):
        assert NoiseSchedule([1.0, *made.alpha[1:]], [0.0, *made.sigma[1:]], made.timestep) == made
    assert NoiseSchedule(alpha, -sigma * np.array([1.0, -1.0, -1.0]), timestep) == NoiseSchedule(*arrays())


def test_digest_does_not_depend_on_the_dtype_given() -> None:
    assert NoiseSchedule([1, 1], [0, 1], [0, 7]) == NoiseSchedule(*np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 7.0]]))


def test_arrays_are_copies_and_read_only() -> None:
    alpha, sigma, timestep = arrays()
    schedule = NoiseSchedule(alpha, sigma, timestep)
    digest = schedule.digest
    alpha[1] = sigma[1] = timestep[1] = timestep[0] = 0.77
    assert schedule.digest == digest
    for array in (schedule.alpha, schedule.sigma, schedule.timestep, schedule.log_snr):
        with pytest.raises(ValueError, match="read-only"):
            array[1] = 0.5


def test_zero_terminal_snr_is_allowed() -> None:
    schedule = NoiseSchedule.from_betas([0.1, 0.5, 1.0])
    assert schedule.zero_terminal_snr
    assert schedule.alpha[3] == 0.0
    assert schedule.sigma[3] == 1.0
    assert schedule.log_snr[3] == -np.inf


def test_prior_std() -> None:
    assert NoiseSchedule([1, 1, 1], [0, 0.1, 80.0], [0, 1, 2]).prior_std == 80.0
    assert NoiseSchedule([1, 0.5], [0, 0.5], [0, 1]).prior_std == 1.0
    assert NoiseSchedule([1, 0.5], [0, 0.5], [0, 1], prior_std=0.7).prior_std == 0.7


@pytest.mark.parametrize("n", [1, 3, 3.0, np.int64(2)])
def test_check_index_accepts(n: int) -> None:
    checked = NoiseSchedule.linear(3).check_index(n)
    assert checked == n
    assert type(checked) is int


@pytest.mark.parametrize("n", [0, 4, -1, 1.5, float("nan"), float("inf"), "one", None])
def test_check_index_refuses(n: object) -> None:
    with pytest.raises(InputError, match="expected an integer from 1 to 3"):
        NoiseSchedule.linear(3).check_index(n)
    assert NoiseSchedule.linear(3).check_index(0, lowest=0) == 0


# ---- what is refused ------------------------------------------------------------------------------------------

GRID = ([1.0, 0.9, 0.5], [0.0, 0.3, 0.8], [0.0, 1.0, 2.0])


def changed(array: int, index: int, value: float) -> list[list[float]]:
    out = [list(values) for values in GRID]
    out[array][index] = value
    return out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(0, 0, 0.99), r"alpha\[0\] must be 1 .* they are 0.99 and 0.0"),
        (changed(1, 0, 0.01), r"sigma\[0\] must be 0, .* they are 1.0 and 0.01"),
        (changed(0, 0, np.nan), r"alpha\[0\] must be 1"),
        (changed(1, 0, np.nan), r"sigma\[0\] must be 0"),
        (changed(0, 1, np.nan), r"alpha\[1\] is nan"),
        (changed(0, 2, np.inf), r"alpha\[2\] is inf"),
        (changed(0, 2, -0.5), r"alpha\[2\] is -0.5"),
        (changed(1, 1, np.nan), r"sigma\[1\] is nan"),
        (changed(1, 2, np.inf), r"sigma\[2\] is inf"),
        (changed(1, 1, 0.0), r"sigma\[1\] is 0.0"),
        (changed(1, 1, -0.3), r"sigma\[1\] is -0.3"),
        (changed(2, 1, np.nan), r"timestep\[1\] is nan"),
        (changed(2, 2, -np.inf), r"timestep\[2\] is -inf"),
        (changed(1, 2, 0.1), "at n=1 and .* at n=2"),
        (([1, 0.9, 0.9, 0.5], [0, 0.3, 0.3, 0.8], [0, 1, 2, 3]), "at n=1 and .* at n=2"),
        (([1, 0.9, 0.5, 0.6], [0, 0.3, 0.8, 0.7], [0, 1, 2, 3]), "at n=2 and .* at n=3"),
        (([1, 0.0, 0.0], [0, 1.0, 1.0], [0, 1, 2]), "at n=1 and .* at n=2"),
        ((GRID[0][:2], GRID[1], GRID[2]), "lengths 2, 3 and 3"),
        ((GRID[0], GRID[1][:2], GRID[2]), "lengths 3, 2 and 3"),
        ((GRID[0], GRID[1], GRID[2][:2]), "lengths 3, 3 and 2"),
        (([1.0], [0.0], [0.0]), "at least 2"),
        (([], [0.0], [0.0]), "alpha must be a non-empty"),
        ((GRID[0], [GRID[1]], GRID[2]), r"sigma must be a non-empty one-dimensional array, .*\(1, 3\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_arrays_are_refused(given: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoiseSchedule(*given)


@pytest.mark.parametrize("prior_std", [0.0, -1.0, np.nan, np.inf])
def test_bad_prior_std_is_refused(prior_std: float) -> None:
    with pytest.raises(InputError, match="prior_std"):
        NoiseSchedule(*GRID, prior_std=prior_std)


@pytest.mark.parametrize(
    ("betas", "index"),
    [([0.1, 0.0, 0.2], 1), ([-0.1, 0.2], 0), ([0.1, 1.0, 0.2], 1), ([0.1, 0.2, 1.1], 2), ([0.1, np.nan], 1)],
)
def test_bad_betas_are_refused(betas: list[float], index: int) -> None:
    with pytest.raises(InputError, match=rf"betas\[{index}\] is {betas[index]},"):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vp_sde", "flow", "edm"])
@pytest.mark.parametrize("N", [0, -3, 2.5, float("nan")])
def test_bad_number_of_levels_is_refused(name: str, N: float) -> None:
    with pytest.raises(InputError, match="N="):
        getattr(NoiseSchedule, name)(N)


def test_matching_forgives_rounding_and_nothing_else() -> None:
    schedule = NoiseSchedule.linear(50)
    rounded = NoiseSchedule(
        schedule.alpha, np.nextafter(schedule.sigma, np.inf) * (schedule.sigma > 0), schedule.timestep
    )
    assert rounded != schedule
    assert rounded.matches(schedule)
    assert not NoiseSchedule.linear(50, beta_end=0.02 * (1 + 1e-6)).matches(schedule)
    assert not NoiseSchedule.linear(49).matches(schedule)
    assert not NoiseSchedule(schedule.alpha, schedule.sigma, schedule.timestep + 1).matches(schedule)
