"""Tables of guided denoisers: the residual in closed form, and the scale kept, shown and checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from populations import exact_population

import diffusion_var as dv
from diffusion_var.models.pretrained.latents import LatentCodec
from diffusion_var.process.structure import make_structure

SCHEDULE = dv.NoiseSchedule.linear(100)
SHAPE = (1, 2, 3)
INDICES = [5, 40, 90]
OPTIONS: dict[str, Any] = {"tolerance": 0.02, "indices": INDICES, "progress": False}
NULL = 2

# Two classes and, last, what the network takes the data for where it is told nothing.
MEANS = np.random.default_rng(1).normal(0.0, 0.7, (3, *SHAPE))
VARIANCES = np.random.default_rng(2).uniform(0.1, 0.6, (3, *SHAPE))


def gains(n: int) -> np.ndarray[Any, Any]:
    """κ of each class, by pixel."""
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    return np.asarray(alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2))


class ClassGaussian(torch.nn.Module):
    """ε̂ of the Gaussian with the label's mean and variance, as a network predicts it."""

    def __init__(self) -> None:
        super().__init__()
        for name, array in (("means", MEANS), ("variances", VARIANCES)):
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        n = timestep.numpy() + 1
        alpha, sigma = (torch.from_numpy(a[n])[:, None, None, None] for a in (SCHEDULE.alpha, SCHEDULE.sigma))
        mean, variance = self.means[label], self.variances[label]
        return sigma * (x_t.double() - alpha * mean) / (alpha**2 * variance + sigma**2)


def images() -> np.ndarray[Any, Any]:
    """Classes 0 and 1 by turns, each with exactly its moments."""
    out, basis = np.empty((20, *SHAPE)), make_structure("pixel", SHAPE)
    for label in range(2):
        out[label::2] = exact_population(10, MEANS[label], VARIANCES[label], basis, seed=label)
    return out


def denoiser(scale: float = 1.0, codec: tuple[float, float] | None = None) -> dv.Denoiser:
    model = dv.Denoiser(
        ClassGaussian(), SCHEDULE, shape=SHAPE, clip=None, guidance_scale=scale, unconditional=NULL, conditional=True
    )
    if codec is not None:
        config = {"scaling_factor": codec[0], "shift_factor": codec[1]}
        model.codec = LatentCodec(lambda: None, config, torch.device("cpu"))
    return model


def table_of(model: dv.Denoiser, **options: Any) -> dv.VarianceTable:
    return dv.estimate(model, images(), conditions=np.arange(20) % 2, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def guided() -> dv.VarianceTable:
    return table_of(denoiser(3.0))


@pytest.fixture(scope="module")
def plain() -> dv.VarianceTable:
    return table_of(denoiser())


# ---- the residual -------------------------------------------------------------------------------------------------


def residual(n: int, w: float) -> np.ndarray[Any, Any]:
    """E (x_0 − A_c − K x_t)² by pixel. Class c's mean is (1 − κ_c α) m_c + κ_c x_t and the null one is alike, so that
    the guided mean is A_c + K_c x_t with A and K mixed in the proportions w and 1 − w."""
    alpha, sigma, kappa = SCHEDULE.alpha[n], SCHEDULE.sigma[n], gains(n)
    mixed = w * kappa[:NULL] + (1 - w) * kappa[NULL]
    offset = w * ((1 - kappa * alpha) * MEANS)[:NULL] + (1 - w) * ((1 - kappa * alpha) * MEANS)[NULL]
    squares = (
        (1 - mixed * alpha) ** 2 * VARIANCES[:NULL]
        + (mixed * sigma) ** 2
        + ((1 - mixed * alpha) * MEANS[:NULL] - offset) ** 2
    )
    return np.asarray(squares.mean(0))


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 3.0])
def test_the_residual_is_that_of_the_guided_mean(w: float) -> None:
    table = table_of(denoiser(w), tolerance=0.01)
    for n in INDICES:
        expected, found = residual(n, w), table.posterior_variance(n)
        error = 4 * table.standard_error(n) + 2e-5 * expected.mean()
        assert abs(found - expected.mean()) <= error
        pixel = table.posterior_variance(n, structure="pixel")
        assert np.sqrt(np.mean((pixel / expected - 1) ** 2)) <= 2.5 * table.relative_error(n, "pixel") + 2e-5
        if w != 1 and n > 5:  # the test can tell it from the conditional mean's
            assert abs(found - residual(n, 1.0).mean()) > 2 * error


def test_at_scale_one_the_mean_is_the_class_s_own() -> None:
    for n in INDICES:
        alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
        within = VARIANCES[:NULL] * sigma**2 / (alpha**2 * VARIANCES[:NULL] + sigma**2)
        assert np.abs(residual(n, 1.0) / within.mean(0) - 1).max() < 1e-12


# ---- the scale in the table ---------------------------------------------------------------------------------------


def test_the_scale_is_kept(guided: dv.VarianceTable, plain: dv.VarianceTable, tmp_path: Path) -> None:
    assert (guided.guidance_scale, plain.guidance_scale) == (3.0, 1.0)
    guided.save(tmp_path / "t")
    loaded = dv.VarianceTable.load(tmp_path / "t")
    assert loaded.guidance_scale == 3.0
    assert loaded.digest == guided.digest != plain.digest
    assert loaded.subset(["pixel"]).guidance_scale == 3.0
    with pytest.raises(dv.InputError, match="guidance"):
        loaded.posterior_variance(40, "score_norm")


def test_the_latent_scaling_is_kept(tmp_path: Path) -> None:
    table = table_of(denoiser(codec=(0.18, 0.25)), tolerance=1e3)
    assert table.latent_scaling == (0.18, 0.25)
    table.save(tmp_path / "t")
    assert dv.VarianceTable.load(tmp_path / "t").latent_scaling == (0.18, 0.25)
    assert "latents scaled by 0.18" in table.summary()


def test_the_summary_shows_the_scale_and_no_other_estimators(guided: dv.VarianceTable, plain: dv.VarianceTable) -> None:
    text = guided.summary()
    assert "guidance scale 3\n" in text
    for name in ("score_norm", "data_variance", "disagreement"):
        assert name not in text
        assert name in plain.summary()
    assert "guidance" not in plain.summary()
    assert "latents" not in plain.summary()
    header = next(i for i, line in enumerate(text.splitlines()) if "rel.err" in line)
    rows = [line.split() for line in text.splitlines()[header + 1 :]]
    assert [int(row[0]) for row in rows] == INDICES
    for row in rows:
        n = int(row[0])
        assert len(row) == 5  # the last is the error with the choice of the images
        assert float(row[2]) == pytest.approx(guided.posterior_variance(n), rel=1e-3)
        assert row[3] == f"{guided.relative_error(n):.2%}"


@pytest.mark.parametrize("estimator", ["score_norm", "data_variance"])
def test_estimators_of_the_posterior_mean_are_refused_with_the_reason(guided: dv.VarianceTable, estimator: Any) -> None:
    message = (
        rf"measured with guidance \(scale 3\), whose mean is not the posterior mean that .*{estimator}.*'residual'"
    )
    for ask in (
        lambda: guided.posterior_variance(40, estimator),
        lambda: guided.posterior_variance(40, estimator, "pixel"),
        lambda: guided.standard_error(40, estimator),
        lambda: dv.Analytic(guided, estimator),
    ):
        with pytest.raises(dv.InputError, match=message):
            ask()
    assert guided.posterior_variance(40) > 0


def test_bounds_of_the_posterior_mean_are_refused_with_the_reason(guided: dv.VarianceTable) -> None:
    for ask in (lambda: guided.posterior_variance(40, bounded=True), lambda: dv.Analytic(guided, bounded=True)):
        with pytest.raises(dv.InputError, match=r"the bounds hold for the exact posterior mean only"):
            ask()


# ---- whom it is for -----------------------------------------------------------------------------------------------


def test_another_scale_is_refused(guided: dv.VarianceTable, plain: dv.VarianceTable) -> None:
    for table, mine, theirs in ((guided, 3.0, 1.0), (guided, 3.0, 2.5), (plain, 1.0, 3.0)):
        message = rf"another model \(guidance scale: the table has {mine}, the denoiser {theirs}\); estimate one"
        with pytest.raises(dv.InputError, match=message):
            table.check(denoiser(theirs))
        with pytest.raises(dv.InputError, match=message):
            dv.Sampler(denoiser(theirs), dv.Analytic(table), [5, 40, 90])
        table.check(denoiser(mine))
    with pytest.raises(dv.InputError, match="guidance scale"):
        guided.check(denoiser(3.0).with_guidance(2.0))
    guided.check(denoiser().with_guidance(3.0, NULL))


def test_another_latent_scaling_is_refused() -> None:
    table = table_of(denoiser(codec=(0.18, 0.0)), tolerance=1e3)
    for codec in ((0.19, 0.0), (0.18, 0.1)):
        with pytest.raises(dv.InputError, match=r"latent scaling: the table has \(0.18, 0.0\), the denoiser \(0.1"):
            table.check(denoiser(codec=codec))
        with pytest.raises(dv.InputError, match="latent scaling"):
            dv.Sampler(denoiser(codec=codec), dv.Analytic(table), [5, 40, 90])
    table.check(denoiser(codec=(0.18, 0.0)))
    table.check(denoiser())  # the same network, without its autoencoder


def test_a_checkpoint_with_another_scale_is_refused(tmp_path: Path) -> None:
    table_of(denoiser(3.0), checkpoint=tmp_path / "c", tolerance=1e3)
    with pytest.raises(dv.InputError, match=r"belongs to another run \(different guidance_scale\)"):
        table_of(denoiser(2.0), checkpoint=tmp_path / "c")


def test_a_guided_sampler_uses_its_table(guided: dv.VarianceTable) -> None:
    sampler = dv.Sampler(denoiser(3.0), dv.Analytic(guided, structure="pixel"), [5, 40, 90], eta=0.0, low_start=True)
    labels = torch.tensor([0, 1, 1])
    found = sampler.sample(3, seed=1, conditions=labels)
    assert torch.isfinite(found).all()
    assert float((found - sampler.sample(3, seed=1, conditions=1 - labels)).abs().amax((1, 2, 3)).min()) > 0.1
    for k, n in enumerate((90, 40)):
        kernel = sampler.kernels[k]
        expected = kernel.lambda2 + kernel.gain**2 * guided.posterior_variance(n, structure="pixel")
        assert np.abs(sampler.covariance.variance(kernel) / expected - 1).max() < 1e-12
