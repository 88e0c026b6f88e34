"""S⁻¹ r by way of the images against dense solves: every structure of Σ and R, with one Σ and one an image."""

from typing import Any

import pytest
import torch
from measurements import SHAPE, mirrored_blur, normal, random_rows

import diffusion_var as dv
from diffusion_var.process.structure import Full, Structure, make_structure
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.restoration.systems import Systems
from diffusion_var.restoration.whitened import Whitened, told_of

SOLVER = ConjugateGradients(1e-8, 500)
MASK = normal(*SHAPE, seed=2) > -0.6
EACH = torch.exp(normal(*SHAPE, seed=3) - 2.0)
BOUND = dv.StructuredCovariance(make_structure("dct", SHAPE), EACH)


def masked(x: torch.Tensor) -> torch.Tensor:
    return x * MASK.to(x)


def structure_of(name: str) -> Structure:
    if name != "full":
        return make_structure(name, SHAPE)
    return Full(SHAPE, torch.linalg.qr(normal(2, 72, 72, seed=1))[0])


def covariance_of(name: str, batched: bool) -> dv.StructuredCovariance:
    structure = structure_of(name)
    shape = structure.variance_shape or (1,) * len(SHAPE)
    own = (2, *shape) if batched else structure.variance_shape
    return dv.StructuredCovariance(structure, torch.exp(normal(*own, seed=6)))


def systems_of(A: Any, noise: Any, dtype: torch.dtype = torch.float64) -> tuple[Systems, dv.Measurement]:
    measurement = dv.Measurement(normal(2, *SHAPE, seed=5).to(dtype), A, noise=noise)
    return Systems(measurement, SHAPE, dtype), measurement


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", ["isotropic", "channel", "pixel", "dct", "full"])
@pytest.mark.parametrize(("A", "noise"), [(masked, 0.3), (masked, EACH), (mirrored_blur, 0.3), (mirrored_blur, BOUND)])
def test_equals_a_dense_solve(A: Any, noise: Any, name: str, batched: bool) -> None:
    systems, measurement = systems_of(A, noise)
    S = systems.of(covariance_of(name, batched), measurement.map_of(SHAPE))
    assert S._whitened is not None
    r = torch.where(S.seen, measurement.y, 0.0)
    found = S.solve(r, SOLVER)
    assert bool(found.converged.all())
    assert int(found.products.min()) > 0
    expected = torch.linalg.solve(S.dense(r), r[:, S.seen])
    assert float((found.u[:, S.seen] - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_noise_that_binds_what_is_seen_to_what_is_not() -> None:
    """R⁻¹ of all elements is not that of the seen ones: S is solved itself, whatever r is elsewhere."""
    systems, measurement = systems_of(masked, BOUND)
    S = systems.of(covariance_of("dct", False), measurement.map_of(SHAPE))
    expected = torch.linalg.solve(S.dense(measurement.y), measurement.y[:, S.seen])
    for r in (measurement.y, torch.where(S.seen, measurement.y, 0.0)):
        found = S.solve(r, SOLVER).u
        assert float((found[:, S.seen] - expected).abs().max()) < 1e-6 * float(expected.abs().max())
        assert float(found[:, ~S.seen].abs().max()) == 0.0


@pytest.mark.parametrize(("noise", "by_images"), [(0.3, True), (0.0, False), (EACH * (EACH > 0.1), False)])
def test_only_where_every_element_has_noise(noise: Any, by_images: bool) -> None:
    systems, measurement = systems_of(mirrored_blur, noise)
    S = systems.of(covariance_of("pixel", False), measurement.map_of(SHAPE))
    assert (S._whitened is not None) == by_images


@pytest.mark.parametrize(("rows", "by_images"), [(35, False), (36, True)])
def test_only_of_measurements_of_half_an_images_elements_or_more(rows: int, by_images: bool) -> None:
    A = random_rows(rows)
    measurement = dv.Measurement(normal(2, rows), A, noise=0.3)
    S = Systems(measurement, SHAPE, torch.float64).of(covariance_of("dct", False), measurement.map_of(SHAPE))
    assert (S._whitened is not None) == by_images
    expected = torch.linalg.solve(S.dense(measurement.y), measurement.y)
    assert float((S.solve(measurement.y, SOLVER).u - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_what_is_told_is_the_diagonal_where_it_is_one() -> None:
    """Of a mask and pixels no probe errs: what is told of an element is 1/R if it is seen, and 0 else."""
    _, measurement = systems_of(masked, EACH)
    linear, like = measurement.map_of(SHAPE), torch.zeros((), dtype=torch.float64)
    told = told_of(linear, structure_of("pixel"), measurement.noise, like)
    assert float((told - MASK / EACH).abs().max()) < 1e-9
    pooled = told_of(linear, structure_of("isotropic"), measurement.noise, like)
    assert pooled.shape == ()
    assert float((pooled - (MASK / EACH).mean()).abs()) < 1e-9
    assert float((told_of(linear, structure_of("full"), measurement.noise, like) / pooled - 1.0).abs()) < 0.5


def test_the_diagonal_for_a_preconditioner_saves_products() -> None:
    """Of a blur, which is nearly diagonal in the dct basis, one tells nearly all there is to know."""
    _, measurement = systems_of(mirrored_blur, 0.01)
    linear, covariance = measurement.map_of(SHAPE), covariance_of("dct", False)
    told = told_of(linear, covariance.structure, measurement.noise, measurement.y)
    helped, plain = (
        Whitened(linear, covariance, measurement.noise, h).solve(measurement.y, SOLVER) for h in (told, 0.0 * told)
    )
    assert int(helped.products.max()) <= 3
    assert int(plain.products.min()) > 6


def test_float32_is_solved_in_float64() -> None:
    """So that u, the small difference of large numbers, has float32's digits."""
    systems, measurement = systems_of(lambda x: 0.5 * x + 0.5 * x.roll(1, -1), 1e-2, torch.float32)
    S = systems.of(covariance_of("dct", True), measurement.map_of(SHAPE))
    found = S.solve(measurement.y, SOLVER).u
    assert found.dtype == torch.float32
    dense = S.dense(measurement.y)
    assert dense.dtype == torch.float64
    expected = torch.linalg.solve(dense, measurement.y.flatten(1).double())
    assert float((found.flatten(1).double() - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_an_operator_that_knows_float32_alone_is_solved_in_it() -> None:
    W = 0.1 * normal(72, 72, seed=7).float()

    def A(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ W).view(x.shape)

    systems, measurement = systems_of(A, 0.3, torch.float32)
    covariance = covariance_of("dct", False)
    single = dv.StructuredCovariance(covariance.structure, covariance.variance.float())
    S = systems.of(single, measurement.map_of(SHAPE))
    assert S._whitened is None
    found = S.solve(measurement.y, ConjugateGradients(1e-6, 500)).u
    expected = torch.linalg.solve(S.dense(measurement.y), measurement.y.flatten(1).double())
    assert float((found.flatten(1).double() - expected).abs().max()) < 1e-4 * float(expected.abs().max())
