"""The exact covariance of mixtures: its contract, the dense matrix, and the likelihood bound that it tightens."""

from typing import Any

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var import InputError, NoiseSchedule
from diffusion_var.models.oracles import GaussianDenoiser, MixtureDenoiser
from diffusion_var.process.kernel import ReverseKernel
from diffusion_var.process.structure import make_structure
from diffusion_var.testing import CovarianceContract

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.1)
SHAPE, D, COUNT = (3, 2, 2), 12, 3
GENERATOR = np.random.default_rng(0)
ROOTS = GENERATOR.standard_normal((COUNT, D, D)) * np.array([0.2, 0.05, 0.3])[:, None, None]
MIXTURE = MixtureDenoiser(
    SCHEDULE,
    0.7 * GENERATOR.standard_normal((COUNT, *SHAPE)),
    weights=[1, 2, 1],
    covariances=ROOTS @ ROOTS.transpose(0, 2, 1) + 1e-3 * np.eye(D),
)
STRUCTURES = ["full", "isotropic", "channel", "pixel", "dct"]


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
class TestExactCovariance(CovarianceContract):
    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return MIXTURE

    @pytest.fixture
    def covariance(self, structure: str, per_image: bool) -> dv.ExactCovariance:
        return dv.ExactCovariance(MIXTURE, structure, per_image=per_image, draws=64)


def posterior_at(n: int, count: int = 5) -> tuple[torch.Tensor, Any]:
    noise = torch.from_numpy(np.random.default_rng(n).standard_normal((count, *SHAPE)))
    x_t = float(SCHEDULE.alpha[n]) * MIXTURE.sample(count, seed=n).double() + float(SCHEDULE.sigma[n]) * noise
    return x_t, MIXTURE(x_t, n)


def dense(covariance: Any, i: int, count: int) -> torch.Tensor:
    """Σ of image i as a matrix, from what it does to unit images."""
    units = torch.eye(D, dtype=torch.float64).view(D, 1, *SHAPE).expand(D, count, *SHAPE)
    return torch.stack([covariance.matvec(unit)[i].flatten() for unit in units])


@pytest.mark.parametrize("n", [2, 40, 100])
def test_full_is_the_optimal_covariance_of_every_image(n: int) -> None:
    """λ² I + γ² Cov[x_0|x_t], also where one component is certain (n = 2) and its own basis serves."""
    x_t, posterior = posterior_at(n)
    kernel = ReverseKernel(SCHEDULE, n, n // 2)
    found = dv.ExactCovariance(MIXTURE)(posterior, kernel)
    expected = kernel.lambda2 * torch.eye(D, dtype=torch.float64) + kernel.gain**2 * MIXTURE.posterior_covariance(
        x_t, n
    )
    for i in range(len(x_t)):
        torch.testing.assert_close(dense(found, i, 5), expected[i], rtol=1e-8, atol=1e-11)
    certain = MIXTURE.responsibilities(x_t, kernel.alpha_t, kernel.sigma_t).amax(1) > 1 - 1e-14
    assert bool(certain.all()) == (n == 2)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_averages_are_of_many_images(structure: str) -> None:
    count, n = 4000, 60
    _, posterior = posterior_at(n, count)
    kernel = ReverseKernel(SCHEDULE, n, 30)
    whole = dv.ExactCovariance(MIXTURE, structure, per_image=False, draws=count)(None, kernel)
    expected = MIXTURE.mean_posterior_covariance(n, count)
    if structure == "full":
        matrix = dense(whole, 0, 1)
        optimal = kernel.lambda2 * torch.eye(D, dtype=torch.float64) + kernel.gain**2 * expected
        torch.testing.assert_close(matrix, optimal, rtol=1e-5, atol=1e-7)
        return
    each = dv.ExactCovariance(MIXTURE, structure)(posterior, kernel).variance
    assert each.shape[0] == count
    spread = (each.std(0) / count**0.5).view(whole.variance.shape)
    mean = each.mean(0).view(whole.variance.shape)
    assert bool(((whole.variance - mean).abs() < 5 * spread).all())
    known = make_structure(structure, SHAPE)
    assert tuple(whole.variance.shape) == known.variance_shape


def test_the_average_is_what_a_table_measures() -> None:
    table = dv.estimate(MIXTURE, MIXTURE.sample(20_000, seed=1), 0.01, indices=[60], progress=False)
    kernel = ReverseKernel(SCHEDULE, 60, 30)
    exact = dv.ExactCovariance(MIXTURE, "isotropic", per_image=False)(None, kernel).variance
    analytic = dv.Analytic(table)(None, kernel).variance
    assert float(exact) == pytest.approx(float(analytic), rel=0.05)


def mean_bound(covariance: dv.ReverseCovariance, steps: int) -> tuple[float, float]:
    """Bound less exact value in bits/dim, and its standard error over images of the mixture's own."""
    images = MIXTURE.sample(400, seed=21)
    bound = dv.density_bound(MIXTURE, covariance, images, steps, decoder_variance="covariance", batch_size=400)
    return float(bound) - float(MIXTURE.density_bits(images).mean()), bound.standard_error


def test_the_bound_of_every_image_s_own_covariance_falls_to_the_exact_density() -> None:
    """From above at every K; and each structure that knows more is tighter."""
    gaps = [mean_bound(dv.ExactCovariance(MIXTURE), steps) for steps in (3, 10, 40)]
    assert all(gap > -0.02 for gap, _ in gaps)
    assert gaps[0][0] > gaps[1][0] > gaps[2][0] - 0.02
    assert abs(gaps[2][0]) < 0.03
    averaged = [mean_bound(dv.ExactCovariance(MIXTURE, s, per_image=False), 3)[0] for s in ("full", "dct", "isotropic")]
    assert gaps[0][0] < averaged[0] < averaged[1] < averaged[2]


def test_of_one_gaussian_the_bound_is_exact_at_every_number_of_steps() -> None:
    """The model's joint is then the forward one, so that only the prior's mismatch at N is left."""
    one = MixtureDenoiser(SCHEDULE, np.zeros((1, *SHAPE)), covariances=ROOTS[:1] @ ROOTS[:1].transpose(0, 2, 1))
    images = one.sample(2000, seed=2)
    for steps in (1, 3, 20):
        how = {"decoder_variance": "covariance", "batch_size": 2000}
        bound = dv.density_bound(one, dv.ExactCovariance(one), images, steps, **how)
        assert float(bound) == pytest.approx(float(one.density_bits(images).mean()), abs=0.02)


def test_another_model_and_what_is_no_mixture_are_refused() -> None:
    other = MixtureDenoiser(SCHEDULE, np.zeros((1, *SHAPE)), 0.1)
    with pytest.raises(InputError, match="the denoiser is another model"):
        dv.Sampler(other, dv.ExactCovariance(MIXTURE), steps=5)
    with pytest.raises(InputError, match=r"mixture must be a dv\.oracles\.MixtureDenoiser"):
        dv.ExactCovariance(GaussianDenoiser(SCHEDULE, 0.0, np.ones(SHAPE)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="structure='diagonal' is not known"):
        dv.ExactCovariance(MIXTURE, "diagonal")
    with pytest.raises(InputError, match="follows the image"):
        dv.ExactCovariance(MIXTURE)(None, ReverseKernel(SCHEDULE, 60, 30))


def test_identities_tell_the_choices_apart() -> None:
    made = [dv.ExactCovariance(MIXTURE, s, per_image=p) for s in STRUCTURES for p in (True, False)]
    made.append(dv.ExactCovariance(MIXTURE, per_image=False, seed=1))
    assert len({str(covariance.identity()) for covariance in made}) == len(made)
