"""Noise schedules against published numbers and exact arithmetic, and what they refuse."""

import mpmath
import numpy as np
import pytest
import torch
from places import golden
from scipy.integrate import quad

from diffusion_var import InputError, NoiseLevel, NoiseSchedule

GOLDEN = golden()
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


# ---- what other codes list -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
@pytest.mark.parametrize("falling", [False, True])
def test_levels_in_either_order_are_one_schedule(kind: str, falling: bool) -> None:
    """As DDPM's own, whichever end comes first; the clean index is put before them."""
    ours = NoiseSchedule.linear(20)
    listed = [array[1:][:: -1 if falling else 1].copy() for array in (ours.alpha, ours.sigma, ours.timestep)]
    made = {"array": lambda a: a, "tensor": torch.from_numpy, "list": list}[kind]
    found = NoiseSchedule.from_levels(*(made(array) for array in listed))
    assert found == ours
    assert (found.alpha[0], found.sigma[0]) == (1.0, 0.0)
    assert np.isnan(found.timestep[0])


def test_one_level_is_a_schedule() -> None:
    assert NoiseSchedule.from_levels([0.5], [0.8], [3]).num_steps == 1
    zero = NoiseSchedule.from_levels([0.0, 0.5], [1.0, 0.5], [9, 3])
    assert zero.zero_terminal_snr
    assert zero.timestep[1:].tolist() == [3, 9]


def test_networks_that_take_sigma_are_told_sigma_everywhere() -> None:
    """On the grid, between two of its levels, and at a level by itself; the levels are those of EDM's bare networks."""
    bare, wrapped = NoiseSchedule.edm(50), NoiseSchedule.edm(50, told="sigma")
    assert np.array_equal(bare.sigma, wrapped.sigma)
    assert bare.prior_std == wrapped.prior_std == 80.0
    assert np.array_equal(wrapped.timestep[1:], wrapped.sigma[1:])
    assert np.allclose(bare.timestep[1:], np.log(bare.sigma[1:]) / 4, rtol=1e-15)
    between = wrapped.level_at(0.5 * (wrapped.log_snr[20] + wrapped.log_snr[21]))
    assert between.timestep == pytest.approx(between.sigma, rel=1e-12)
    assert NoiseLevel.edm(3.5, told="sigma").timestep == 3.5
    assert NoiseLevel.edm(3.5).timestep == pytest.approx(np.log(3.5) / 4, rel=1e-15)
    assert bare != wrapped
