"""Each image's whole covariance in the sampler, the bound and restoration; what is said and refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from measurements import halved, matrix_of, measured
from naive_restoration import gaussian_given_both
from small_krylov import (
    COVARIANCES,
    MIXTURE,
    SCHEDULE,
    SHAPE,
    crooked,
    noise,
    noisy_images,
    table,
)

import diffusion_var as dv
from diffusion_var.errors import DiffusionVarWarning, InputError
from diffusion_var.models.oracles import MixtureDenoiser
from diffusion_var.process.kernel import ReverseKernel
from diffusion_var.testing import CovarianceContract

# ---- where it is used ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:log-determinants by 2 probes")
@pytest.mark.parametrize("with_table", [True, False])
class TestLanczos(CovarianceContract):
    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return MIXTURE

    @pytest.fixture
    def covariance(self, with_table: bool) -> dv.Lanczos:
        return dv.Lanczos(table() if with_table else None)


def test_a_level_without_signal_has_the_table_s_own() -> None:
    schedule = dv.NoiseSchedule(np.linspace(1.0, 0.0, 11), np.linspace(0.0, 1.0, 11), np.arange(11.0))
    model = MixtureDenoiser(schedule, MIXTURE.means, covariances=COVARIANCES)
    known = dv.estimate(model, model.sample(2000), 0.1, indices=[1, 5, 10], structures=("dct",), progress=False)
    for covariance in (dv.Lanczos(known), dv.Analytic(known, structure="dct")):
        images = dv.Sampler(model, covariance, [1, 5, 10], 0.0).sample(4)
        assert bool(torch.isfinite(images).all())
    with pytest.raises(InputError, match=r"says nothing at index 10, where x_t holds no signal.* give a table"):
        dv.Sampler(model, dv.Lanczos(), [1, 5, 10])
    dv.Sampler(model, dv.Lanczos(), [1, 5, 9])


@pytest.mark.filterwarnings("ignore:log-determinants by 4 probes")
def test_the_bound_lies_between_the_table_s_and_the_density() -> None:
    """And is that of the mixture's own matrices, up to the error of the probes."""
    images = MIXTURE.sample(128, seed=21)

    def bound(covariance: dv.ReverseCovariance) -> float:
        how: dict[str, Any] = {"decoder_variance": "covariance", "batch_size": 128}
        return float(dv.density_bound(MIXTURE, covariance, images, 3, **how))

    own = bound(lanczos := dv.Lanczos(table(), probes=4))
    # Of a mean over 128 images of three terms, half a log-determinant each.
    error = lanczos.log_det_error / math.log(2.0) / 2.0 * math.sqrt(3 / 128)
    assert 0.0 < error < 0.03
    assert abs(own - bound(dv.ExactCovariance(MIXTURE))) < 4 * error
    assert float(MIXTURE.density_bits(images).mean()) < own < bound(dv.Analytic(table(), structure="dct")) - 4 * error


def test_noisy_log_determinants_and_solves_that_stopped_are_said() -> None:
    covariance = dv.Lanczos(table())
    covariance.add_counts([0, 0, 0, 90, 10, round(10 * (0.13 * math.log(2.0) * 2.0 * 1e6) ** 2), 0, 0])
    with pytest.warns(DiffusionVarWarning, match=r"by 2 probes add 0\.13 bits/dim of noise"):
        covariance.report()
    covariance.add_counts([0, 0, 7, 90, 10, 0, 0, 0])
    with pytest.warns(
        DiffusionVarWarning, match="of 90 solves with lanczos-3, 7 did not reach a residual of 0.001 in 64"
    ):
        covariance.report()
    covariance.report()


def test_the_decoder_of_pixels_takes_no_scale_for_a_variance() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8))
    how: dict[str, Any] = {"decoder_variance": "covariance", "data_range": (-1, 1)}
    with pytest.raises(InputError, match="has the structure 'full', but the discretised decoder is diagonal in pixels"):
        dv.bits_per_dim(MIXTURE, dv.Lanczos(), images, [1, 60], **how)


def test_a_measurement_s_mean_is_exact_with_as_many_products_as_it_has_elements() -> None:
    from measurements import SCHEDULE as schedule
    from measurements import SHAPE as shape
    from measurements import dense, normal
    from measurements import gaussian as gaussian_of

    base, known = gaussian_of("dct")
    images = base.sample(2, seed=1).double()
    measurement, matrix = measured(halved, images), matrix_of(halved)
    prior = dense(known.structure, known.data_variance)
    for guidance in ("I", "II"):
        den = dv.ConditionedDenoiser(base, dv.Lanczos(steps=len(matrix)), measurement, guidance)  # type: ignore[arg-type]
        for n in (50, 800):
            alpha, sigma = float(schedule.alpha[n]), float(schedule.sigma[n])
            x_t = alpha * images + sigma * normal(2, *shape)
            found = den(x_t, n).mean
            for i in range(2):
                x, y = x_t[i].flatten().numpy(), measurement.y[i].flatten().numpy()
                noise_of_y = 0.01 * np.eye(len(matrix))
                of_data = base.mean.flatten().numpy(), prior
                expected, _ = gaussian_given_both(*of_data, alpha, sigma, x, matrix, noise_of_y, y)
                assert np.abs(found[i].flatten().numpy() - expected).max() < 1e-8
        assert den.counts()[1:3] == [0, 0]
    few = dv.ConditionedDenoiser(base, dv.Lanczos(steps=3), measurement)
    with pytest.warns(
        DiffusionVarWarning, match=r"did not reach their tolerance \(allow more iterations, .*dv\.Lanczos"
    ):
        assert bool(torch.isfinite(dv.Sampler(few, dv.FixedSmall(), 4).sample(2)).all())
    with pytest.raises(InputError, match="needs a covariance that can be drawn from"):
        few.posterior_noise()


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"Lanczos\(steps=13\) is more than the 12 dimensions of an image"):
        dv.Sampler(MIXTURE, dv.Lanczos(steps=13), 4)
    other = MixtureDenoiser(SCHEDULE, np.zeros((1, *SHAPE)), 0.1)
    with pytest.raises(InputError, match="network"):
        dv.Sampler(other, dv.Lanczos(table()), [1, 60])
    bare = dv.estimate(MIXTURE, MIXTURE.sample(64), 1e3, indices=[1], structures=("isotropic",), progress=False)
    with pytest.raises(InputError, match="dct"):
        dv.Lanczos(bare)
    lists = dv.VarianceTable.from_moments(SCHEDULE, eps_square=np.full(100, 0.9))
    with pytest.raises(InputError, match=r"measured table|dct"):
        dv.Lanczos(lists)
    kernel, posterior = ReverseKernel(SCHEDULE, 60, 30), MIXTURE(noisy_images(MIXTURE, 60, 2), 60)
    with pytest.raises(InputError, match=r"covariance\.prepare\(denoiser\)"):
        dv.Lanczos(table())(posterior, kernel)
    with pytest.raises(InputError, match="needs a posterior"):
        dv.Lanczos(table())(None, kernel)
    with pytest.raises(InputError, match="Scaled changes variances, but lanczos-3 is known by products alone"):
        dv.Scaled(dv.Lanczos(table()), 2.0)


def test_where_the_step_s_own_noise_is_nearly_all_there_is_it_says_so() -> None:
    levels = [SCHEDULE.level(n) for n in (100, 99)]
    with pytest.warns(DiffusionVarWarning, match=r"λ² is more than 99% of the noise of every step"):
        dv.Sampler(MIXTURE, dv.Lanczos(table()), levels, 1.0)
    dv.Sampler(MIXTURE, dv.Lanczos(table()), levels, 0.0)


def test_what_processes_counted_adds_up() -> None:
    one, other = dv.Lanczos(table(), 2), dv.Lanczos(table(), 2)
    posterior, _ = crooked(5)
    for covariance in (one, other):
        covariance(posterior, ReverseKernel(SCHEDULE, 60, 30)).colour(noise(5, *SHAPE))
    before = one.cut
    one.add_counts(other.counts())
    assert one.cut == (2 * before[0], 2 * before[1])


def test_identities_tell_the_choices_apart() -> None:
    made: list[dv.Lanczos] = [dv.Lanczos(), dv.Lanczos(table()), dv.Lanczos(steps=1), dv.Lanczos(clamp=False)]
    made += [dv.Lanczos(derivative="difference"), dv.Lanczos(probes=1), dv.Lanczos(seed=1)]
    assert len({str(covariance.identity()) for covariance in made}) == len(made)
    assert [one.products for one in made] == [3, 3, 1, 3, 3, 3, 3]
    assert made[0].name == "lanczos-3, no table"
