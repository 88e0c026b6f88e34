"""Structures of a covariance: one contract for all of them, against dense matrices built with scipy and numpy."""

import numpy as np
import pytest
import scipy.fft
import torch

from diffusion_var import InputError
from diffusion_var.process.structure import Dct, Structure, channel_rotation, dct_matrix, make_structure


def orthonormal(size: int, seed: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def dense_basis(shape: tuple[int, int, int], rotation: np.ndarray | None) -> np.ndarray:
    """B as a (d, d) matrix on flattened (C, H, W), from scipy's own transform."""
    if rotation is None:
        return np.eye(int(np.prod(shape)))
    rows, columns = (scipy.fft.dct(np.eye(n), norm="ortho", axis=0) for n in shape[1:])
    return np.kron(rotation, np.kron(rows, columns))


def scipy_rotation(channels: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(channels), norm="ortho", axis=0)


SHAPE = (3, 2, 4)
CASES = {
    "isotropic": (make_structure("isotropic", SHAPE), None),
    "channel": (make_structure("channel", SHAPE), None),
    "pixel": (make_structure("pixel", SHAPE), None),
    "dct": (make_structure("dct", SHAPE), scipy_rotation(3)),
    "dct, one channel": (make_structure("dct", (1, 5, 3)), scipy_rotation(1)),
    "dct, four channels": (make_structure("dct", (4, 2, 3), orthonormal(4)), orthonormal(4)),
}
VARIANCE_SHAPES = {"isotropic": (), "channel": (3, 1, 1), "pixel": SHAPE, "dct": SHAPE}


@pytest.mark.parametrize("case", CASES)
class TestEveryStructure:
    def setup(self, case: str) -> tuple[Structure, torch.Tensor, np.ndarray]:
        """The structure, random variances of its shape, and the dense covariance they stand for."""
        structure, rotation = CASES[case]
        stream = np.random.default_rng(11)
        variance = torch.as_tensor(np.exp(stream.standard_normal(structure.variance_shape)))
        basis = dense_basis(structure.shape, rotation)
        diagonal = np.broadcast_to(variance.numpy(), structure.shape).ravel()
        return structure, variance, basis.T @ np.diag(diagonal) @ basis

    def images(self, structure: Structure, count: int = 6) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(5).standard_normal((count, *structure.shape)))

    def test_shapes(self, case: str) -> None:
        structure = CASES[case][0]
        if case in VARIANCE_SHAPES:
            assert structure.variance_shape == VARIANCE_SHAPES[case]
        assert structure.d == int(np.prod(structure.shape))
        assert structure.name == case.split(",")[0]

    def test_forward_is_the_dense_basis_and_inverse_undoes_it(self, case: str) -> None:
        structure, rotation = CASES[case]
        x = self.images(structure)
        expected = x.flatten(1).numpy() @ dense_basis(structure.shape, rotation).T
        coefficients = structure.forward(x)
        assert coefficients.shape == x.shape
        np.testing.assert_allclose(coefficients.flatten(1).numpy(), expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(structure.inverse(coefficients).numpy(), x.numpy(), rtol=0, atol=1e-13)

    def test_single_precision_and_leading_dimensions(self, case: str) -> None:
        structure = CASES[case][0]
        x = self.images(structure)
        expected = structure.forward(x)
        single = structure.forward(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(structure.forward(x[0]), expected[0], rtol=0, atol=1e-14)
        folded = structure.forward(x.unflatten(0, (2, 3)))
        torch.testing.assert_close(folded.flatten(0, 1), expected, rtol=0, atol=1e-14)

    def test_colour_is_the_symmetric_root_of_the_covariance(self, case: str) -> None:
        structure, variance, covariance = self.setup(case)
        identity = torch.eye(structure.d, dtype=torch.float64).reshape(-1, *structure.shape)
        root = structure.colour(variance, identity).flatten(1).numpy()
        np.testing.assert_allclose(root, root.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(root @ root, covariance, rtol=0, atol=1e-12)
        assert np.linalg.eigvalsh(root).min() > 0

    def test_log_determinant(self, case: str) -> None:
        structure, variance, covariance = self.setup(case)
        sign, expected = np.linalg.slogdet(covariance)
        found = structure.log_det(variance)
        assert sign == 1
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(expected, rel=1e-12)
        single = structure.log_det(variance.float())
        assert single.dtype == torch.float64
        assert float(single) == pytest.approx(expected, rel=1e-5)

    def test_quadratic_form(self, case: str) -> None:
        structure, variance, covariance = self.setup(case)
        x = self.images(structure)
        flat = x.flatten(1).numpy()
        expected = np.einsum("bi,bi->b", flat, np.linalg.solve(covariance, flat.T).T)
        found = structure.quadratic(variance, x)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(structure.quadratic(variance, x.float()).numpy(), expected, rtol=1e-5)

    def test_one_variance_per_image(self, case: str) -> None:
        structure = CASES[case][0]
        shape = structure.variance_shape or (1, 1, 1)
        variances = torch.from_numpy(np.exp(np.random.default_rng(2).standard_normal((3, *shape))))
        x = self.images(structure, 3)
        log_det, quadratic = structure.log_det(variances), structure.quadratic(variances, x)
        coloured = structure.colour(variances, x)
        assert log_det.shape == quadratic.shape == (3,)
        for i in range(3):
            one = variances[i].reshape(structure.variance_shape)
            torch.testing.assert_close(log_det[i], structure.log_det(one), rtol=1e-13, atol=0)
            torch.testing.assert_close(quadratic[i], structure.quadratic(one, x[i]), rtol=1e-13, atol=0)
            torch.testing.assert_close(coloured[i], structure.colour(one, x[i]), rtol=0, atol=1e-13)

    def test_equal_variances_give_the_isotropic_noise_itself(self, case: str) -> None:
        structure = CASES[case][0]
        noise = self.images(structure)
        variance = torch.full(structure.variance_shape, 0.49, dtype=torch.float64)
        torch.testing.assert_close(structure.colour(variance, noise), 0.7 * noise, rtol=0, atol=1e-13)

    def test_pool_averages_the_elements_that_share_a_variance(self, case: str) -> None:
        structure = CASES[case][0]
        values = np.random.default_rng(8).standard_normal((2, 5, *structure.shape))
        pooled = structure.pool(values)
        assert pooled.shape == (2, 5, *structure.variance_shape)
        expected = np.zeros_like(values)
        for i, j in np.ndindex(2, 5):
            if case == "isotropic":
                expected[i, j] = values[i, j].sum() / structure.d
            elif case == "channel":
                for channel in range(structure.shape[0]):
                    expected[i, j, channel] = values[i, j, channel].sum() / values[i, j, channel].size
            else:
                expected[i, j] = values[i, j]
        one = pooled.reshape(2, 5, *(structure.variance_shape or (1, 1, 1)))
        np.testing.assert_allclose(np.broadcast_to(one, expected.shape), expected, rtol=0, atol=1e-14)
        np.testing.assert_allclose(structure.pool(torch.from_numpy(values)).numpy(), pooled, rtol=0, atol=1e-14)
        assert structure.pool(values[0, 0]).shape == structure.variance_shape


# ---- the dct --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 4), (3, 1, 1), (1, 16, 16)])
def test_dct_is_scipys_over_channels_rows_and_columns(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((3, *shape))
    expected = scipy.fft.dctn(x, axes=(1, 2, 3), norm="ortho")
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


def test_dct_needs_a_rotation_for_other_channel_counts() -> None:
    with pytest.raises(InputError, match="needs a channel rotation for 4 channels"):
        make_structure("dct", (4, 4, 4))


@pytest.mark.parametrize("rotation", [np.eye(3), 2 * np.eye(4), np.ones((4, 4)), np.full((4, 4), np.nan), np.eye(4)[0]])
def test_bad_rotation_is_refused(rotation: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"orthonormal matrix of shape \(4, 4\)"):
        make_structure("dct", (4, 4, 4), rotation)
