"""Flow, EDM and zero terminal SNR: the levels of schedules that are not given by betas."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from diffusion_var import InputError, NoiseSchedule

EPS = np.finfo(np.float64).eps


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
