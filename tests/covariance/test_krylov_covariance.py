"""Draws, determinants and solves of each image's whole covariance: against the dense matrix, of exact and of crooked
derivatives."""

import dataclasses
import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small_krylov import (
    EYE,
    MIXTURE,
    SCHEDULE,
    SHAPE,
    D,
    Dense,
    at,
    by_matrices,
    crooked,
    exact,
    measure,
    noise,
    noisy_images,
    root,
    table,
)

import diffusion_var as dv
from diffusion_var.data import digits_splits, photographs_part, to_float
from diffusion_var.errors import DiffusionVarWarning, NumericalError
from diffusion_var.models.oracles import GaussianDenoiser, MixtureDenoiser, fit_mixture
from diffusion_var.process.kernel import ReverseKernel

# ---- the matrix of each image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize(("n", "s", "eta"), [(2, 1, 1.0), (40, 20, 0.0), (60, 30, 0.5), (100, 60, 0.0), (60, 0, 0.0)])
def test_with_as_many_steps_as_dimensions_it_is_the_optimal_covariance(
    with_table: bool, n: int, s: int, eta: float
) -> None:
    x_t = noisy_images(MIXTURE, n, 3)
    covariance = dv.Lanczos(table() if with_table else None, steps=D)
    found, kernel = at(covariance, MIXTURE, x_t.repeat(D, 1, 1, 1), n, s, eta)
    made = found.colour(EYE.view(D, *SHAPE).repeat_interleave(3, 0)).view(D, 3, D).permute(1, 2, 0)
    expected = exact(MIXTURE, x_t, n, kernel)
    torch.testing.assert_close(made @ made.mT, expected, rtol=1e-7, atol=1e-10)
    found, _ = at(covariance, MIXTURE, x_t, n, s, eta)
    torch.testing.assert_close(found.matvec(x_t).flatten(1), (expected @ x_t.flatten(1)[..., None])[..., 0])
    assert covariance.cut[0] == 0
    single, _ = at(covariance, MIXTURE, x_t.float(), n, s, eta)
    z = noise(3, *SHAPE, seed=4)
    assert single.colour(z.float()).dtype == torch.float32
    torch.testing.assert_close(single.colour(z.float()).double(), found.colour(z), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [2, 40, 100])
def test_sums_are_those_of_the_matrix(n: int) -> None:
    """x Σ⁻¹ x and Σ⁻¹ x to the tolerance of a solve; log det Σ and tr Σ⁻¹ to the error of their probes."""
    x_t = noisy_images(MIXTURE, n, 4)
    covariance = dv.Lanczos(table(), probes=100)
    found = by_matrices(covariance, x_t, n, n // 2)
    expected = exact(MIXTURE, x_t, n, found.kernel)
    inverse, x = torch.linalg.inv(expected), noise(4, *SHAPE, seed=6)
    solved = (inverse @ x.flatten(1)[..., None])[..., 0]
    assert float((found.solve(x).flatten(1) - solved).norm() / solved.norm()) < 1e-3
    torch.testing.assert_close(found.quadratic(x), (x.flatten(1) * solved).sum(1), rtol=1e-5, atol=0)
    error = found.log_det_error
    assert bool(((found.log_det() - torch.logdet(expected)).abs() < 4 * error).all())
    assert 0.0 < float(error.max()) < 1.0
    trace = inverse.diagonal(dim1=1, dim2=2).sum(1)
    assert bool(((found.inverse_trace() / trace - 1).abs() < 0.15).all())
    assert covariance.log_det_error == pytest.approx(float((error / D).square().mean().sqrt()), rel=1e-4)


def test_the_error_of_a_log_determinant_is_the_spread_over_seeds() -> None:
    """And probes differ between images, so that their errors do not add up, but not with who stands beside them."""
    n, x_t = 40, noisy_images(MIXTURE, 40, 4).repeat(10, 1, 1, 1)
    x_t = x_t + 1e-6 * noise(*x_t.shape, seed=2)
    made = [by_matrices(dv.Lanczos(table(), probes=4, seed=seed), x_t, n, 20) for seed in range(12)]
    log_dets = torch.stack([one.log_det() for one in made])
    said = torch.stack([one.log_det_error for one in made]).square().mean(0).sqrt()
    ratio = (log_dets.std(0) / said).view(10, 4)[0]
    assert bool(((ratio > 0.4) & (ratio < 1.8)).all())
    backwards = by_matrices(dv.Lanczos(table(), probes=4), x_t.flip(0), n, 20).log_det().flip(0)
    torch.testing.assert_close(backwards, log_dets[0], rtol=1e-9, atol=1e-9)
    others = noisy_images(MIXTURE, n, 200)
    different = by_matrices(dv.Lanczos(table(), probes=4), others, n, 20)
    errors = different.log_det() - torch.logdet(exact(MIXTURE, others, n, different.kernel))
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(200)


# ---- few steps ----------------------------------------------------------------------------------------------------


@cache
def gaussian() -> tuple[GaussianDenoiser, dv.VarianceTable]:
    variance = np.exp(np.random.default_rng(2).uniform(-5.0, 0.0, SHAPE))
    model = GaussianDenoiser(SCHEDULE, 0.1, variance, basis="dct")
    return model, measure(model)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("s", "eta"), [(30, 0.0), (30, 1.0)])
def test_of_gaussian_data_the_table_s_first_step_is_exact(steps: int, s: int, eta: float) -> None:
    """Draws have the covariance Σ within four standard errors of 4,000, and are the table's own draws."""
    model, known = gaussian()
    count, x_t = 4000, noisy_images(model, 60, 1).float()
    found, kernel = at(dv.Lanczos(known, steps), model, x_t.expand(count, *SHAPE), 60, s, eta)
    z = noise(count, *SHAPE).float()
    draws = model.structure.forward(found.colour(z)).double().flatten(1)
    expected = kernel.lambda2 + kernel.gain**2 * torch.from_numpy(model.posterior_variance(60)).flatten()
    sample = draws.T @ draws / count
    scale = expected.sqrt()[:, None] * expected.sqrt()
    error = torch.sqrt(1.0 + EYE) / math.sqrt(count)
    assert bool(((sample / scale - EYE).abs() < 4 * error).all())
    plain = dv.Analytic(known, structure="dct")(None, kernel).colour(z)
    torch.testing.assert_close(found.colour(z), plain, rtol=0, atol=0.02)


@cache
def photographs() -> tuple[MixtureDenoiser, dv.VarianceTable]:
    model = fit_mixture(photographs_part("fit", 8, 2000).images, 3, SCHEDULE, rounds=2)
    return model, measure(model, 2000)


@pytest.mark.parametrize(("n", "s"), [(20, 10), (60, 40)])
def test_every_step_comes_nearer_and_the_table_saves_many(n: int, s: int) -> None:
    """‖draw − L M^{1/2} z‖ over ‖L M^{1/2} z‖ in Σ's own metric, on a mixture like photographs, d = 192."""
    model, known = photographs()
    x_t = noisy_images(model, n, 4)
    z, errors = noise(4, *model.shape, seed=1), {}
    for name, given in (("table", known), ("none", None)):
        found, kernel = at(dv.Lanczos(given, 1), model, x_t, n, s, 0.0)
        expected, structure = exact(model, x_t, n, kernel), found.structure
        scale = found.variance.double().expand(model.shape).flatten().sqrt()
        basis = structure.forward(torch.eye(structure.d, dtype=torch.float64).view(-1, *model.shape)).flatten(1).T
        values, vectors = torch.linalg.eigh((basis @ expected @ basis.T) / scale[:, None] / scale)
        half = (vectors * values.sqrt()[:, None]) @ vectors.mT
        wanted = (half @ structure.forward(z).flatten(1)[..., None])[..., 0]
        errors[name] = []
        for steps in (1, 3, 5, 10):
            made = structure.forward(dataclasses.replace(found, steps=steps).colour(z)).flatten(1) / scale
            weighed = torch.stack([v.mT @ (m - w) for v, m, w in zip(vectors, made, wanted, strict=True)])
            errors[name].append(float((weighed.square() / values).mean().sqrt()))
    assert all(a > b for row in errors.values() for a, b in pairwise(row)), errors
    assert errors["table"][1] < 0.3
    assert errors["table"][3] < 0.03
    assert errors["table"][1] < errors["none"][3]


# ---- derivatives that are no covariances --------------------------------------------------------------------------


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_negative_directions_are_cut_where_s_is_and_counted(with_table: bool, eta: float) -> None:
    """Σ is λ² I + γ² S₊, the positive part taken in L's metric: never below λ² I, and with η = 0 singular. With a table
    S is drawn towards it before."""
    posterior, jacobian = crooked(5)
    kernel, covariance = ReverseKernel(SCHEDULE, 60, 30, eta), dv.Lanczos(table() if with_table else None, D)
    found: Any = covariance(posterior, kernel)
    made = root(found, 5)
    basis = found.structure.forward(EYE.view(D, *SHAPE)).flatten(1).T
    scale = found.variance.double().expand(SHAPE).flatten().sqrt()
    P = kernel.gain**2 * (basis @ jacobian.matrices @ basis.T) / scale[:, None] / scale
    P, uneven = 0.5 * (P + P.mT), 0.5 * (P - P.mT)
    raw, weight = torch.linalg.eigvalsh(P), torch.ones(5, dtype=torch.float64)
    if with_table:
        table_s = torch.diag(1.0 - kernel.lambda2 / scale.square())
        size = (table_s.trace() / D).square()
        off = raw[:, 0].square() + 2.0 * uneven.square().sum((1, 2)) / (D * (D - 1))
        weight = size / (size + off)
        P = table_s + weight[:, None, None] * (P - table_s)
    values, vectors = torch.linalg.eigh(P)
    positive = (vectors * values.clamp_min(0.0)[:, None]) @ vectors.mT * scale[:, None] * scale
    expected = kernel.lambda2 * EYE + basis.T @ positive @ basis
    torch.testing.assert_close(made @ made.mT, expected, rtol=1e-6, atol=1e-7)
    assert bool((torch.linalg.eigvalsh(expected) > kernel.lambda2 - 1e-12).all())
    negative, total = int((raw < 0).sum()), 5 * D
    assert covariance.cut == (D * negative, D * total)
    assert covariance.counts()[:6] == [D * negative, D * total, 0, 0, 0, 0]
    assert covariance.weight == pytest.approx(float(weight.mean()), abs=1e-6)
    said = "the noise of lanczos-12 was 9" if with_table else f"of {D * total} eigenvalues .* {D * negative} were negat"
    with pytest.warns(DiffusionVarWarning, match=said):
        covariance.report()
    covariance.report()  # once


@pytest.mark.parametrize("steps", [1, 3])
def test_a_derivative_that_is_noise_gives_the_table_s_own_draws(steps: int) -> None:
    """And one that is symmetric and positive is left as it is, however far it is from the table's."""
    x_t, z = noisy_images(MIXTURE, 60, 200), noise(200, *SHAPE, seed=3)
    posterior, kernel = MIXTURE(x_t, 60), ReverseKernel(SCHEDULE, 60, 30, 0.0)
    plain = dv.Analytic(table(), structure="dct")(None, kernel).colour(z)
    distances = []
    for size in (0.0, 1.0, 100.0):
        derivative: Any = Dense(MIXTURE.posterior_covariance(x_t, 60) + size * noise(200, D, D, seed=9))
        covariance = dv.Lanczos(table(), steps)
        draws = covariance(dataclasses.replace(posterior, jacobian=derivative), kernel).colour(z)
        distances.append(float((draws - plain).norm() / plain.norm()))
    assert distances[0] > 0.2
    assert distances[0] > distances[1] > 10 * distances[2]
    assert covariance.weight < 1e-3
    twice: Any = Dense(9.0 * MIXTURE.posterior_covariance(x_t, 60))
    covariance = dv.Lanczos(table(), D)
    draws = covariance(dataclasses.replace(posterior, jacobian=twice), kernel).colour(z)
    once: Any = Dense(MIXTURE.posterior_covariance(x_t, 60))
    own = dv.Lanczos(table(), D)(dataclasses.replace(posterior, jacobian=once), kernel).colour(z)
    torch.testing.assert_close(draws, 3.0 * own, rtol=1e-6, atol=1e-6)
    assert covariance.weight == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_draws_of_few_steps_are_finite_and_take_so_many_products(steps: int) -> None:
    posterior, jacobian = crooked(50, scale=10.0)
    for eta in (0.0, 0.5):
        jacobian.products = 0
        covariance = dv.Lanczos(table(), steps)
        draws = covariance(posterior, ReverseKernel(SCHEDULE, 60, 30, eta)).colour(noise(50, *SHAPE, seed=3))
        assert bool(torch.isfinite(draws).all())
        assert jacobian.products == covariance.products == steps
        negative, total = covariance.cut
        assert 0 < negative < total == 50 * steps


@pytest.mark.slow
def test_a_network_is_followed_where_its_derivative_is_near_a_covariance() -> None:
    """The digits' own: nearly all of it at little noise, and next to pure noise the table, where its S is 30 times too
    large; finite at both."""
    model, parts = dv.Denoiser.from_pretrained("digits"), digits_splits()
    images, noise_of = to_float(parts.score.images[:8]), noise(8, 1, 8, 8).float()
    known = dv.estimate(model, parts.table.images, 0.5, indices=[20, 900], structures=("dct",), progress=False)
    weights = []
    for n in (20, 900):
        level = model.schedule.level(n)
        kernel = ReverseKernel(model.schedule, n, n // 2, 0.0)
        covariance = dv.Lanczos(known)
        found: Any = covariance(covariance.prepare(model)(level.alpha * images + level.sigma * noise_of, n), kernel)
        draws = found.colour(noise(8, 1, 8, 8, seed=1).float())
        assert bool(torch.isfinite(draws).all())
        size = (found.structure.forward(draws) / found.variance.sqrt()).square().mean()
        assert 0.5 < float(size) < 1.5
        weights.append(covariance.weight)
    assert weights[0] > 0.9
    assert weights[1] < 0.1


def test_negative_directions_are_refused_where_nothing_may_be_cut() -> None:
    posterior, _ = crooked(5)
    found = dv.Lanczos(table(), clamp=False)(posterior, ReverseKernel(SCHEDULE, 60, 30))
    with pytest.raises(NumericalError, match="negative directions in the step 60 to 30, in 5 of 5 images"):
        found.colour(noise(5, *SHAPE))
    x_t = noisy_images(MIXTURE, 60, 3)
    sound, _ = at(dv.Lanczos(table(), clamp=False), MIXTURE, x_t, 60, 30)
    assert bool(torch.isfinite(sound.colour(x_t)).all())


def test_capped_no_direction_is_above_the_limit() -> None:
    x_t = noisy_images(MIXTURE, 20, 3)
    found, kernel = at(dv.Lanczos(table(), D), MIXTURE, x_t, 20, 5, 0.0)
    expected = exact(MIXTURE, x_t, 20, kernel)
    limit = float(torch.linalg.eigvalsh(expected).median())
    made = root(found.capped(limit), 3)
    values, vectors = torch.linalg.eigh(expected)
    cut = (vectors * values.clamp_max(limit)[:, None]) @ vectors.mT
    torch.testing.assert_close(made @ made.mT, cut, rtol=1e-6, atol=1e-10)
    few = dataclasses.replace(found, steps=2).capped(limit).colour(noise(3, *SHAPE))
    assert float(few.square().sum()) < limit * float(noise(3, *SHAPE).square().sum())
    sampler = dv.Sampler(MIXTURE, dv.Lanczos(table(), 2), [1, 30, 100], 0.0)
    assert bool(torch.isfinite(sampler.sample(4)).all())
