"""The bound where its value is known: Gaussian data.

With the exact covariance and η = 1 the model is the data's own distribution, up to x_N: at every number of steps the
bound is the entropy and KL(q(x_N) ‖ p(x_N)), not a bit more. For other covariances and η each term's
expectation is a formula.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_bounds import (
    SCHEDULE,
    SHAPE,
    Told,
    bound_terms,
    entropy_nats,
    exact_images,
    gaussian,
    in_bits,
    marginal_prior_nats,
    optimum,
)
from naive import naive_bits_per_dim
from small_likelihoods import measured, pictures, small_denoiser
from torch.distributions import Independent, Normal

import diffusion_var as dv
from diffusion_var.process.structure import make_structure

UNEVEN = [3, 4, 90, 91, 400, 870, 1000]
STEPS = {"1": 1, "2": 2, "5": 5, "10": 10, "uneven": UNEVEN, "one low": [250], "not to N": [10, 200, 700]}


def within(found: float, expected: float, error: float, most: float) -> None:
    """4 standard errors, themselves small enough for the test to mean something."""
    assert 0 < error < most
    assert abs(found - expected) < 4 * error


# ---- entropy + KL -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_exact_covariance_loses_nothing_at_any_number_of_steps(basis: str, steps: Any) -> None:
    denoiser = gaussian(basis)
    covariance = Told(denoiser.structure, optimum(denoiser))
    images = exact_images(denoiser, 2000)
    found = dv.density_bound(
        denoiser, covariance, images, steps, seed=1, decoder_variance="covariance", draws=2, batch_size=2000
    )
    expected = in_bits(entropy_nats() + marginal_prior_nats(denoiser, found.steps[-1]))
    within(found.value, expected, found.noise_error, 0.006)


@pytest.mark.parametrize(("steps", "step_samples", "images", "most"), [(300, None, 100, 0.04), (100, 30, 400, 0.1)])
def test_many_steps(steps: int, step_samples: int | None, images: int, most: float) -> None:
    denoiser = gaussian("dct")
    found = dv.density_bound(
        denoiser,
        Told(denoiser.structure, optimum(denoiser)),
        exact_images(denoiser, images),
        steps,
        seed=1,
        decoder_variance="covariance",
        draws=2,
        batch_size=images,
        step_samples=step_samples,
    )
    assert len(found.per_step) == steps + 1
    expected = in_bits(entropy_nats() + marginal_prior_nats(denoiser, 1000))
    within(found.value, expected, found.noise_error, most)


def test_images_drawn_from_the_distribution() -> None:
    """Not whitened: the images' own spread is then part of the error, and `standard_error` knows it."""
    denoiser = gaussian("dct")
    covariance = Told(denoiser.structure, optimum(denoiser))
    found = dv.density_bound(
        denoiser, covariance, denoiser.sample(3000, seed=5), 3, decoder_variance="covariance", batch_size=1000
    )
    expected = in_bits(entropy_nats() + marginal_prior_nats(denoiser, 1000))
    within(found.value, expected, found.standard_error, 0.008)


def test_a_measured_table_is_nearly_exact() -> None:
    denoiser = gaussian("dct")
    steps = [5, 300, 1000]
    table = dv.estimate(denoiser, exact_images(denoiser, 500), 0.01, indices=steps, structures=("dct",), progress=False)
    options: dict[str, Any] = {"decoder_variance": "covariance", "batch_size": 600}
    found, exact = (
        dv.density_bound(denoiser, covariance, exact_images(denoiser, 600, seed=4), steps, **options).value
        for covariance in (dv.Analytic(table, structure="dct"), Told(denoiser.structure, optimum(denoiser)))
    )
    assert abs(found - exact) < 2e-3


@pytest.mark.parametrize("schedule", [dv.NoiseSchedule.edm(30), dv.NoiseSchedule.flow(30)], ids=["edm", "flow"])
@pytest.mark.parametrize("steps", [[25], [1, 9, 20, 30]], ids=len)
def test_other_schedules_lose_nothing_either(schedule: dv.NoiseSchedule, steps: list[int]) -> None:
    denoiser = gaussian("dct", schedule)
    covariance = Told(denoiser.structure, optimum(denoiser))
    found = dv.density_bound(
        denoiser,
        covariance,
        exact_images(denoiser, 2000),
        steps,
        decoder_variance="covariance",
        draws=2,
        batch_size=2000,
    )
    expected = in_bits(entropy_nats() + marginal_prior_nats(denoiser, steps[-1]))
    within(found.value, expected, found.noise_error, 0.006)


# ---- every term, for any covariance and η -------------------------------------------------------------------------


def scaled(factor: float) -> Any:
    return lambda denoiser: lambda kernel: factor * np.asarray(optimum(denoiser)(kernel))


def mean_of_optimum(denoiser: Any) -> Any:
    return lambda kernel: np.mean(optimum(denoiser)(kernel))


CHOICES: dict[str, Any] = {
    "optimum": optimum,
    "isotropic": mean_of_optimum,
    "lambda2": lambda denoiser: lambda kernel: kernel.lambda2,
    "beta": lambda denoiser: lambda kernel: kernel.beta,
    "0.1": scaled(0.1),
    "10": scaled(10.0),
}


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_every_term_has_its_expectation(basis: str, choice: str, eta: float) -> None:
    denoiser = gaussian(basis)
    variances = CHOICES[choice](denoiser)
    found = dv.density_bound(
        denoiser,
        Told(denoiser.structure, lambda kernel: np.broadcast_to(variances(kernel), SHAPE)),
        exact_images(denoiser, 400),
        UNEVEN,
        seed=2,
        eta=eta,
        decoder_variance=0.003,
        draws=2,
        batch_size=400,
    )
    expected = bound_terms(denoiser, UNEVEN, variances, eta, 0.003)
    assert found.per_step[0] == pytest.approx(expected[0], rel=1e-5)
    # The spread of images makes `per_step_error` larger than the error here.
    error = np.abs(found.per_step - expected)[1:]
    assert (error < 4 * found.per_step_error[1:]).all()
    assert (found.per_step_error[1:] < 0.08 * np.maximum(np.abs(expected[1:]), 0.1)).all()
    within(found.value, float(expected.sum()), found.noise_error, 0.02 * float(np.abs(expected).sum()))


def test_eta_below_one_costs_more_and_more() -> None:
    denoiser = gaussian("pixel")
    images = exact_images(denoiser, 300)
    values = [
        dv.density_bound(
            denoiser, Told(denoiser.structure, optimum(denoiser)), images, 5, eta=eta, decoder_variance=0.003
        ).value
        for eta in (1.0, 0.7, 0.4, 0.1)
    ]
    assert (np.diff(values) > 0.02).all()


# ---- the optimum is a minimum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize(("moved", "element"), [(1000, 3), (400, 15), (91, 0), (3, 7)])
@pytest.mark.parametrize("factor", [1.4, 1 / 1.4])
def test_moving_one_variance_of_one_step_either_way_raises_the_bound(
    basis: str, moved: int, element: int, factor: float
) -> None:
    denoiser = gaussian(basis)

    def perturbed(kernel: dv.ReverseKernel) -> Any:
        variance = np.array(optimum(denoiser)(kernel))
        if kernel.t == moved:
            variance.flat[element] *= factor
        return variance

    images = exact_images(denoiser, 1000)
    best, other = (
        dv.density_bound(
            denoiser,
            Told(denoiser.structure, variances),
            images,
            UNEVEN,
            seed=3,
            decoder_variance="covariance",
            batch_size=1000,
        )
        for variances in (optimum(denoiser), perturbed)
    )
    assert other.value > best.value
    # The same noise: nothing but the moved step has changed, by about (f − 1 − log f)/2 of one dimension.
    column = best.labels.index(f"{moved} to {UNEVEN[UNEVEN.index(moved) - 1]}" if moved > 3 else "decoder 3 to 0")
    rise = other.per_step - best.per_step
    assert not np.delete(rise, column).any()
    assert rise[column] == pytest.approx(in_bits(0.5 * (math.log(factor) + 1 / factor - 1)), rel=0.6)


def test_too_small_is_worse_than_too_large() -> None:
    denoiser = gaussian("dct")
    images = exact_images(denoiser, 300)
    right, small, large = (
        dv.density_bound(
            denoiser, Told(denoiser.structure, scaled(f)(denoiser)), images, 5, decoder_variance="covariance"
        ).value
        for f in (1.0, 0.1, 10.0)
    )
    assert right + 1 < large
    assert large + 1 < small


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_order_of_the_covariances_at_ten_steps(basis: str) -> None:
    denoiser = gaussian(basis)
    isotropic = make_structure("isotropic", SHAPE)
    covariances = [
        dv.FixedSmall(),
        dv.FixedLarge(),
        Told(isotropic, mean_of_optimum(denoiser)),
        Told(denoiser.structure, optimum(denoiser)),
    ]
    images = exact_images(denoiser, 300)
    values = [dv.density_bound(denoiser, c, images, 10, decoder_variance=0.003).value for c in covariances]
    assert (np.diff(values) < -0.05).all(), values


def test_a_mixture_is_bounded_from_above_and_more_steps_come_nearer() -> None:
    """Not Gaussian: no covariance is exact, and the bound lies above −log p for every number of steps."""
    means = np.random.default_rng(3).normal(size=(3, 1, 2, 2))
    mixture = dv.oracles.MixtureDenoiser(SCHEDULE, means, 0.05)
    images = mixture.sample(300, seed=1)
    table = dv.estimate(mixture, images, 0.05, indices=range(1, 1001, 37), structures=("pixel",), progress=False)
    centres = torch.from_numpy(means)
    log_p = Independent(Normal(centres, math.sqrt(0.05)), 3).log_prob(images[:, None].double()).logsumexp(1)
    exact = float(-(log_p - math.log(3)).mean()) / (4 * math.log(2))
    covariance = dv.Analytic(table, structure="pixel")
    gaps = [
        dv.density_bound(mixture, covariance, images, steps, decoder_variance="covariance").value - exact
        for steps in (1, 4, 16, 64)
    ]
    assert (np.diff(gaps) < 0).all()
    assert 0 < gaps[-1] < 0.1 < gaps[0]


# ---- the plain loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[1, 12, 40, 100], [12, 100]], ids=str)
def test_bits_are_the_plain_loops(steps: list[int]) -> None:
    """8-bit images, black and white pixels among them, an imperfect mean, one variance a step; means over the noise."""
    denoiser, images = small_denoiser(clip=None, data_range=(-1.0, 1.0)), pictures(4, seed=5)
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    table = measured(denoiser)
    found = dv.bits_per_dim(denoiser, dv.Analytic(table), images, steps, 1, decoder_variance=0.02, draws=150)
    v = {n: table.posterior_variance(n) for n in steps}
    rng = np.random.default_rng(2)
    floats = images.double().numpy() / 127.5 - 1.0
    plain = np.array([[naive_bits_per_dim(denoiser, v, 0.02, x_0, steps, rng) for x_0 in floats] for _ in range(150)])
    error = np.hypot(found.noise_error, plain.mean(1).std(ddof=1) / 150**0.5)
    within(found.value, float(plain.mean()), float(error), 0.01 * found.value)
