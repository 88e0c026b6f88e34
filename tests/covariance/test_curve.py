"""The curve of variances over log SNR: the table's own values at every level, and what is refused."""

import json
import math
from typing import Any

import numpy as np
import pytest
from small_flows import oracle, table

import diffusion_var as dv
from diffusion_var.covariance.curve import VarianceCurve, level_of

TIMES = [*np.linspace(0.001, 1.0, 700), 0.9999, 0.999999, 1.0 - 1e-9]


@pytest.mark.parametrize("structure", ["isotropic", "channel"])
def test_it_has_the_tables_values(structure: str) -> None:
    curve = VarianceCurve.from_table(table(), structure=structure)
    assert len(curve.log_snr) < 400
    for t in TIMES:
        level = dv.NoiseLevel.flow(float(t))
        expected = np.ravel(table().posterior_variance(level, structure=structure))
        np.testing.assert_allclose(np.ravel(curve.posterior_variance(level)), expected, rtol=1e-3)


@pytest.mark.parametrize("estimator", ["score_norm", "data_variance"])
def test_other_estimators(estimator: Any) -> None:
    curve = VarianceCurve.from_table(table(), estimator)
    for t in TIMES[::7]:
        level = dv.NoiseLevel.flow(float(t))
        expected = table().posterior_variance(level, estimator)
        assert float(curve.posterior_variance(level)) == pytest.approx(expected, rel=2e-3)


def test_levels_of_other_schedules_count_by_their_snr() -> None:
    curve, flow = VarianceCurve.from_table(table()), dv.NoiseLevel.flow(0.3)
    scale = math.hypot(flow.alpha, flow.sigma)
    other = dv.NoiseLevel(flow.alpha / scale, flow.sigma / scale, 5.0)
    assert float(curve.posterior_variance(other)) == pytest.approx(float(curve.posterior_variance(flow)), rel=1e-12)


def test_covariance_is_that_of_the_table() -> None:
    kernel = dv.ReverseKernel.between(dv.NoiseLevel.flow(0.8), dv.NoiseLevel.flow(0.6), 0.5)
    curve = VarianceCurve.from_table(table(), structure="channel")
    expected = dv.Analytic(table(), structure="channel").variance(kernel).ravel()
    np.testing.assert_allclose(curve.variance(kernel), expected, rtol=1e-3)
    covariance = curve(None, kernel)
    assert covariance is not None
    assert covariance.structure.name == "channel"


def test_lists_make_it_again() -> None:
    for structure in ("isotropic", "channel"):
        curve = VarianceCurve.from_table(table(), structure=structure)
        again = VarianceCurve(**json.loads(json.dumps(curve.lists())))
        for t in (0.0012, 0.4, 1.0):
            level = dv.NoiseLevel.flow(t)
            np.testing.assert_array_equal(again.posterior_variance(level), curve.posterior_variance(level))


def test_exact_on_gaussian_data_between_its_places() -> None:
    l = float(oracle().variance.mean())
    curve = VarianceCurve([-2.0, 5.0], [1.0, 1.0], l)
    level = dv.NoiseLevel.flow(0.35)
    expected = l * level.sigma**2 / (level.alpha**2 * l + level.sigma**2)
    assert float(curve.posterior_variance(level)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("log_snr", [-math.inf, -700.0, -3.0, 0.0, 2.5, 80.0])
def test_level_of_a_log_snr(log_snr: float) -> None:
    level = level_of(log_snr)
    assert level.log_snr == log_snr
    assert level.alpha + level.sigma == pytest.approx(1.0, rel=1e-15)
    if math.isfinite(log_snr):
        assert 2.0 * math.log(level.alpha / level.sigma) == pytest.approx(log_snr, abs=1e-12)


def test_without_signal_is_outside_unless_measured() -> None:
    curve = VarianceCurve([-2.0, 5.0], [1.0, 0.5], 0.3)
    assert curve.ends == (-2.0, 5.0)
    for t in (1.0, 0.9, 0.001):
        with pytest.raises(dv.InputError, match=r"outside the measured range -2 to 5; estimate the table again"):
            curve.posterior_variance(dv.NoiseLevel.flow(t))
    whole = VarianceCurve([-2.0, 5.0], [1.0, 0.5], 0.3, without_signal=0.9)
    assert float(whole.posterior_variance(dv.NoiseLevel.flow(1.0))) == pytest.approx(0.27)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0.0, 0.0], [1.0, 1.0], 1.0), "must rise strictly"),
        (([0.0, 1.0], [1.0], 1.0), r"log_snr has shape \(2,\), ratio \(1,\)"),
        (([0.0, 1.0], [[1.0, 1.0]] * 2, 1.0), r"ratio \(2, 2\) and data_variance \(\)"),
        (([0.0, 1.0], [1.0, -1.0], 1.0), "a curve holds -1, but variances are at least 0"),
        (([0.0, 1.0], [1.0, math.nan], 1.0), "ratio holds NaN"),
        (([0.0, "x"], [1.0, 1.0], 1.0), "must hold numbers alone"),
        (([0.0, 1.0], [1.0, 1.0], 1.0, [1.0, 2.0]), "log_snr has shape"),
    ],
)
def test_refused(given: Any, message: str) -> None:
    with pytest.raises(dv.InputError, match=message):
        VarianceCurve(*given)


def test_structures_by_element_are_refused() -> None:
    with pytest.raises(dv.InputError, match="'pixel' has a variance per element, too many for a curve"):
        VarianceCurve.from_table(table(), structure="pixel")
