"""Closed forms: found where S is diagonal in a basis that is tried, not found elsewhere, and S⁻¹ of a dense solve."""

from typing import Any

import numpy as np
import pytest
import torch
from measurements import (
    SHAPE,
    Constant,
    circular_blur,
    decimated,
    dense,
    grey,
    halved,
    masked,
    matrix_of,
    mirrored_blur,
    normal,
    random_rows,
)

import diffusion_var as dv
from diffusion_var.models.posterior import Posterior
from diffusion_var.process.level import NoiseLevel
from diffusion_var.process.structure import Full, make_structure
from diffusion_var.restoration import ConjugateGradients
from diffusion_var.restoration.systems import Systems

STRUCTURES = ("isotropic", "channel", "pixel", "dct")
TIGHT = ConjugateGradients(1e-12, 500)
LEVEL = NoiseLevel(1.0, 1.0, 0.0)


def weighted(x: torch.Tensor) -> torch.Tensor:
    """Each element times a number of its own."""
    return x * torch.linspace(0.1, 2.0, x[0].numel()).view(x.shape[1:]).to(x)


def flipped(x: torch.Tensor) -> torch.Tensor:
    """A permutation: A Aᵀ = I, whatever A is in the pixels' basis."""
    return x.flip(-1)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """Channels summed: diagonal for no structure's basis, y of one channel."""
    return torch.einsum("c,bchw->bhw", torch.tensor([0.2, 0.5, 1.0]).to(x), x)[:, None]


def system(
    operator: Any, structure: Any, variance: torch.Tensor, noise: Any = 0.3, dtype: Any = torch.float64
) -> tuple[Any, torch.Tensor]:
    """S of two images, and the measurements."""
    shape = structure.shape
    y = operator(normal(2, *shape)).to(dtype)
    measurement = dv.Measurement(y, operator, noise=noise)
    posterior = Posterior(torch.zeros(2, *shape, dtype=dtype), torch.zeros(2, *shape, dtype=dtype))
    covariance = Constant(structure, variance).posterior_covariance(posterior, LEVEL)
    return Systems(measurement, shape, dtype).of(covariance, measurement.map_of(shape)), y


def variances(name: str, batch: bool, image: tuple[int, ...] = SHAPE) -> torch.Tensor:
    structure = make_structure(name, image)
    shape = structure.variance_shape if not batch else (2, *np.broadcast_shapes(structure.variance_shape, (1, 1, 1)))
    return torch.exp(normal(*shape, seed=6))


#: Operator, and the structures for which S is diagonal in a basis that is tried.
CLOSED = [
    (masked(), {"isotropic", "channel", "pixel"}),
    (weighted, {"isotropic", "channel", "pixel"}),
    (flipped, {"isotropic", "dct"}),  # of the DCT-II every second coefficient changes its sign
    (mirrored_blur, {"isotropic", "dct"}),
    (halved, {"isotropic"}),
    (decimated, {"isotropic"}),
    (grey, {"isotropic"}),
    (mixed, {"isotropic"}),
    (circular_blur, set()),
    (random_rows(9), set()),
]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("operator", "closed"), CLOSED)
def test_found_where_it_is_and_equal_to_a_dense_solve(operator: Any, closed: set[str], name: str, batch: bool) -> None:
    structure, variance = make_structure(name, SHAPE), variances(name, batch)
    S, y = system(operator, structure, variance)
    found, by_steps = S.solve(y, None), S.solve(y, TIGHT)
    assert (int(found.products.max()) == 0) == (name in closed)
    matrix = matrix_of(operator)
    for i in range(2):
        own = dense(structure, variance[i] if batch else variance)
        expected = np.linalg.solve(matrix @ own @ matrix.T + 0.09 * np.eye(len(matrix)), y[i].flatten().numpy())
        for solution in (found, by_steps):
            seen = np.abs(matrix).max(1) > 0
            close = 1e-9 if name in closed or solution is by_steps else 1e-2
            assert np.abs(solution.u[i].flatten().numpy() - expected)[seen].max() < close
    assert bool(found.converged.all())
    assert bool(found.positive.all())


def test_the_channels_own_variances_with_a_blur_are_no_closed_form_of_isotropic_ones() -> None:
    """The basis alone does not do it: with a variance for each channel, an isotropic S would be another."""
    S, y = system(mirrored_blur, make_structure("channel", SHAPE), torch.tensor([0.1, 1.0, 5.0])[:, None, None])
    by_steps = S.solve(y, TIGHT)
    assert float((S.product(S.solve(y, None).u) - y).abs().max()) < 1e-3
    assert float((S.product(by_steps.u) - y).abs().max()) < 1e-9


def test_noise_that_is_not_white() -> None:
    """Of variances for each element a mask and pixels keep their closed form, a blur not; of a structured R none."""
    each = torch.exp(normal(*SHAPE, seed=2))
    own = dv.StructuredCovariance(make_structure("dct", SHAPE), each)
    cases = [
        (masked(), "isotropic", each, True),
        (masked(), "pixel", each, True),
        (mirrored_blur, "dct", each, False),
        (mirrored_blur, "isotropic", each, False),
        (mirrored_blur, "isotropic", own, False),
        (masked(), "pixel", own, False),
    ]
    for operator, name, noise, closed in cases:
        S, y = system(operator, make_structure(name, SHAPE), variances(name, False), noise)
        y = torch.where(S.seen, y, 0.0)
        found = S.solve(y, None)
        assert (int(found.products.max()) == 0) == closed
        left = torch.where(S.seen, S.product(found.u) - y, 0.0)
        assert float(left.abs().max()) < (1e-9 if closed else 1e-3)


def test_no_noise() -> None:
    """S is then singular where nothing is seen; there, u is 0."""
    S, y = system(masked(), make_structure("pixel", SHAPE), variances("pixel", False), 0.0)
    found = S.solve(y, None)
    assert int(found.products.max()) == 0
    expected = torch.where(S.seen, y / variances("pixel", False), 0.0)
    assert float((found.u - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["isotropic", "dct"])
def test_no_noise_and_directions_that_are_not_seen(name: str, dtype: torch.dtype) -> None:
    """A mean of all elements, spread over all: of S one eigenvalue is not 0, and nothing is divided by the rounding of
    the others."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3), keepdim=True).expand_as(x)

    structure = make_structure(name, SHAPE)
    S, y = system(mean, structure, torch.full(structure.variance_shape, 0.5), 0.0, dtype)
    y = y + 1e-3 * normal(2, *SHAPE, seed=1).to(dtype)
    found = S.solve(y, None)
    assert int(found.products.max()) == 0
    assert float((found.u - mean(y) / 0.5).abs().max()) < (1e-5 if dtype == torch.float32 else 1e-12)


def test_a_basis_of_each_image_has_none() -> None:
    basis = torch.linalg.qr(normal(2, 72, 72, seed=1))[0]
    S, y = system(masked(), Full(SHAPE, basis), torch.exp(normal(2, *SHAPE, seed=6)))
    found = S.solve(y, None)
    assert int(found.products.min()) > 0
    assert bool(found.converged.all())
    assert float((S.product(found.u) - y).abs().max()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_both_precisions(dtype: torch.dtype) -> None:
    for operator, name in ((masked(), "pixel"), (mirrored_blur, "dct"), (halved, "isotropic")):
        S, y = system(operator, make_structure(name, SHAPE), variances(name, False), dtype=dtype)
        found = S.solve(y, None)
        assert found.u.dtype == dtype
        assert int(found.products.max()) == 0
        left = torch.where(S.seen, S.product(found.u) - y, 0.0)
        assert float(left.abs().max()) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("kind", ["mask", "box", "blur"])
def test_by_way_of_the_images_it_is_nearer_after_as_many_products(kind: str) -> None:
    """Σ in the dct basis, for which these have no closed form, with a spectrum like that of images."""
    shape = (1, 16, 16)
    mask, box = (normal(*shape, seed=2) > -0.2).float(), torch.ones(shape)
    box[:, 4:12, 4:12] = 0.0
    operator: Any = {
        "mask": lambda x: x * mask.to(x),
        "box": lambda x: x * box.to(x),
        "blur": lambda x: 0.5 * x + 0.5 * x.roll(1, -1),
    }[kind]
    frequency = torch.arange(16).double().square()
    spectrum = 100.0 / (1.0 + frequency[:, None] + frequency).pow(2)
    S, y = system(operator, make_structure("dct", shape), spectrum[None], 0.02)
    y = torch.where(S.seen, y, 0.0)
    helped = S.solve(y, None)
    assert bool(helped.converged.all())
    assert S._whitened is not None
    S._whitened = None
    close = S.solve(y, ConjugateGradients(1e-10, 3000)).u
    plain = S.solve(y, ConjugateGradients(1e-10, int(helped.products.max())))  # as many products
    off, off_plain = (float((found.u - close).abs().max()) for found in (helped, plain))
    assert off < 1e-3 * float(close.abs().max())
    assert off < 0.3 * off_plain


# ---- what deepinv knows the singular vectors of ---------------------------------------------------------------------


IMAGE = (3, 8, 12)


@pytest.mark.parametrize("physics_of", ["inpainting", "blur", "denoising", "downsampling", "compressed"])
def test_of_deepinvs_decomposable_physics(physics_of: str) -> None:
    """An isotropic Σ has a closed form wherever deepinv has the singular vectors, and it is the dense S⁻¹."""
    from deepinv import physics as p

    rng = torch.Generator().manual_seed(0)
    kernel = torch.rand(1, 1, 3, 3, generator=rng)
    made: dict[str, Any] = {
        "inpainting": lambda: p.Inpainting(IMAGE, mask=0.6, rng=rng),
        "blur": lambda: p.BlurFFT(IMAGE, filter=kernel / kernel.sum()),
        "denoising": p.Denoising,
        "downsampling": lambda: p.Downsampling(IMAGE, filter="bicubic", factor=2),
        "compressed": lambda: p.CompressedSensing(10, IMAGE, rng=rng),
    }
    physics = made[physics_of]()
    physics.noise_model = p.GaussianNoise(0.3)
    x = normal(2, *IMAGE).float()
    y = physics.A(x)
    measurement = dv.Measurement.from_deepinv(physics, y)
    for name in ("isotropic", "dct"):
        structure, variance = make_structure(name, IMAGE), variances(name, False, IMAGE)
        covariance = Constant(structure, variance).posterior_covariance(Posterior(x, x), LEVEL)
        S = Systems(measurement, IMAGE, torch.float32).of(covariance, measurement.map_of(IMAGE))
        y = torch.where(S.seen, y, 0.0)
        found, by_steps = S.solve(y, None), S.solve(y, ConjugateGradients(3e-6, 500))
        closed = name == "isotropic" and physics_of not in ("downsampling", "compressed")
        assert (int(found.products.max()) == 0) == (closed or physics_of == "denoising")
        close = (1e-4 if int(found.products.max()) == 0 else 1e-2) * float(by_steps.u.abs().max())
        assert float((found.u - by_steps.u).abs().max()) < close
        assert float((S.product(by_steps.u) - y).abs().max()) < 1e-4
