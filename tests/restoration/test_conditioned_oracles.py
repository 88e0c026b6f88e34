"""E[x_0|x_t, y] where it is known: Gaussian data, by the joint precision of x_t and y; and the published formulas."""

from typing import Any

import numpy as np
import pytest
import torch
from measurements import (
    OPERATORS,
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
from naive_restoration import (
    gaussian_given_both,
    naive_step_length,
    naive_type_1,
    naive_type_2,
    peng_blur_2,
    peng_blur_v,
    peng_inpainting_2,
    peng_inpainting_v,
    peng_super_resolution_v,
    tmpd_mean,
)

import diffusion_var as dv
from diffusion_var.process.structure import Isotropic, Pixel, make_structure
from diffusion_var.restoration import ConjugateGradients

STRUCTURES = ("isotropic", "channel", "pixel", "dct")
TIGHT = ConjugateGradients(1e-12, 500)
LEVELS = (1, 300, 1000)


def noisy(images: torch.Tensor, n: int, seed: int = 9) -> torch.Tensor:
    alpha, sigma = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    return alpha * images + sigma * normal(*images.shape, seed=seed)


def largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def mean_given_both(mean: Any, prior: Any, n: int, x_t: Any, matrix: Any, R: Any, y: Any) -> Any:
    """E[x_0|x_t, y] of one image, (d,), of data of this mean and prior covariance."""
    mean_0, x, of_y = (np.asarray(array).ravel() for array in (mean, x_t, y))
    level = SCHEDULE.alpha[n], SCHEDULE.sigma[n]
    return gaussian_given_both(mean_0, prior, *level, x, matrix, R, of_y)[0]


# ---- Gaussian data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["I", "II"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", STRUCTURES)
def test_gaussian_data_of_every_structure(name: str, operator: str, guidance: Any) -> None:
    """With the exact covariance both types are the mean given x_t and y, in closed form and by conjugate gradients."""
    model, covariance = gaussian(name)
    images, A = model.sample(3, seed=1).double(), OPERATORS[operator]
    measurement, matrix = measured(A, images), matrix_of(A)
    R, prior = 0.1**2 * np.eye(len(matrix)), dense(covariance.structure, covariance.data_variance)
    for solver in ("auto", TIGHT):
        conditioned = dv.ConditionedDenoiser(model, covariance, measurement, guidance, solver)
        for n in LEVELS:
            x_t = noisy(images, n)
            posterior = conditioned(x_t, n)
            for i in range(3):
                expected = mean_given_both(model.mean, prior, n, x_t[i], matrix, R, measurement.y[i])
                # "auto" may be conjugate gradients to their usual tolerance.
                close = 1e-9 if solver is TIGHT or conditioned.counts()[3] == 0 else 1e-3
                assert largest(posterior.mean[i].flatten(), expected) < close, (n, solver)
            again = SCHEDULE.alpha[n] * posterior.mean + SCHEDULE.sigma[n] * posterior.eps
            assert largest(again, x_t) < 1e-12
    assert largest(posterior.mean, model(x_t, n).mean) > 0.01  # the measurement says something


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_in_float32(guidance: Any) -> None:
    """What samplers do: float32, and the tolerance that is usual."""
    model, covariance = gaussian("dct")
    images = model.sample(3, seed=1)
    for operator in OPERATORS.values():
        measurement = measured(operator, images)
        exact = measured(operator, images.double())
        exact.y = measurement.y.double()
        for n in LEVELS:
            x_t = noisy(images.double(), n).float()
            expected = dv.ConditionedDenoiser(model, covariance, exact, guidance, TIGHT)(x_t.double(), n)
            solver = ConjugateGradients(1e-6)
            found = dv.ConditionedDenoiser(model, covariance, measurement, guidance, solver)(x_t, n)
            assert found.mean.dtype == found.eps.dtype == torch.float32
            assert largest(found.mean, expected.mean) < 1e-5


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_a_mixture_where_one_component_is_certain(guidance: Any) -> None:
    """Σ is then that component's own dense matrix, another for each image."""
    rng = np.random.default_rng(0)
    d, shape = 12, (1, 3, 4)
    roots = rng.standard_normal((2, d, d)) / np.sqrt(d)
    covariances = roots @ roots.transpose(0, 2, 1) + 0.01 * np.eye(d)
    means = np.stack([np.full(shape, -20.0), np.full(shape, 20.0)])
    mixture = dv.oracles.MixtureDenoiser(SCHEDULE, means, covariances=covariances)
    which = [0, 1, 1, 0]
    images = torch.stack(
        [
            torch.from_numpy(means[j] + (np.linalg.cholesky(covariances[j]) @ rng.standard_normal(d)).reshape(shape))
            for j in which
        ]
    )
    matrix = rng.standard_normal((5, d))
    measurement = measured(lambda x: x.flatten(1) @ torch.from_numpy(matrix.T).to(x), images)
    conditioned = dv.ConditionedDenoiser(mixture, dv.ExactCovariance(mixture), measurement, guidance, TIGHT)
    for n in (1, 300, 500):
        x_t = noisy(images, n)
        found = conditioned(x_t, n).mean
        for i, j in enumerate(which):
            expected = mean_given_both(
                means[j].ravel(), covariances[j], n, x_t[i], matrix, 0.01 * np.eye(5), measurement.y[i].numpy()
            )
            assert largest(found[i].flatten(), expected) < 1e-7


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_photographs(guidance: Any) -> None:
    """The dense Gaussian of 8 × 8 patches of colour, whose condition is above 10⁴, from one measurement in four."""
    pytest.importorskip("sklearn")
    model = dv.oracles.fit_mixture(dv.data.open_images("photographs:fit:8")[::10], 1)
    mean, prior = model.moments()
    assert np.linalg.cond(prior) > 1e4
    images = model.sample(3, seed=1).double()
    measurement = measured(halved, images, 0.02)
    conditioned = dv.ConditionedDenoiser(
        model, dv.ExactCovariance(model), measurement, guidance, ConjugateGradients(1e-7)
    )
    matrix = matrix_of(halved, (3, 8, 8))
    for n in LEVELS:
        x_t = noisy(images, n)
        found = conditioned(x_t, n).mean
        for i in range(3):
            expected = mean_given_both(mean, prior, n, x_t[i], matrix, 0.02**2 * np.eye(len(matrix)), measurement.y[i])
            assert largest(found[i].flatten(), expected) < 1e-5
    assert conditioned.counts()[1:3] == [0, 0]


def test_noise_with_variances_and_with_a_structure() -> None:
    """R need not be white: a variance for each element, or a covariance of y in the dct basis."""
    model, covariance = gaussian("pixel")
    images = model.sample(2, seed=1).double()
    prior = dense(covariance.structure, covariance.data_variance)
    structure, n = make_structure("dct", SHAPE), 300
    variance = torch.exp(normal(*SHAPE, seed=2) - 3.0)
    own = dv.StructuredCovariance(structure, variance)
    for operator in (masked(), circular_blur):
        clean, matrix = operator(images), matrix_of(operator)
        y, x_t = clean + 0.2 * normal(*clean.shape), noisy(images, n)
        for noise, R in ((variance, np.diag(variance.flatten().numpy())), (own, dense(structure, variance))):
            if noise is own and operator is not circular_blur:
                continue  # a mask's unseen elements have no noise that others know of
            measurement = dv.Measurement(y, operator, noise=noise)
            for guidance in ("I", "II"):
                found = dv.ConditionedDenoiser(model, covariance, measurement, guidance, TIGHT)(x_t, n).mean
                for i in range(2):
                    expected = mean_given_both(model.mean, prior, n, x_t[i], matrix, R, y[i])
                    assert largest(found[i].flatten(), expected) < 1e-9


def test_what_an_unseen_element_holds_makes_no_difference() -> None:
    model, covariance = gaussian("dct")
    images, A = model.sample(2, seed=1).double(), masked()
    measurement = measured(A, images)
    unseen = A(torch.ones_like(images)) == 0
    assert bool(unseen.any())
    other = dv.Measurement(torch.where(unseen, 7.0, measurement.y), A, noise=0.1)
    x_t = noisy(images, 300)
    both = [dv.ConditionedDenoiser(model, covariance, m) for m in (measurement, other)]
    assert torch.equal(both[0](x_t, 300).mean, both[1](x_t, 300).mean)
    assert torch.equal(both[0].residual(x_t, 300), both[1].residual(x_t, 300))
    assert torch.equal(both[0].log_likelihood(x_t, 300), both[1].log_likelihood(x_t, 300))


# ---- how well it explains the measurement ----------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["rows", "mask", "mirrored"])
def test_residual_and_log_likelihood(operator: str) -> None:
    """rᵀ S⁻¹ r over the elements that are seen, and the normal density that it belongs to."""
    model, covariance = gaussian("dct")
    images, A = model.sample(4, seed=1).double(), OPERATORS[operator]
    measurement, matrix = measured(A, images), matrix_of(A)
    rows = np.abs(matrix).max(1) > 0
    conditioned = dv.ConditionedDenoiser(model, covariance, measurement, solver=TIGHT)
    for n in LEVELS:
        x_t = noisy(images, n)
        sigma_0 = dense(covariance.structure, model.posterior_variance(n))
        S = (matrix @ sigma_0 @ matrix.T + 0.01 * np.eye(len(matrix)))[np.ix_(rows, rows)]
        r = (measurement.y - A(model(x_t, n).mean)).flatten(1).numpy()[:, rows]
        quadratic = np.einsum("bi,bi->b", r, np.linalg.solve(S, r.T).T)
        found, density = conditioned.residual(x_t, n), conditioned.log_likelihood(x_t, n)
        assert found.dtype == density.dtype == torch.float64
        assert largest(found, quadratic / rows.sum()) < 1e-9
        log_det = np.linalg.slogdet(2 * np.pi * S)[1]
        assert largest(density, -0.5 * (quadratic + log_det)) < 1e-7


def test_the_residual_is_1_where_the_covariance_is_right() -> None:
    """Its mean over x_t ~ q(x_t|x_0) of images and measurements; half the covariance leaves more than it explains."""
    model, covariance = gaussian("dct")
    images = model.sample(400, seed=1).double()
    measurement = measured(OPERATORS["means"], images)
    for n in LEVELS:
        x_t = noisy(images, n)
        right = dv.ConditionedDenoiser(model, covariance, measurement).residual(x_t, n)
        error = float(right.std()) / 20.0
        assert abs(float(right.mean()) - 1.0) < 4.0 * error
        if n > 1:  # where x_0 is as good as known, the noise of y is all there is
            half = dv.ConditionedDenoiser(model, dv.Scaled(covariance, 0.5), measurement).residual(x_t, n)
            assert float(half.mean()) > 1.0 + 10.0 * error


# ---- the plain and the published formulas, on a model that is not Gaussian -------------------------------------------

EDM = dv.NoiseSchedule.edm(40)
IMAGE = (1, 4, 6)
MIXTURE = dv.oracles.MixtureDenoiser(EDM, normal(5, *IMAGE, seed=1), 0.2)


def jacobian(model: dv.Denoiser, x_t: torch.Tensor, n: int) -> np.ndarray:
    """∂x̂_0/∂x_t of one image."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return model(x.view(1, *IMAGE), n).mean.flatten()

    return torch.autograd.functional.jacobian(mean, x_t.flatten()).numpy()


def case(schedule: dv.NoiseSchedule, n: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    images = MIXTURE.sample(count, seed=3).double()
    return images, schedule.alpha[n] * images + schedule.sigma[n] * normal(*images.shape, seed=4)


@pytest.mark.parametrize("operator", ["rows", "means", "circular"])
@pytest.mark.parametrize("n", [100, 400])
def test_the_plain_formulas(n: int, operator: str) -> None:
    """Dense matrices, an imperfect covariance in the dct basis, and α below 1."""
    model = dv.oracles.MixtureDenoiser(SCHEDULE, normal(5, *IMAGE, seed=1), 0.2)
    images, x_t = case(SCHEDULE, n)
    if operator == "rows":
        weights = normal(7, 24, seed=6)
        A: Any = lambda x: x.flatten(1) @ weights.T.to(x)  # noqa: E731
    else:
        A = OPERATORS[operator]
    measurement, matrix = measured(A, images, 0.3), matrix_of(A, IMAGE)
    structure = make_structure("dct", IMAGE)
    variance = torch.exp(normal(*IMAGE, seed=8) - 1.0)
    sigma_0, R = dense(structure, variance), 0.09 * np.eye(len(matrix))
    known = Constant(structure, variance)
    types = {g: dv.ConditionedDenoiser(model, known, measurement, g, TIGHT, damped=False) for g in ("I", "II")}
    damped = dv.ConditionedDenoiser(model, known, measurement, "I", TIGHT)
    for i in range(2):
        mean, y = model(x_t, n).mean[i].flatten().numpy(), measurement.y[i].flatten().numpy()
        J = jacobian(model, x_t[i], n)
        one = naive_type_1(mean, J, SCHEDULE.alpha[n], SCHEDULE.sigma[n], sigma_0, matrix, R, y)
        two = naive_type_2(mean, sigma_0, matrix, R, y)
        assert largest(types["I"](x_t, n).mean[i].flatten(), one) < 1e-9
        assert largest(types["II"](x_t, n).mean[i].flatten(), two) < 1e-9
        f = naive_step_length(mean, J, SCHEDULE.alpha[n], SCHEDULE.sigma[n], sigma_0, matrix, R, y)
        assert largest(damped(x_t, n).mean[i].flatten(), mean + f * (one - mean)) < 1e-9
        assert largest(one, two) > 1e-2


@pytest.mark.parametrize("measurement_of", ["inpainting", "blur", "super-resolution"])
def test_peng(measurement_of: str) -> None:
    """With one variance for all, type I and II are arXiv:2402.02149's own closed forms."""
    n, std, r2 = 25, 0.2, 0.3
    sigma = EDM.sigma[n]
    images, x_t = case(EDM, n)
    kernel = np.zeros(IMAGE[1:])
    kernel[0, 0], kernel[0, 1], kernel[-1, 0], kernel[0, -2] = 0.5, 0.2, 0.2, 0.1
    mask = (np.random.default_rng(1).uniform(size=IMAGE[1:]) < 0.6).astype(float)
    spectrum = torch.from_numpy(np.fft.fft2(kernel))

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(spectrum.to(torch.complex128) * torch.fft.fft2(x.double())).real.to(x)

    operators: dict[str, Any] = {
        "inpainting": lambda x: x * torch.from_numpy(mask).to(x),
        "blur": blur,
        "super-resolution": lambda x: blur(x)[..., ::2, ::2],
    }
    measurement = measured(operators[measurement_of], images, std)
    covariance = Constant(Isotropic(IMAGE), torch.tensor(r2, dtype=torch.float64))
    types = {g: dv.ConditionedDenoiser(MIXTURE, covariance, measurement, g, TIGHT, damped=False) for g in ("I", "II")}
    for i in range(2):
        mean, y = MIXTURE(x_t, n).mean[i, 0].numpy(), measurement.y[i, 0].numpy()
        if measurement_of == "inpainting":
            v, two = peng_inpainting_v(mean, r2, mask, y, std), peng_inpainting_2(mean, r2, mask, y, std)
        elif measurement_of == "blur":
            v, two = peng_blur_v(mean, r2, kernel, y, std), peng_blur_2(mean, r2, kernel, y, std)
        else:
            v = peng_super_resolution_v(mean, r2, kernel, 2, y, std)
            two = mean + r2 * v
        one = mean.ravel() + sigma**2 * jacobian(MIXTURE, x_t[i], n).T @ v.ravel()
        assert largest(types["I"](x_t, n).mean[i].flatten(), one) < 1e-9
        assert largest(types["II"](x_t, n).mean[i, 0], two) < 1e-9
        assert largest(one, two.ravel()) > 1e-2


def test_tmpd() -> None:
    """arXiv:2310.06721's row sums are a pixel covariance, of each image's own, where A keeps some pixels."""
    n = 19
    images, x_t = case(EDM, n, count=3)
    kept = torch.arange(0, 24, 2)

    def A(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, kept]

    measurement, matrix = measured(A, images, 0.2), matrix_of(A, IMAGE)
    alpha, sigma = EDM.alpha[n], EDM.sigma[n]
    sums = torch.stack(
        [torch.from_numpy(sigma**2 / alpha * jacobian(MIXTURE, x, n).T @ matrix.T @ np.ones(len(matrix))) for x in x_t]
    )
    assert float(sums[:, kept].min()) > 0.0
    assert float(sums[:, kept].std()) > 0.04
    covariance = Constant(Pixel(IMAGE), sums.view(3, *IMAGE).clamp_min(0.0))
    found = dv.ConditionedDenoiser(MIXTURE, covariance, measurement, "I", TIGHT, damped=False)(x_t, n).mean
    for i in range(3):
        expected = tmpd_mean(
            lambda x: MIXTURE(x.view(1, *IMAGE), n).mean.flatten(),
            x_t[i].flatten().numpy(),
            alpha,
            sigma,
            matrix,
            measurement.y[i].numpy(),
            0.2,
        )
        assert largest(found[i].flatten(), expected) < 1e-9
