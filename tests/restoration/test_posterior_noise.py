"""Noise of conditioned steps: its covariance, and that with it a sampler draws from the exact posterior of Gaussian
data at any number of steps, which with a constant guess of the covariance it does not."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from measurements import (
    SCHEDULE,
    SHAPE,
    Constant,
    circular_blur,
    dense,
    gaussian,
    halved,
    masked,
    matrix_of,
    measured,
    normal,
)
from naive_restoration import gaussian_given_both

import diffusion_var as dv
from diffusion_var.errors import InputError
from diffusion_var.process.structure import make_structure
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.sampling.noise import ImageNoise

TIGHT = ConjugateGradients(1e-12, 500)
MASK = masked((1, 4, 4))


#: Small, for thousands of samples.
IMAGE = (1, 4, 4)
COUNT = 4000


def exact(base: Any, known: Any, operator: Any, y: torch.Tensor, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_0 given y alone."""
    matrix, mean = matrix_of(operator, IMAGE), base.mean.flatten().numpy()
    prior, R = dense(known.structure, known.data_variance), std**2 * np.eye(len(matrix))
    return gaussian_given_both(mean, prior, 1.0, None, None, matrix, R, y.flatten().numpy())


def scores(samples: torch.Tensor, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """The largest error of the samples' means and of their covariances, in standard errors."""
    flat, count, diagonal = samples.double().flatten(1), len(samples), covariance.diagonal()
    of_mean = np.abs(flat.mean(0).numpy() - mean) / np.sqrt(diagonal / count)
    error = np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / count)
    return float(of_mean.max()), float((np.abs(np.cov(flat.numpy().T) - covariance) / error).max())


@cache
def case(name: str, operator: Any, std: float = 0.1) -> Any:
    """Gaussian data, their covariance, a measurement of one image, and the exact posterior's moments."""
    base, known = gaussian(name, IMAGE)
    measurement = measured(operator, base.sample(1, seed=1), std)
    return base, known, measurement, exact(base, known, operator, measurement.y, std)


def drawn(den: dv.ConditionedDenoiser, noise: Any, K: int, eta: float = 1.0) -> torch.Tensor:
    return dv.Sampler(den, noise, K, eta=eta).sample(COUNT, seed=2, batch_size=COUNT)


@pytest.mark.parametrize("K", [2, 5, 20])
@pytest.mark.parametrize("guidance", ["I", "II"])
@pytest.mark.parametrize(("name", "operator"), [("dct", halved), ("pixel", circular_blur), ("isotropic", MASK)])
def test_samples_have_the_exact_posteriors_moments(name: str, operator: Any, guidance: Any, K: int) -> None:
    base, known, measurement, expected = case(name, operator)
    den = dv.ConditionedDenoiser(base, known, measurement, guidance)
    assert max(scores(drawn(den, den.posterior_noise(), K), *expected)) < 4.0
    assert den.counts()[1:3] == [0, 0]


@pytest.mark.parametrize("K", [2, 5, 20])
@pytest.mark.parametrize("guidance", ["I", "II"])
def test_with_a_constant_they_do_not(guidance: Any, K: int) -> None:
    base, _, measurement, expected = case("dct", halved)
    den = dv.ConditionedDenoiser(base, dv.PiGDM(), measurement, guidance)
    assert max(scores(drawn(den, den.posterior_noise(), K), *expected)) > 10.0


def test_without_the_measurements_share_they_do_not() -> None:
    """Noise of Cov[x_0|x_t], which the measurement has narrowed: too much of it."""
    base, known, measurement, expected = case("dct", halved)
    den = dv.ConditionedDenoiser(base, known, measurement)
    assert scores(drawn(den, known, 5), *expected)[1] > 10.0


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_for_every_forward_process(eta: float) -> None:
    base, known, measurement, expected = case("dct", halved)
    den = dv.ConditionedDenoiser(base, known, measurement)
    assert max(scores(drawn(den, den.posterior_noise(), 5, eta), *expected)) < 4.0


# ---- one step's noise ------------------------------------------------------------------------------------------------


def step_noise(noise: Any = 0.2) -> tuple[Any, Any, np.ndarray]:
    """The noise of a step of 2 images, its kernel, and λ² I + γ² Cov[x_0|x_t, y] as a matrix."""
    base, known = gaussian("dct")
    clean = halved(base.sample(2, seed=1).double())
    den = dv.ConditionedDenoiser(base, known, dv.Measurement(clean, halved, noise=noise), solver=TIGHT)
    kernel = dv.ReverseKernel(SCHEDULE, 400, 200)
    found = den.posterior_noise()(den(normal(2, *SHAPE), 400), kernel)
    A, own = matrix_of(halved), dense(known.structure, base.posterior_variance(400))
    if isinstance(noise, float):
        R = noise**2 * np.eye(len(A))
    elif isinstance(noise, torch.Tensor):
        R = np.diag(noise.flatten().numpy())
    else:
        R = dense(noise.structure, noise.variance)
    left = own - own @ A.T @ np.linalg.solve(A @ own @ A.T + R, A @ own)
    return found, kernel, kernel.lambda2 * np.eye(72) + kernel.gain**2 * left


Y = (3, 2, 3)
EACH = torch.exp(normal(*Y, seed=3) - 2.0)


@pytest.mark.parametrize("noise", [0.2, EACH, dv.StructuredCovariance(make_structure("dct", Y), EACH)])
def test_its_products_and_its_draws_have_the_covariance(noise: Any) -> None:
    found, _, expected = step_noise(noise)
    rows = found.matvec(torch.eye(72, dtype=torch.float64).view(72, *SHAPE)).flatten(1).numpy()
    assert np.abs(rows - expected).max() < 1e-9
    source = ImageNoise(0, range(4000), SHAPE, torch.device("cpu"))
    # Of the largest of 2,628 standard normal numbers 3.6 is usual.
    assert max(scores(found.draw(source), np.zeros(72), expected)) < 5.0


def test_draws_are_of_the_images_whatever_the_batch() -> None:
    found, _, _ = step_noise()

    def draw(images: list[int]) -> torch.Tensor:
        source = ImageNoise(0, images, SHAPE, torch.device("cpu"))
        found.draw(source)
        return found.draw(source)

    together = draw([3, 4, 5, 6])
    assert float((torch.cat([draw([3, 4]), draw([5, 6])]) - together).abs().max()) < 1e-6
    assert float((together[0] - together[1]).abs().max()) > 0.1


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_it_does_not_have_is_said() -> None:
    found, _, _ = step_noise()
    x = normal(2, *SHAPE)
    for call in (found.colour, found.solve, found.quadratic):
        with pytest.raises(InputError, match="is drawn, and has no root, inverse or determinant here"):
            call(x)
    for call in (found.log_det, found.inverse_trace, lambda: found.capped(1.0)):
        with pytest.raises(InputError, match="leave the cap out"):
            call()


def test_it_belongs_to_one_denoiser() -> None:
    base, known, measurement, _ = case("dct", halved)
    den = dv.ConditionedDenoiser(base, known, measurement)
    other = dv.ConditionedDenoiser(base, known, measurement)
    for wrong in (base, other):
        with pytest.raises(InputError, match="is of one conditioned denoiser's steps, but the sampler has another"):
            dv.Sampler(wrong, den.posterior_noise(), 5)
    with pytest.raises(InputError, match="leave the cap out"):
        dv.Sampler(den, den.posterior_noise(), 5, final_noise_cap=1.0).sample(2)
    assert "given y" in den.posterior_noise().name
    with pytest.raises(InputError, match="bound is about"):
        dv.density_bound(den, den.posterior_noise(), base.sample(2), steps=5)


def test_of_a_jacobian_and_through_a_decoder_there_is_none() -> None:
    base, known = gaussian("dct")
    y = halved(base.sample(1))
    through = dv.Measurement(y, halved, through=lambda z: 2.0 * z)
    for den in (
        dv.ConditionedDenoiser(base, dv.NetworkJacobian(), dv.Measurement(y, halved)),
        dv.ConditionedDenoiser(base, known, through),
    ):
        with pytest.raises(InputError, match=r"neither|not the network's Jacobian, nor one through a decoder; take"):
            den.posterior_noise()


def test_of_a_covariance_by_eps_there_is_none() -> None:
    """It would see the conditioned ε̂ there, and the model's own in the mean."""
    base, _, measurement, _ = case("dct", halved)
    for covariance in (dv.EpsSquare(), dv.Scaled(dv.EpsSquare(), 2.0)):
        den = dv.ConditionedDenoiser(base, covariance, measurement, "II")
        with pytest.raises(InputError, match=r"eps-square would take it for the model's own; take dv\.Analytic"):
            den.posterior_noise()
    assert "given y" in dv.ConditionedDenoiser(base, dv.Scaled(dv.PiGDM(), 2.0), measurement).posterior_noise().name


def test_solves_for_the_noise_are_counted() -> None:
    """One a step that adds noise, beside that of the mean: what did not converge there is no less wrong."""
    base, _ = gaussian("dct")
    covariance = Constant(make_structure("dct", SHAPE), torch.exp(normal(*SHAPE, seed=8)))
    measurement = measured(halved, base.sample(1, seed=1), 0.01)
    den = dv.ConditionedDenoiser(base, covariance, measurement, "II", ConjugateGradients(1e-9, 2))
    with pytest.warns(UserWarning, match="of 15 solves of S u = r, 15 did not reach"):
        dv.Sampler(den, den.posterior_noise(), [1, 300, 1000], eta=1.0).sample(3, batch_size=3)
