"""The table's answers: estimators, bounds, interpolation, published arrays, and which model it belongs to."""

import re

import numpy as np
import pytest
from crooked import IMAGES, SCHEDULE, SHAPE, crooked_denoiser, network, truth
from populations import exact_population

import diffusion_var as dv
from diffusion_var.process.linear import linear_mmse
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator
from diffusion_var.variance.estimators import score_norm, upper_bound

STRUCTURES = ("isotropic", "channel", "pixel", "dct")


@pytest.fixture(scope="module")
def crooked():
    return dv.estimate(crooked_denoiser(), IMAGES, 0.01, indices=[20, 300, 700, 990], progress=False)


@pytest.fixture(scope="module")
def gaussian():
    """Per basis: (denoiser, table measured at few indices) of Gaussian data."""
    out, shape = {}, (1, 3, 4)
    for basis in ("pixel", "dct"):
        variance = generator(1, "variance").uniform(0.05, 2.0, shape)
        denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.3, variance, basis=basis)
        images = exact_population(200, 0.3, variance, make_structure(basis, shape))
        out[basis] = denoiser, dv.estimate(denoiser, images, 1e3, indices=[2, 100, 400, 1000], progress=False)
    return out


# ---- values -------------------------------------------------------------------------------------------------------


def test_shapes_and_index_zero(crooked):
    for structure in STRUCTURES:
        expected = make_structure(structure, SHAPE).variance_shape
        for n in (0, 20, 150, 990):
            value = crooked.posterior_variance(n, structure=structure)
            assert np.shape(value) == expected
            assert isinstance(value, float if structure == "isotropic" else np.ndarray)
            assert (np.asarray(value) == 0).all() if n == 0 else (np.asarray(value) > 0).all()
        assert all(np.abs(m).max() == 0 for m in crooked.clipping_moments(0, structure))


def test_structures_agree_where_they_must(crooked):
    # Sums of squares do not depend on the orthonormal basis; the control variates differ, hence the errors.
    for n in crooked.indices:
        v = crooked.posterior_variance(n)
        for structure in STRUCTURES[1:]:
            mean = crooked.posterior_variance(n, structure=structure).mean()
            assert mean == pytest.approx(v, rel=6 * crooked.relative_error(n))


@pytest.mark.parametrize("estimator", ["residual", "score_norm", "data_variance"])
def test_values_against_quadrature(crooked, estimator):
    for n in crooked.indices:
        value = crooked.interpolation.value(estimator, "isotropic", crooked.schedule.level(int(n)))
        assert abs(value - truth(int(n), estimator)) <= 4 * crooked.standard_error(n, estimator)


@pytest.mark.parametrize("n", [1, 3, 17, 250, 777])
def test_interpolation_is_exact_for_gaussian_data(gaussian, n):
    for basis, structures in (("pixel", ("pixel",)), ("dct", ("isotropic", "dct"))):
        denoiser, table = gaussian[basis]
        if n == 1:
            for structure in structures:
                with pytest.raises(dv.InputError, match="index 1 is outside the measured indices 2 to 1000"):
                    table.posterior_variance(n, structure=structure)
            continue
        for structure in structures:
            exact = table.structure(structure).pool(denoiser.posterior_variance(n))
            assert np.abs(table.posterior_variance(n, structure=structure) / exact - 1).max() < 1e-4


def test_interpolation_is_linear_in_log_snr_and_continuous(crooked):
    low, high = 300, 700
    for estimator in ("residual", "data_variance"):
        units = {n: crooked.interpolation.linear("isotropic", crooked.schedule.level(n)) for n in (low, high)}
        ends = {
            n: crooked.interpolation.value(estimator, "isotropic", crooked.schedule.level(n)) / units[n]
            for n in (low, high)
        }
        for n in (301, 480, 699):
            weight = (SCHEDULE.log_snr[n] - SCHEDULE.log_snr[low]) / (SCHEDULE.log_snr[high] - SCHEDULE.log_snr[low])
            expected = ((1 - weight) * ends[low] + weight * ends[high]) * crooked.interpolation.linear(
                "isotropic", crooked.schedule.level(n)
            )
            assert crooked.interpolation.value(estimator, "isotropic", crooked.schedule.level(n)) == pytest.approx(
                expected, rel=1e-12
            )


@pytest.mark.parametrize("structure", ["isotropic", "pixel"])
def test_clipping_moments_between_nodes(structure):
    model = crooked_denoiser(clip=(-0.5, 0.5), data_range=None)
    table = dv.estimate(model, IMAGES, 0.05, indices=[300, 700], structures=(structure,), progress=False)
    low, here, high = SCHEDULE.log_snr[[300, 480, 700]]
    weight = (low - here) / (low - high)
    (error, cross, shift), ends = (
        table.clipping_moments(480, structure),
        [table.clipping_moments(n, structure) for n in (300, 700)],
    )
    units = [table.interpolation.linear(structure, table.schedule.level(n)) for n in (300, 700, 480)]
    for power, value, left, right in ((1.0, error, *[e[0] for e in ends]), (0.5, cross, *[e[1] for e in ends])):
        expected = ((1 - weight) * left / units[0] ** power + weight * right / units[1] ** power) * units[2] ** power
        assert np.abs(value / expected - 1).max() < 1e-12
    assert np.abs(shift / ((1 - weight) * ends[0][2] + weight * ends[1][2]) - 1).max() < 1e-12
    assert np.abs(cross).min() > 0
    # Cauchy-Schwarz at the nodes: they are moments of one pair
    for squared, product, other in ends:
        assert (np.asarray(product) ** 2 < 1.05 * np.asarray(squared) * other).all()


def test_errors_between_nodes_are_the_larger_neighbours(crooked):
    for estimator in ("residual", "score_norm", "data_variance"):
        between = crooked.standard_error(500, estimator)
        ends = [crooked.standard_error(n, estimator) for n in (300, 700)]
        units = [crooked.interpolation.linear("isotropic", crooked.schedule.level(n)) for n in (300, 700, 500)]
        assert between == pytest.approx(max(ends[0] / units[0], ends[1] / units[1]) * units[2], rel=1e-12)
        assert between > 0
    for structure in STRUCTURES:
        ends = [crooked.relative_error(n, structure) for n in (300, 700)]
        assert crooked.relative_error(500, structure) == max(ends) > min(ends) > 0


def test_errors_are_finite_where_the_value_is_zero():
    images = np.array([-1.0, 1.0]).reshape(2, 1, 1, 1) * np.ones((2, *SHAPE))
    table = dv.estimate(dv.oracles.EmpiricalDenoiser(SCHEDULE, images), images, indices=[1, 10], progress=False)
    for n in (1, 5, 10):
        assert table.posterior_variance(n) == 0.0
        assert table.standard_error(n) == 0.0
        assert table.relative_error(n) == 0.0
    assert "none seen" in table.summary()
    assert "nan" not in table.summary()


# ---- at noise levels off the grid ---------------------------------------------------------------------------------


def test_an_indexs_level_is_the_index(crooked):
    for n in (0, 20, 150, 700, 990):
        level = SCHEDULE.level(n)
        for structure in STRUCTURES:
            for bounded in (None, True):
                mine, own = (crooked.posterior_variance(place, "residual", structure, bounded) for place in (level, n))
                assert np.array_equal(mine, own)
        for mine, own in zip(crooked.clipping_moments(level), crooked.clipping_moments(n), strict=True):
            assert np.array_equal(mine, own)
        if n:
            assert crooked.standard_error(level) == crooked.standard_error(n)
            assert crooked.relative_error(level, "dct") == crooked.relative_error(n, "dct")
            assert crooked.covers(level) == crooked.covers(n) == (20 <= n <= 990)


@pytest.mark.parametrize("log_snr", [4.3, 0.0123, -2.2, -5.0])
def test_gaussian_data_between_indices_are_the_formula(gaussian, log_snr):
    """v is a function of the SNR alone: the schedule's own level, a flow's and EDM's of that SNR all have it."""
    ratio = np.exp(-0.5 * log_snr)
    levels = [SCHEDULE.level_at(log_snr), dv.NoiseLevel.flow(ratio / (1 + ratio)), dv.NoiseLevel.edm(ratio)]
    for basis, structures in (("pixel", ("pixel",)), ("dct", ("isotropic", "dct"))):
        denoiser, table = gaussian[basis]
        for structure in structures:
            l = denoiser.variance.numpy()
            exact = table.structure(structure).pool(l * ratio**2 / (l + ratio**2))
            for level in levels:
                assert level.index is None
                found = table.posterior_variance(level, structure=structure)
                assert np.abs(found / exact - 1).max() < 1e-4
                assert np.abs(found - exact).max() < 4 * max(table.standard_error(level), 1e-4 * np.max(exact))
                assert np.abs(exact - table.structure(structure).pool(denoiser.posterior_variance(level))).max() < 1e-12


def test_levels_outside_the_measured_range_are_told_the_range(crooked):
    low, high = SCHEDULE.log_snr[990], SCHEDULE.log_snr[20]
    for log_snr in (high + 0.01, low - 0.01):
        level = SCHEDULE.level_at(float(log_snr))
        assert not crooked.covers(level)
        said = f"log SNR {log_snr:.6g} is outside the measured range {low:.6g} to {high:.6g} of this table"
        for call in (crooked.posterior_variance, crooked.clipping_moments, crooked.standard_error):
            with pytest.raises(dv.InputError, match=re.escape(said)):
                call(level)
    assert crooked.posterior_variance(dv.NoiseLevel.clean()) == 0.0


# ---- bounds -------------------------------------------------------------------------------------------------------


def test_each_bound_binds_somewhere():
    assert upper_bound(0.8, 0.4, None, None) == pytest.approx(0.25)
    assert upper_bound(0.1, 1.0, None, (-1.0, 2.0)) == pytest.approx(2.25)
    assert upper_bound(0.8, 0.4, None, (-1.0, 1.0)) == pytest.approx(0.25)
    assert upper_bound(0.5, 0.5, 0.3, (-1.0, 1.0)) == pytest.approx(0.3)
    assert np.abs(upper_bound(0.5, 0.5, np.array([0.3, 3.0]), (-1.0, 1.0)) - [0.3, 1.0]).max() < 1e-12
    assert upper_bound(0.0, 1.0, None, None) == np.inf
    assert upper_bound(0.0, 1.0, 0.3, None) == pytest.approx(0.3)
    assert np.abs(linear_mmse(np.array([0.0, 0.5, 1e9]), 0.6, 0.8) - [0.0, 0.5 * 0.64 / 0.82, 0.64 / 0.36]).max() < 1e-7
    assert np.abs(score_norm([0.25, 1.5], 0.5, 0.25) - [0.1875, -0.125]).max() < 1e-12


def test_bounds_apply_to_the_exact_estimators_by_default(crooked):
    # At n = 990 the crooked network's score_norm is far above and its data_variance far below all bounds.
    n, linear = 990, crooked.interpolation.linear("isotropic", crooked.schedule.level(990))
    assert crooked.posterior_variance(n) > 10 * linear
    assert crooked.posterior_variance(n, bounded=True) == pytest.approx(float(linear))
    assert crooked.posterior_variance(n, "score_norm", bounded=False) > 10 * linear
    assert crooked.posterior_variance(n, "score_norm") == pytest.approx(float(linear))
    assert crooked.interpolation.value("data_variance", "isotropic", crooked.schedule.level(n)) < 0
    for bounded in (None, False, True):
        assert crooked.posterior_variance(n, "data_variance", bounded=bounded) == 0.0
    for structure in STRUCTURES:
        bound = np.asarray(crooked.interpolation.linear(structure, crooked.schedule.level(n)))
        assert np.abs(crooked.posterior_variance(n, "score_norm", structure) / bound - 1).max() < 1e-12


def test_the_range_bounds_pixels_but_never_a_dct_coefficient():
    # All of an image is −1 or 1: the constant coefficient has variance d, far beyond the range's 1.
    images = np.array([-1.0, 1.0]).reshape(2, 1, 1, 1) * np.ones((2, *SHAPE))
    model = dv.Denoiser(network, SCHEDULE, prediction="sample", shape=SHAPE, clip=None, data_range=(-1, 1))
    table = dv.estimate(model, images, 1e3, indices=[999], progress=False)
    assert np.max(table.posterior_variance(999, structure="dct", bounded=True)) > 0.9 * np.prod(SHAPE)
    table.data_range = (-0.5, 0.5)
    for structure in ("isotropic", "channel", "pixel"):
        assert np.max(table.posterior_variance(999, structure=structure, bounded=True)) == pytest.approx(0.25)
    assert np.max(table.posterior_variance(999, structure="dct", bounded=True)) > 0.9 * np.prod(SHAPE)


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_unknown_names_and_unmeasured_indices_are_refused(crooked):
    for call, message in (
        (lambda: crooked.posterior_variance(300, "norm"), "estimator 'norm' is not known; choose one of residual"),
        (lambda: crooked.posterior_variance(300, structure="full"), "structure 'full' is not known"),
        (lambda: crooked.posterior_variance(19), "index 19 is outside the measured indices 20 to 990"),
        (lambda: crooked.posterior_variance(991), "index 991 is outside"),
        (lambda: crooked.standard_error(991), "index 991 is outside"),
        (lambda: crooked.relative_error(19, "dct"), "index 19 is outside"),
        (lambda: crooked.posterior_variance(1001), "n=1001 is not an index of this schedule"),
        (lambda: crooked.posterior_variance(-1), "n=-1 is not an index"),
        (lambda: crooked.standard_error(0), "n=0 is not an index"),
    ):
        with pytest.raises(dv.InputError, match=message):
            call()
    few = dv.estimate(crooked_denoiser(), IMAGES, 1e3, indices=[5], structures=("pixel",), progress=False)
    assert few.structures == ("isotropic", "pixel")
    with pytest.raises(dv.InputError, match=r"has no structure 'dct' \(it has isotropic, pixel\)"):
        few.posterior_variance(5, structure="dct")


def test_check_refuses_another_model(crooked):
    crooked.check(crooked_denoiser())
    crooked.check(crooked_denoiser(data_range=(-9, 9)))  # of the data, not of the model
    for changes, message in (
        ({"schedule": dv.NoiseSchedule.cosine(1000)}, "schedule: the table has NoiseSchedule"),
        ({"shape": (1, 2, 4)}, r"shape: the table has \(1, 4, 2\), the denoiser \(1, 2, 4\)"),
        ({"prediction": "sample"}, "prediction type: the table has epsilon, the denoiser sample"),
        ({"clip": (-1, 1)}, r"clipping: the table has None, the denoiser \(-1.0, 1.0\)"),
    ):
        other = dv.Denoiser(network, **{"schedule": SCHEDULE, "shape": SHAPE, "clip": None, **changes})
        with pytest.raises(dv.InputError, match=f"made for another model \\({message}"):
            crooked.check(other)


def test_check_compares_networks_where_both_are_known():
    one, other = (dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, l * np.ones(SHAPE)) for l in (1.0, 2.0))
    table = dv.estimate(one, IMAGES, 1e3, indices=[5], progress=False)
    table.check(one)
    with pytest.raises(dv.InputError, match=r"network fingerprint: the table has [0-9a-f]{12}, the denoiser"):
        table.check(other)
    table.check(dv.Denoiser(network, SCHEDULE, prediction="sample", shape=SHAPE, clip=None))  # a bare function
    clipped = dv.estimate(crooked_denoiser(clip=(-1, 1)), np.clip(IMAGES, -1, 1), 1e3, indices=[5], progress=False)
    with pytest.raises(dv.InputError, match=r"clipping: the table has \(-1.0, 1.0\), the denoiser None"):
        clipped.check(crooked_denoiser())


# ---- published arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
def test_from_moments_is_the_score_norm_formula(extra):
    schedule = dv.NoiseSchedule.linear(50)
    eps_square = np.linspace(0.2, 0.999, 50)
    table = dv.VarianceTable.from_moments(schedule, eps_square=np.concatenate([[np.nan] * extra, eps_square]))
    for n in range(1, 51):
        v = (schedule.sigma[n] / schedule.alpha[n]) ** 2 * (1 - eps_square[n - 1])
        assert table.posterior_variance(n, "score_norm", bounded=False) == pytest.approx(v, rel=1e-12)
        assert table.posterior_variance(n, "score_norm") == pytest.approx(min(v, 1.0), rel=1e-12)
        assert np.isnan(table.standard_error(n, "score_norm"))
    assert table.posterior_variance(0, "score_norm") == 0.0
    assert table.structures == ("isotropic",)
    assert "published moments" in table.summary()
    table.check(dv.Denoiser(network, schedule, shape=SHAPE))
    with pytest.raises(dv.InputError, match="schedule: "):
        table.check(crooked_denoiser())


def test_from_moments_range_bound_binds_at_high_noise():
    schedule = dv.NoiseSchedule.linear(1000)
    for data_range, expected in (((-1.0, 1.0), 1.0), ((0.0, 1.0), 0.25)):
        table = dv.VarianceTable.from_moments(schedule, eps_square=np.full(1000, 0.5), data_range=data_range)
        assert table.posterior_variance(1000, "score_norm") == expected
    table = dv.VarianceTable.from_moments(schedule, eps_square=np.full(1000, 0.5), data_range=None)
    assert table.posterior_variance(1000, "score_norm") > 1000


def test_from_moments_refuses_what_it_cannot_know():
    schedule = dv.NoiseSchedule.linear(50)
    table = dv.VarianceTable.from_moments(schedule, eps_square=np.full(50, 0.9))
    for estimator in ("residual", "data_variance"):
        with pytest.raises(dv.InputError, match=f"cannot give the estimator '{estimator}'"):
            table.posterior_variance(5, estimator)
    with pytest.raises(dv.InputError, match="has no structure 'pixel'"):
        table.posterior_variance(5, "score_norm", "pixel")
    for bad, message in (
        (np.full(49, 0.9), r"eps_square has shape \(49,\), but the schedule has N=50, so length 50 or 51"),
        (np.full((50, 1), 0.9), r"eps_square has shape \(50, 1\)"),
        (np.array([0.9] * 7 + [np.nan] + [0.9] * 42), "eps_square at index 8 is .*nan.*, but it must be finite"),
        (np.array([0.9] * 49 + [-0.1]), "eps_square at index 50 is .*-0.1"),
    ):
        with pytest.raises(dv.InputError, match=message):
            dv.VarianceTable.from_moments(schedule, eps_square=bad)


def test_zero_terminal_snr_interpolates_towards_the_last_finite_level():
    base = dv.NoiseSchedule.linear(20)
    alpha, sigma = base.alpha.copy(), base.sigma.copy()
    alpha[-1], sigma[-1] = 0.0, 1.0
    schedule = dv.NoiseSchedule(alpha, sigma, base.timestep)
    denoiser = dv.Denoiser(lambda x, t: 0.3 * x, schedule, prediction="sample", shape=SHAPE, clip=None)
    table = dv.estimate(denoiser, IMAGES, 1e3, indices=[5, 20], progress=False)
    linear = table.interpolation.linear("isotropic", table.schedule.level(20))
    assert table.posterior_variance(20, "score_norm") == pytest.approx(float(linear))
    assert table.posterior_variance(20) == pytest.approx(float(linear) + 0.09, rel=0.1)
    ratio = table.posterior_variance(12) / table.interpolation.linear("isotropic", table.schedule.level(12))
    assert ratio == pytest.approx(
        float(table.posterior_variance(5) / table.interpolation.linear("isotropic", table.schedule.level(5)))
    )


def test_summary_says_where_it_is_from_and_how_imperfect_the_mean_is(crooked):
    text = crooked.summary()
    assert "N=1000, 4 measured indices" in text
    assert f"{crooked.evaluations:,} network evaluations" in text
    assert f"data: 8 images, fingerprint {crooked.data.fingerprint[:12]}, seed 0" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("700 "))
    v = crooked.posterior_variance(700)
    others = [crooked.posterior_variance(700, e) for e in ("score_norm", "data_variance")]
    assert row.endswith(f"{max(abs(o - v) for o in others) / v:.1%}")
