"""What a table says of a sampler's steps: KLs against numeric integration, and a mean's error that is known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from populations import exact_population

import diffusion_var as dv
from diffusion_var.covariance.diagnostics import describe, diagnose, mean_error
from diffusion_var.process.divergence import excess_kl
from diffusion_var.process.structure import make_structure

SCHEDULE, SHAPE = dv.NoiseSchedule.linear(1000), (1, 4, 4)
SPECTRUM = np.geomspace(0.02, 1.0, 16).reshape(SHAPE)
GAUSSIAN = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, SPECTRUM)
INDICES = [1, 20, 100, 250, 500, 750, 1000]
BITS = 1 / math.log(2)


def population() -> np.ndarray:
    """As many images as their negatives, with the covariance of SPECTRUM exactly: what is even in x_t is uncorrelated
    with what is odd."""
    half = exact_population(100, 0.0, SPECTRUM, make_structure("pixel", SHAPE))
    return np.concatenate([half, -half])


class Wavy(dv.oracles.GaussianDenoiser):
    """The exact mean, less a wave of x_t that is even in it."""

    height, rate = 0.2, 2.0

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        return super().exact_mean(x_t, alpha, sigma) - self.height * torch.cos(self.rate * x_t)

    def error(self, n: int) -> float:
        """E‖wave‖²/d over the population and the noise: ½ height² (1 + E cos(2 rate x_t))."""
        alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
        waves = np.cos(2 * self.rate * alpha * population()) * math.exp(-2 * (self.rate * sigma) ** 2)
        return float(0.5 * self.height**2 * (1 + waves.mean()))


def measured(denoiser: dv.Denoiser, indices: list[int] = INDICES, **options: Any) -> dv.VarianceTable:
    arguments = {"tolerance": 0.01, "structures": ("channel", "pixel"), "max_evaluations": 30_000, **options}
    return dv.estimate(denoiser, population(), indices=indices, progress=False, **arguments)


@pytest.fixture(scope="module")
def exact() -> dv.VarianceTable:
    return measured(GAUSSIAN)


@pytest.fixture(scope="module")
def wavy() -> dv.VarianceTable:
    return measured(Wavy(SCHEDULE, 0.0, SPECTRUM))


# ---- KLs ------------------------------------------------------------------------------------------------------------


def expected_kl(kernel: dv.ReverseKernel, v: float, used: float) -> float:
    """E KL(q(x_s|x_t,x_0) ‖ N(mean, used)) by integrating densities: over x_0 − x̂_0 ~ N(0, v), then over x_s."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    centre = kernel.gain * math.sqrt(v) * nodes[:, None]
    x = centre + math.sqrt(kernel.lambda2) * nodes
    log_q = -0.5 * ((x - centre) ** 2 / kernel.lambda2 + math.log(kernel.lambda2))
    log_p = -0.5 * (x**2 / used + math.log(used))
    return float(weights @ (log_q - log_p) @ weights)


@pytest.mark.parametrize(("t", "s"), [(1000, 500), (500, 499), (100, 1), (2, 1)])
@pytest.mark.parametrize("factor", [0.1, 0.9, 1.0, 1.5, 30.0])
def test_excess_is_a_difference_of_expected_kls(t: int, s: int, factor: float) -> None:
    kernel, v = dv.ReverseKernel(SCHEDULE, t, s), float(GAUSSIAN.posterior_variance(t).mean())
    best = kernel.lambda2 + kernel.gain**2 * v
    expected = expected_kl(kernel, v, factor * best) - expected_kl(kernel, v, best)
    assert float(excess_kl(best, factor * best)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert expected_kl(kernel, v, best) == pytest.approx(0.5 * math.log(best / kernel.lambda2), rel=1e-8, abs=1e-12)


def test_excess_of_arrays() -> None:
    found = excess_kl([1.0, 2.0], [[1.0], [2.0]])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 0.5 * np.array([[0, 1 - math.log(2)], [-0.5 + math.log(2), 0]]), atol=1e-15)


@pytest.mark.parametrize("steps", [INDICES, [1, 60, 1000], dv.steps.linspace(1000, 26)])
def test_a_diagnosis_is_that_of_each_step(exact: dv.VarianceTable, steps: list[int]) -> None:
    found = diagnose(exact, steps)
    assert [(step.t, step.s) for step in found] == list(zip(steps[1:], steps[:-1], strict=True))[::-1]
    for step in found:
        kernel, v = dv.ReverseKernel(SCHEDULE, step.t, step.s), exact.posterior_variance(step.t)
        assert step.variance == pytest.approx(kernel.lambda2 + kernel.gain**2 * v, rel=1e-12)
        optimal = expected_kl(kernel, v, step.variance) * BITS
        assert step.optimal == pytest.approx(optimal, rel=1e-9, abs=1e-12)
        assert set(step.excess) == {"beta_tilde", "beta"}
        for name, used in (("beta_tilde", kernel.beta_tilde), ("beta", kernel.beta)):
            expected = expected_kl(kernel, v, used) * BITS - optimal
            assert step.excess[name] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert set(step.saving) == {"pixel"}  # one channel is the isotropic case
        for name, saving in step.saving.items():
            elements = np.ravel(exact.posterior_variance(step.t, structure=name))
            kls = [expected_kl(kernel, float(u), kernel.lambda2 + kernel.gain**2 * float(u)) for u in elements]
            assert saving == pytest.approx(optimal - np.mean(kls) * BITS, rel=1e-9, abs=1e-12)
        assert step.imperfect == 0.0
    assert sum(step.saving["pixel"] for step in found) > 0.05


# ---- the mean's own error -------------------------------------------------------------------------------------------


def test_no_error_is_seen_of_an_exact_mean(exact: dv.VarianceTable) -> None:
    assert [mean_error(exact, n) for n in [*INDICES, 60, 999]] == 9 * [0.0]


@pytest.mark.parametrize("n", [100, 250, 500, 750])
def test_an_uncorrelated_error_is_found(wavy: dv.VarianceTable, n: int) -> None:
    truth = Wavy(SCHEDULE, 0.0, SPECTRUM).error(n)
    others = min(wavy.standard_error(n, "score_norm"), wavy.standard_error(n, "data_variance"))
    error = 0.5 * math.hypot(wavy.standard_error(n), others)
    found = mean_error(wavy, n)
    assert found is not None
    assert abs(found - truth) <= 4 * error
    assert 4 * error < 0.4 * truth  # otherwise anything would do
    # The residual is the exact variance and the error.
    exact = float(GAUSSIAN.posterior_variance(n).mean())
    assert abs(wavy.posterior_variance(n) - exact - truth) <= 4 * wavy.standard_error(n)


def test_what_an_exact_mean_would_save(wavy: dv.VarianceTable) -> None:
    for step in diagnose(wavy, [100, 250, 500, 750]):
        kernel = dv.ReverseKernel(SCHEDULE, step.t, step.s)
        v = float(GAUSSIAN.posterior_variance(step.t).mean())
        assert step.imperfect is not None
        found = mean_error(wavy, step.t)
        assert found is not None
        assert found > 0
        exact = kernel.lambda2 + kernel.gain**2 * (wavy.posterior_variance(step.t) - found)
        assert step.imperfect == pytest.approx(0.5 * BITS * math.log(step.variance / exact), rel=1e-9)
        optimal = 0.5 * BITS * math.log1p(kernel.gain**2 * v / kernel.lambda2)
        assert step.optimal - step.imperfect == pytest.approx(optimal, rel=0.1)


def test_an_error_within_the_noise_is_none_seen(wavy: dv.VarianceTable) -> None:
    """Two standard errors are no finding: the same gap, less closely known."""
    n = 250
    gap = 2 * (mean_error(wavy, n) or 0)
    names = ("residual", "score_norm", "data_variance")
    errors = {name: wavy.standard_error(n, name) for name in names}
    assert gap > 2 * math.hypot(errors["residual"], errors["data_variance"]) > 0
    scale = np.array([1.0, *[1e6] * 8])[:, None]  # a fold's means, and below them its covariances
    moments = {
        name: replace(m, covariances=m.covariances * 1e6, folds=None if m.folds is None else m.folds * scale)
        for name, m in wavy.moments.items()
    }
    vague = replace(wavy, moments=moments)
    assert vague.posterior_variance(n) == pytest.approx(wavy.posterior_variance(n), rel=1e-12)
    assert mean_error(vague, n) == 0.0


def test_an_error_larger_than_the_variance() -> None:
    """Then the other two estimators are negative; cut at 0, as variances, they would show half of it."""
    wide = Wavy(SCHEDULE, 0.0, SPECTRUM)
    wide.height = 2.0
    found, truth = mean_error(measured(wide, [250], tolerance=0.005), 250), wide.error(250)
    assert truth > 5 * GAUSSIAN.posterior_variance(250).mean()
    assert found == pytest.approx(truth, rel=0.1)


def test_no_more_error_than_there_is() -> None:
    """An error that goes with the prediction counts for more than twice, but is no more than the residual."""

    def wild(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 5.0 * x_t.sign()

    table = measured(dv.Denoiser(wild, SCHEDULE, "sample", SHAPE, clip=None), [500], tolerance=0.1)
    assert mean_error(table, 500) == table.posterior_variance(500)


def test_of_the_two_other_estimators_the_better_known(wavy: dv.VarianceTable) -> None:
    """score_norm at high noise is worthless, and data_variance at low noise is not the best."""
    picked = {}
    for n in (100, 250, 500, 750):
        v, found = wavy.posterior_variance(n), mean_error(wavy, n)
        gaps = {k: 0.5 * (v - wavy.posterior_variance(n, k, bounded=False)) for k in ("score_norm", "data_variance")}
        errors = {k: wavy.standard_error(n, k) for k in ("score_norm", "data_variance")}
        picked[n] = min(gaps, key=lambda k: abs(gaps[k] - (found or 0)))
        assert found == pytest.approx(gaps[picked[n]], rel=1e-12)
        assert errors[picked[n]] == min(errors.values())
    assert set(picked.values()) == {"score_norm", "data_variance"}


def test_zero_terminal_snr() -> None:
    """There ε̂ says nothing about x_0, so that score_norm has no finite error."""
    schedule = SCHEDULE.with_zero_terminal_snr()
    table = measured(dv.oracles.GaussianDenoiser(schedule, 0.0, SPECTRUM), [1, 500, 1000])
    assert mean_error(table, 1000) == 0.0
    assert all(math.isfinite(step.optimal) for step in diagnose(table, [1, 500, 1000]))


# ---- tables that know less ------------------------------------------------------------------------------------------


def test_published_arrays_and_guided_tables_do_not_know_it(exact: dv.VarianceTable) -> None:
    scale = SCHEDULE.alpha[1:, None] ** 2 * SPECTRUM.ravel() + SCHEDULE.sigma[1:, None] ** 2
    eps_square = SCHEDULE.sigma[1:] ** 2 * (1 / scale).mean(1)
    published = dv.VarianceTable.from_moments(SCHEDULE, eps_square=eps_square, data_range=None)
    guided = replace(exact, guidance_scale=2.0)
    for table, estimator in ((published, "score_norm"), (guided, "residual")):
        assert mean_error(table, 500) is None
        found = diagnose(table, INDICES)
        for step in found:
            kernel, v = dv.ReverseKernel(SCHEDULE, step.t, step.s), table.posterior_variance(step.t, estimator)
            assert step.variance == pytest.approx(kernel.lambda2 + kernel.gain**2 * v, rel=1e-12)
            assert step.imperfect is None
        assert "imperfect" not in describe(found)
    assert diagnose(published, INDICES)[0].saving == {}


@pytest.mark.parametrize("steps", [[500], [1, 500], [1, 1000], [], list(range(1, 100))])
def test_steps_that_the_table_does_not_cover(steps: list[int]) -> None:
    narrow = measured(GAUSSIAN, [100, 600], tolerance=0.5)
    inside = diagnose(narrow, [1, 20, 100, 300, 600, 1000])
    assert [(step.t, step.s) for step in inside] == [(600, 300), (300, 100)]
    with pytest.raises(dv.InputError, match=f"indices 100 to 600 hold no step of the {len(steps)} asked for"):
        diagnose(narrow, steps)


# ---- the text -------------------------------------------------------------------------------------------------------


def test_the_description_holds_the_sums(wavy: dv.VarianceTable) -> None:
    found = diagnose(wavy, [100, 250, 500, 750])
    lines = describe(found).splitlines()
    total, imperfect = sum(step.optimal for step in found), sum(step.imperfect or 0 for step in found)
    assert lines[0] == "expected KL of the 3 steps 750 to 100 at η = 1, bits/dim (decoder apart):"
    share = f"of which imperfect mean {imperfect:.4f} ({imperfect / total:.0%})"
    assert lines[1] == f"  optimal isotropic  {total:9.4f}   {share}"
    for line, name, sign in ((lines[2], "beta_tilde", "β̃"), (lines[3], "beta", "β")):
        lost = sum(step.excess[name] for step in found)
        worst = max(found, key=lambda step: step.excess[name])
        assert line.split()[:3] == [sign, f"{total + lost:.4f}", f"{lost:+.4f},"]
        assert line.endswith(f"most of it ({worst.excess[name]:.4f}) from {worst.t} to {worst.s}")
    for line, name in ((lines[4], "pixel"),):
        saved = sum(step.saving[name] for step in found)
        assert line.split() == ["optimal", name, f"{total - saved:.4f}", f"{-saved:+.4f}"]
    assert len(lines) == 5
    assert max(len(line) for line in lines) <= 120


def test_data_that_leave_nothing_open() -> None:
    """All images alike and a network that knows it: no KL, and no share of it."""
    image = -0.3 * np.ones((3, *SHAPE))
    denoiser = dv.Denoiser(lambda x, t: torch.full_like(x, -0.3), SCHEDULE, "sample", SHAPE)
    table = dv.estimate(denoiser, image, 0.5, indices=[1, 1000], structures=(), progress=False)
    found = diagnose(table, [1, 500, 1000])
    assert [step.optimal for step in found] == [0.0, 0.0]
    assert describe(found).splitlines()[1].split()[:3] == ["optimal", "isotropic", "0.0000"]
