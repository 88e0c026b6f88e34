"""The decoder: a discretised Gaussian that sums to 1 and is right in every tail, and the density of continuous data."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import diffusion_var as dv
from diffusion_var.covariance.reverse import StructuredCovariance
from diffusion_var.likelihood.decoder import (
    DensityDecoder,
    DiscreteDecoder,
    discretised_log_prob,
    levels_of,
    log_normal_interval,
    make_decoder,
)
from diffusion_var.process.structure import make_structure

RANGE = (-1.0, 1.0)
STEP = 2 / 255
SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE = (1, 2, 3)
# On a level, on an edge between two, just beside one, at both ends, and outside by a little and by far.
MEANS = (-40.0, -1.01, -1.0, -1 + 0.5 * STEP, -0.3, 0.0, 1e-9, STEP / 2, 0.1234567, 0.98, 1.0, 1.02, 3.0, 1e3)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def log_probs(mean: float, variance: float, levels: int = 256, data_range: tuple[float, float] = RANGE) -> torch.Tensor:
    """Of every level."""
    return discretised_log_prob(torch.arange(levels), scalar(mean), scalar(variance), levels, data_range)


def exact_log_interval(low: Any, high: Any) -> float:
    """log(Φ(high) − Φ(low)) with 50 digits, mirrored into the lower tail, where nothing cancels."""
    with mpmath.workdps(50):
        low, high = mpmath.mpf(low), mpmath.mpf(high)
        if low > 0:
            low, high = -high, -low
        return float(mpmath.log((mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))) / 2))


def exact_log_prob(level: int, mean: float, variance: float, levels: int, data_range: tuple[float, float]) -> float:
    with mpmath.workdps(50):
        low, high = (mpmath.mpf(end) for end in data_range)
        step, std = (high - low) / (levels - 1), mpmath.sqrt(mpmath.mpf(variance))
        lower = (low + (level - mpmath.mpf(0.5)) * step - mpmath.mpf(mean)) / std
        upper = lower + step / std
        return exact_log_interval(-mpmath.inf if level == 0 else lower, mpmath.inf if level == levels - 1 else upper)


# ---- the discretised Gaussian -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", 10.0 ** np.arange(-12, 3))
def test_probabilities_sum_to_one_and_none_is_lost(variance: float) -> None:
    for mean in MEANS:
        found = log_probs(mean, variance)
        assert torch.isfinite(found).all(), mean  # no tail is log 0, however far
        assert float(found.max()) <= 0, mean
        assert abs(float(found.exp().sum()) - 1) < 1e-12, mean


@pytest.mark.parametrize("levels", [2, 3, 16, 4096])
@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 20.0), (0.0, 255.0)])
def test_other_levels_and_ranges(levels: int, data_range: tuple[float, float]) -> None:
    low, high = data_range
    mean, variance = low + 0.37 * (high - low), (0.11 * (high - low)) ** 2
    found = log_probs(mean, variance, levels, data_range)
    assert abs(float(found.exp().sum()) - 1) < 1e-12
    expected = [exact_log_prob(k, mean, variance, levels, data_range) for k in range(min(levels, 16))]
    torch.testing.assert_close(found[:16], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", [1e-12, 1e-8, 1e-5, STEP**2 / 12, 1e-3, 0.3, 1e2])
@pytest.mark.parametrize("mean", [-40.0, -1.0, -0.3, 0.1234567, 0.98, 1.02, 1e3])
def test_log_probabilities_to_fifty_digits(mean: float, variance: float) -> None:
    found = log_probs(mean, variance)
    for level in (0, 1, 2, 88, 89, 127, 128, 143, 144, 200, 254, 255):
        expected = exact_log_prob(level, mean, variance, 256, RANGE)
        # 1e-16 of the mean are that much over std in units of z, and z² of it in the logarithm.
        assert float(found[level]) == pytest.approx(expected, rel=1e-9, abs=1e-12), level


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *[(-math.inf, z) for z in (-1e6, -40.0, -1.0, 0.0, 1.0, 8.0, 9.0)],
        *[(z, math.inf) for z in (-9.0, 0.0, 8.0, 40.0, 1e6)],
        *[(z, z + width) for z in (-1e6, -38.0, -5.0, -0.5, 0.0, 0.5, 5.0, 38.0, 1e6) for width in (1e-4, 1.0, 30.0)],
        (-1e-3, 1e-3),
        (-1e-10, 2e-10),
        (-1e-9, 40.0),
    ],
)
def test_intervals_of_the_normal_distribution(low: float, high: float) -> None:
    found = float(log_normal_interval(scalar(low), scalar(high)))
    assert found == pytest.approx(exact_log_interval(low, high), rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("start", [-1e4, -38.0, -9.0, -0.5, 0.0, 0.5, 9.0, 38.0, 1e4])
@pytest.mark.parametrize("width", [1e-4, 1.0, 30.0])
def test_gradients_of_intervals(start: float, width: float) -> None:
    """d log P = (φ(high) d high − φ(low) d low)/P, wherever the formula that is not used has none."""
    low, high = scalar(start).requires_grad_(), scalar(start + width).requires_grad_()
    log_p = log_normal_interval(low, high)
    found = torch.autograd.grad(log_p, (low, high))
    with mpmath.workdps(50):
        expected = [
            sign * mpmath.exp(-(mpmath.mpf(float(end.detach())) ** 2) / 2 - exact_log_interval(low.item(), high.item()))
            for sign, end in ((-1, low), (1, high))
        ]
        expected = [float(value / mpmath.sqrt(2 * mpmath.pi)) for value in expected]
    # Both are differences of z²/2 and log Φ, of which at z = 10⁴ the last digits are 1e-8.
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_gradient_at_the_outermost_levels_and_of_a_vast_variance() -> None:
    for level, mean, variance in ((0, 0.5, 1e-4), (255, 0.5, 1e-4), (0, -1.0, 1e-4), (128, 1 / 255, 1e34)):
        given = scalar(variance).requires_grad_()
        discretised_log_prob(torch.tensor(level), scalar(mean), given, 256, RANGE).backward()
        shifted = (exact_log_prob(level, mean, variance * (1 + change), 256, RANGE) for change in (1e-4, -1e-4))
        assert float(given.grad) * variance == pytest.approx(float(np.diff([*shifted])[0]) / -2e-4, rel=1e-5), level


def test_the_two_tails_are_mirror_images() -> None:
    for mean in MEANS:
        torch.testing.assert_close(log_probs(mean, 1e-4).flip(0), log_probs(-mean, 1e-4), rtol=1e-9, atol=1e-12)


def test_what_is_computed_is_float64_whatever_comes_in() -> None:
    level, mean = torch.tensor([0, 100, 255]), torch.tensor([0.1, -0.2, 0.9])
    found = discretised_log_prob(level, mean, torch.tensor([0.01]), 256, RANGE)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, discretised_log_prob(level, mean.double(), torch.tensor([0.01]).double(), 256, RANGE), rtol=0, atol=0
    )


# ---- levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-3.0, 5.0)])
@pytest.mark.parametrize("levels", [2, 16, 256, 1024])
def test_floats_on_the_levels_are_levels(levels: int, data_range: tuple[float, float]) -> None:
    low, high = data_range
    k = torch.arange(levels).reshape(1, 1, 2, -1)
    there_and_back = (k.float() / (levels - 1)) * (high - low) + low  # as a user's float32 pipeline does it
    for x in (there_and_back, low + k.double() * ((high - low) / (levels - 1))):
        found = levels_of(x, levels, data_range)
        assert found.dtype == torch.int64
        assert torch.equal(found, k)


@pytest.mark.parametrize("off", [0.5 * STEP, -0.01 * STEP, 0.002 * STEP])
def test_floats_between_levels_are_refused_with_the_images_number(off: float) -> None:
    x = torch.full((5, *SHAPE), 1.0, dtype=torch.float64)
    x[3, 0, 1, 2] = -1 + 100 * STEP + off
    with pytest.raises(dv.InputError, match=r"image 3 holds -0\.2.*none of 256 levels from -1 to 1.*density_bound"):
        levels_of(x, 256, RANGE)
    with pytest.raises(dv.InputError, match="image 67 holds"):
        levels_of(x, 256, RANGE, first=64)


@pytest.mark.parametrize("value", [1 + STEP, -1 - STEP, 1e9])
def test_levels_beyond_the_range_are_refused(value: float) -> None:
    x = torch.ones(2, *SHAPE, dtype=torch.float64)
    x[1, 0, 0, 0] = value
    with pytest.raises(dv.InputError, match="image 1 holds"):
        levels_of(x, 256, RANGE)


# ---- which variance it has ----------------------------------------------------------------------------------------


def posterior(seed: int = 0, count: int = 4) -> dv.Posterior:
    mean = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.5, (count, *SHAPE)))
    return dv.Posterior(mean, torch.zeros_like(mean))


def quantised(seed: int = 1, count: int = 4) -> torch.Tensor:
    return -1 + STEP * torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, *SHAPE))).double()


KERNEL = dv.ReverseKernel(SCHEDULE, 1, 0)


def variance_of(decoder: Any) -> torch.Tensor:
    found: torch.Tensor = decoder._of(posterior(), KERNEL)
    return found


def steps_to(t: int) -> list[dv.ReverseKernel]:
    return [dv.ReverseKernel(SCHEDULE, 100, t), dv.ReverseKernel(SCHEDULE, t, 0)]


# The first pixel never varies: the network is never wrong there.
VARIANCE = np.array([[[0.0, 1e-3, 0.01], [0.1, 0.5, 1.0]]])
DENOISER = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, VARIANCE)


@pytest.fixture(scope="module")
def table() -> dv.VarianceTable:
    images = DENOISER.sample(200, seed=1)
    return dv.estimate(DENOISER, images, 1e3, indices=[1, 50, 100], structures=("pixel", "dct"), progress=False)


def test_beta_tilde_is_that_of_the_step_from_two_to_one() -> None:
    betas = np.linspace(1e-4, 0.02, 100)
    expected = betas[1] * betas[0] / -math.expm1(math.log1p(-betas[0]) + math.log1p(-betas[1]))
    decoder = make_decoder(DENOISER, dv.FixedSmall(), [KERNEL], "beta_tilde", 256, RANGE)
    with pytest.warns(dv.DiffusionVarWarning, match="starts at index 20.*decoder_variance='isotropic'"):
        later = make_decoder(
            DENOISER, dv.FixedSmall(), steps_to(20), "beta_tilde", 256, RANGE
        )  # whatever the smallest index
    coarse = make_decoder(DENOISER, dv.FixedSmall(), [KERNEL], "beta_tilde", 2, RANGE)  # and the levels
    for found in (decoder, later, coarse):
        assert isinstance(found, DiscreteDecoder)
        assert float(variance_of(found)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("choice", ["isotropic", "pixel"])
@pytest.mark.parametrize("t", [1, 50])
def test_pixel_variances_are_at_least_those_of_rounding(table: dv.VarianceTable, choice: str, t: int) -> None:
    own = np.asarray(table.posterior_variance(t, structure=choice))
    for levels in (256, 16):
        decoder = make_decoder(DENOISER, dv.Analytic(table, structure="dct"), steps_to(t), choice, levels, RANGE)
        assert isinstance(decoder, DiscreteDecoder)
        floor = (2 / (levels - 1)) ** 2 / 12 if choice == "pixel" else 0.0
        np.testing.assert_allclose(variance_of(decoder).numpy(), np.maximum(own, floor), rtol=1e-12)
    if choice == "pixel":
        assert own.min() < STEP**2 / 12 < own.max()  # both sides were seen


def test_estimator_and_bounds_are_the_covariances_own(table: dv.VarianceTable) -> None:
    for estimator in ("residual", "data_variance"):
        covariance = dv.Analytic(table, estimator=estimator)
        decoder = make_decoder(DENOISER, covariance, steps_to(50), "isotropic", 256, RANGE)
        assert float(variance_of(decoder)) == pytest.approx(table.posterior_variance(50, estimator), rel=1e-12)
    assert table.posterior_variance(50, "residual") != pytest.approx(table.posterior_variance(50, "data_variance"))


@pytest.mark.parametrize("number", [1e-9, 0.25, 1, np.float32(0.25), np.int64(2), np.array(0.5), torch.tensor(0.5)])
def test_a_number_is_taken_as_it_is(number: Any) -> None:
    decoder = make_decoder(DENOISER, dv.FixedSmall(), [KERNEL], number, 256, RANGE)
    assert isinstance(decoder, DiscreteDecoder)
    assert float(variance_of(decoder)) == float(number)
    x_0, at = quantised(), posterior()
    found = decoder.nats(x_0, at, KERNEL)
    expected = [
        -sum(
            exact_log_prob(int(k), float(m), float(number), 256, RANGE)
            for k, m in zip(((x + 1) / STEP).round().flatten(), mean.flatten(), strict=True)
        )
        for x, mean in zip(x_0, at.mean, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_one_index_has_no_step_from_two_to_one() -> None:
    single = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.from_betas([0.1]), 0.0, VARIANCE)
    with pytest.raises(dv.InputError, match="the schedule has one index; give a number"):
        make_decoder(single, dv.FixedSmall(), [dv.ReverseKernel(single.schedule, 1, 0)], "beta_tilde", 256, RANGE)


# ---- continuous data ----------------------------------------------------------------------------------------------


def test_densities_are_torch_distributions(table: dv.VarianceTable) -> None:
    x_0, at, covariance = quantised(2), posterior(3), dv.Analytic(table, structure="dct")
    for choice, variance in (
        (0.3, torch.tensor(0.3).double()),
        ("beta_tilde", scalar(dv.ReverseKernel(SCHEDULE, 2, 1).beta_tilde)),
        ("isotropic", scalar(table.posterior_variance(1))),
    ):
        decoder = make_decoder(DENOISER, covariance, [KERNEL], choice, None, None)
        expected = -Normal(at.mean, variance.sqrt()).log_prob(x_0).sum((1, 2, 3))
        torch.testing.assert_close(decoder.nats(x_0, at, KERNEL), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("structure", ["isotropic", "channel", "pixel", "dct"])
def test_a_covariance_of_any_structure(structure: str) -> None:
    kind, d = make_structure(structure, SHAPE), math.prod(SHAPE)
    # As the package keeps a scalar: with the three axes that structures sum over.
    variance = torch.from_numpy(np.random.default_rng(4).uniform(0.1, 2.0, kind.variance_shape or (1, 1, 1)))
    decoder = DensityDecoder("covariance", lambda *_: StructuredCovariance(kind, variance))
    basis = torch.eye(d, dtype=torch.float64).reshape(d, *SHAPE)
    matrix = kind.inverse(variance * kind.forward(basis)).reshape(d, d)
    x_0, at = quantised(2), posterior(3)
    expected = -MultivariateNormal(at.mean.flatten(1), matrix).log_prob(x_0.flatten(1))
    torch.testing.assert_close(decoder.nats(x_0, at, KERNEL), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("found", [None, 0.0])
def test_a_zero_variance_has_no_density(found: float | None) -> None:
    zero = None if found is None else StructuredCovariance(make_structure("pixel", SHAPE), torch.from_numpy(VARIANCE))
    decoder = DensityDecoder("told", lambda *_: zero)
    with pytest.raises(dv.InputError, match=r"\(told, step 1 to 0\) is zero somewhere"):
        decoder.nats(quantised(), posterior(), KERNEL)
