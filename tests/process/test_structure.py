"""Structures of a covariance: the contract for all of them and all shapes, and dense matrices built with scipy."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import scipy.fft
import torch

from diffusion_var import InputError
from diffusion_var.process.structure import Dct, Full, Structure, channel_rotation, dct_matrix, make_structure
from diffusion_var.testing import StructureContract


def orthonormal(size: int, seed: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def scipy_rotation(channels: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(channels), norm="ortho", axis=0)


def dense_basis(shape: tuple[int, ...], rotation: np.ndarray | None) -> np.ndarray:
    """B as a (d, d) matrix on flattened (C, *spatial), from scipy's own transform."""
    if rotation is None:
        return np.eye(int(np.prod(shape)))
    return functools.reduce(np.kron, [rotation, *(scipy_rotation(n) for n in shape[1:])])


class Case(NamedTuple):
    name: str
    shape: tuple[int, ...]
    rotation: np.ndarray | None
    variance_shape: tuple[int, ...]

    def structure(self) -> Structure:
        given = None if self.name != "dct" or self.rotation is None else self.rotation
        return make_structure(self.name, self.shape, given)


SHAPES = {"vector": (6,), "signal": (3, 5), "image": (3, 2, 4), "video": (3, 2, 2, 3)}
CASES = {
    f"{name} {kind}": Case(
        name,
        shape,
        None if name != "dct" else orthonormal(6) if kind == "vector" else scipy_rotation(3),
        {"isotropic": (), "channel": (shape[0], *(1,) * (len(shape) - 1))}.get(name, shape),
    )
    for kind, shape in SHAPES.items()
    for name in ("isotropic", "channel", "pixel", "dct")
}
CASES |= {
    "dct, one channel": Case("dct", (1, 5, 3), scipy_rotation(1), (1, 5, 3)),
    "dct, four channels": Case("dct", (4, 2, 3), orthonormal(4), (4, 2, 3)),
    "dct, one number": Case("dct", (1,), scipy_rotation(1), (1,)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


class TestEveryStructure(StructureContract):
    @pytest.fixture
    def structure(self, case: Case) -> Structure:
        return case.structure()

    def test_shapes_and_names(self, case: Case, structure: Structure) -> None:
        assert structure.variance_shape == case.variance_shape
        assert structure.name == case.name

    def test_the_covariance_is_that_of_scipys_basis(
        self, case: Case, structure: Structure, variance: torch.Tensor, covariance: np.ndarray
    ) -> None:
        basis = dense_basis(case.shape, case.rotation)
        diagonal = np.broadcast_to(variance.numpy(), case.shape).ravel()
        np.testing.assert_allclose(covariance, basis.T @ np.diag(diagonal) @ basis, rtol=0, atol=1e-12)

    def test_forward_is_the_dense_basis_and_inverse_undoes_it(
        self, case: Case, structure: Structure, images: torch.Tensor
    ) -> None:
        expected = images.flatten(1).numpy() @ dense_basis(case.shape, case.rotation).T
        coefficients = structure.forward(images)
        assert coefficients.shape == images.shape
        np.testing.assert_allclose(coefficients.flatten(1).numpy(), expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(structure.inverse(coefficients).numpy(), images.numpy(), rtol=0, atol=1e-13)

    def test_single_precision_and_leading_dimensions(self, structure: Structure, images: torch.Tensor) -> None:
        expected = structure.forward(images)
        single = structure.forward(images.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(structure.forward(images[0]), expected[0], rtol=0, atol=1e-14)
        folded = structure.forward(images.unflatten(0, (2, 3)))
        torch.testing.assert_close(folded.flatten(0, 1), expected, rtol=0, atol=1e-14)

    def test_log_determinants_of_single_precision(
        self, structure: Structure, variance: torch.Tensor, covariance: np.ndarray
    ) -> None:
        single = structure.log_det(variance.float())
        assert single.dtype == torch.float64
        assert float(single) == pytest.approx(np.linalg.slogdet(covariance)[1], rel=1e-5, abs=1e-6)

    def test_variances_of_every_image_drawn_apart(self, structure: Structure, images: torch.Tensor) -> None:
        shape = structure.variance_shape or (1,) * len(structure.shape)
        variances = torch.from_numpy(np.exp(np.random.default_rng(2).standard_normal((6, *shape))))
        log_det, quadratic = structure.log_det(variances), structure.quadratic(variances, images)
        coloured = structure.colour(variances, images)
        assert log_det.shape == quadratic.shape == (6,)
        for i in range(6):
            one = variances[i].reshape(structure.variance_shape)
            torch.testing.assert_close(log_det[i], structure.log_det(one), rtol=1e-13, atol=0)
            torch.testing.assert_close(quadratic[i], structure.quadratic(one, images[i]), rtol=1e-13, atol=0)
            torch.testing.assert_close(coloured[i], structure.colour(one, images[i]), rtol=0, atol=1e-13)

    def test_pool_is_a_mean_over_what_shares_a_variance(self, case: Case, structure: Structure) -> None:
        values = np.random.default_rng(8).standard_normal((2, 5, *structure.shape))
        pooled = structure.pool(values)
        assert pooled.shape == (2, 5, *structure.variance_shape)
        expected = np.zeros_like(values)
        for i, j in np.ndindex(2, 5):
            if case.name == "isotropic":
                expected[i, j] = values[i, j].sum() / structure.d
            elif case.name == "channel":
                for channel in range(structure.shape[0]):
                    expected[i, j, channel] = values[i, j, channel].sum() / values[i, j, channel].size
            else:
                expected[i, j] = values[i, j]
        one = pooled.reshape(2, 5, *(structure.variance_shape or (1,) * len(structure.shape)))
        np.testing.assert_allclose(np.broadcast_to(one, expected.shape), expected, rtol=0, atol=1e-14)
        np.testing.assert_allclose(structure.pool(torch.from_numpy(values)).numpy(), pooled, rtol=0, atol=1e-14)
        assert structure.pool(values[0, 0]).shape == structure.variance_shape


# ---- the dct --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 4), (3, 1, 1), (1, 16, 16), (3, 9), (1, 7), (3, 4, 5, 2)])
def test_dct_is_scipys_over_channels_and_every_spatial_axis(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((3, *shape))
    expected = scipy.fft.dctn(x, axes=tuple(range(1, x.ndim)), norm="ortho")
    np.testing.assert_allclose(Dct(shape).forward(torch.from_numpy(x)).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 33])
def test_dct_matrix(size: int) -> None:
    np.testing.assert_allclose(dct_matrix(size), scipy_rotation(size), rtol=0, atol=1e-14)


def test_given_rotation_acts_on_channels_after_the_spatial_dct() -> None:
    rotation, x = orthonormal(4), np.random.default_rng(0).standard_normal((2, 4, 5, 3))
    spatial = scipy.fft.dctn(x, axes=(2, 3), norm="ortho")
    expected = np.einsum("kc,bchw->bkhw", rotation, spatial)
    found = Dct((4, 5, 3), rotation).forward(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_channel_rotation_decorrelates(channels: int) -> None:
    factor = np.random.default_rng(channels).standard_normal((channels, channels))
    covariance = factor @ factor.T
    rotation = channel_rotation(covariance)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(channels), rtol=0, atol=1e-12)
    rotated = rotation @ covariance @ rotation.T
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), rtol=0, atol=1e-12 * covariance.max())
    assert (np.diff(np.diag(rotated)) < 0).all()
    assert (rotation[np.arange(channels), np.abs(rotation).argmax(axis=1)] > 0).all()
    Dct((channels, 2, 2), rotation)  # is accepted


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_rotation_of_grey_and_colour_is_the_dct(channels: int) -> None:
    factor = np.random.default_rng(1).standard_normal((channels, channels))
    np.testing.assert_allclose(channel_rotation(factor @ factor.T), scipy_rotation(channels), rtol=0, atol=1e-15)


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isotropic", "channel", "pixel", "dct"])
@pytest.mark.parametrize("shape", [(), (3, 2, 4, 4, 4), (0, 4, 4), (3, -1, 4), (3, 4.5, 4), (3, float("nan"), 4), 3])
def test_bad_shapes_are_refused(name: str, shape: tuple) -> None:
    with pytest.raises(InputError, match=r"an image shape must be \(C, \*spatial\) .* at most 3 spatial axes, but"):
        make_structure(name, shape)


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(InputError, match="'diagonal' is not known; choose one of isotropic, channel, pixel, dct"):
        make_structure("diagonal", (3, 4, 4))


def test_principal_axes_of_vectors() -> None:
    """Vectors have no axis for a DCT: their rotation is the data's principal axes, whatever their number."""
    for size in (1, 3, 5):
        factor = np.random.default_rng(size).standard_normal((size, size))
        rotation = channel_rotation(factor @ factor.T, spatial_axes=0)
        rotated = rotation @ (factor @ factor.T) @ rotation.T
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), rtol=0, atol=1e-12)
        assert (np.diff(np.diag(rotated)) < 0).all()
    with pytest.raises(InputError, match="needs a channel rotation for vectors: their principal axes"):
        make_structure("dct", (3,))


def test_dct_needs_a_rotation_for_other_channel_counts() -> None:
    with pytest.raises(InputError, match="needs a channel rotation for 4 channels"):
        make_structure("dct", (4, 4, 4))


@pytest.mark.parametrize("rotation", [np.eye(3), 2 * np.eye(4), np.ones((4, 4)), np.full((4, 4), np.nan), np.eye(4)[0]])
def test_bad_rotation_is_refused(rotation: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"orthonormal matrix of shape \(4, 4\)"):
        make_structure("dct", (4, 4, 4), rotation)


# ---- any basis ------------------------------------------------------------------------------------------------------


class TestFull(StructureContract):
    @pytest.fixture
    def structure(self) -> Structure:
        return Full((3, 2, 2), torch.from_numpy(orthonormal(12)))


def test_a_basis_for_each_image_is_that_of_the_image() -> None:
    bases = torch.stack([torch.from_numpy(orthonormal(12, seed)) for seed in range(5)])
    x, variance = (torch.from_numpy(np.random.default_rng(seed).random((5, 3, 2, 2))) for seed in (1, 2))
    together = Full((3, 2, 2), bases)
    for i in range(5):
        alone = Full((3, 2, 2), bases[i])
        for call in ("colour", "matvec", "solve", "quadratic"):
            found = getattr(together, call)(variance, x)[i]
            torch.testing.assert_close(found, getattr(alone, call)(variance[i], x[i : i + 1])[0])


@pytest.mark.parametrize("shape", [(12, 11), (4, 4), (12,), (2, 2, 12, 12)])
def test_a_basis_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"but \(12, 12\) is needed"):
        Full((3, 2, 2), torch.zeros(shape))


@pytest.mark.parametrize("name", ["dct", "full", "full, one for each image"])
def test_a_callers_autocast_is_the_networks_alone(name: str) -> None:
    shape = (3, 2, 4)
    bases = torch.from_numpy(np.stack([orthonormal(24, seed) for seed in range(3)]))
    structure = Dct(shape) if name == "dct" else Full(shape, bases[0] if name == "full" else bases)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, *shape))).float()
    variance = x.abs() + 0.1
    for method in (structure.colour, structure.matvec, structure.solve, structure.quadratic):
        expected = method(variance, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(method(variance, x), expected)
