"""Contracts: what a structure or a reverse covariance must keep to be used here, as tests to run on one's own.

    import pytest
    from diffusion_var.testing import CovarianceContract

    class TestMine(CovarianceContract):
        @pytest.fixture
        def covariance(self):
            return Mine()

In a file of tests, pytest runs all of the contract's tests on it. The package's own structures and covariances pass the
same ones. It needs pytest, which the package itself does not.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from .covariance.reverse import ReverseCovariance, StructuredCovariance
from .errors import InputError
from .likelihood.bound import density_bound
from .models.denoiser import Denoiser
from .models.oracles import GaussianDenoiser
from .models.posterior import Posterior
from .process.kernel import ReverseKernel, reverse_kernels
from .process.schedule import Float64Array, NoiseSchedule
from .process.structure import Structure
from .sampling.sampler import Sampler


class StructureContract:
    """Tests of a `Structure`, against the dense matrix that its `matvec` stands for. Give the fixture `structure`, of a
    small shape: matrices are d × d."""

    @pytest.fixture
    def structure(self) -> Structure:
        """The structure to test."""
        raise NotImplementedError("give a fixture `structure`")

    @pytest.fixture
    def variance(self, structure: Structure) -> torch.Tensor:
        """Positive variances of its shape, float64."""
        return torch.as_tensor(np.exp(np.random.default_rng(11).standard_normal(structure.variance_shape)))

    @pytest.fixture
    def covariance(self, structure: Structure, variance: torch.Tensor) -> Float64Array:
        """Σ as a matrix (d, d)."""
        return _matrix(structure.matvec(variance, _identity(structure)))

    @pytest.fixture
    def images(self, structure: Structure) -> torch.Tensor:
        """(6, C, *spatial) float64."""
        return torch.from_numpy(np.random.default_rng(5).standard_normal((6, *structure.shape)))

    def test_variances_broadcast_to_an_image(self, structure: Structure) -> None:
        assert structure.d == math.prod(structure.shape)
        assert np.broadcast_shapes(structure.variance_shape, structure.shape) == structure.shape

    def test_the_basis_is_orthonormal(self, structure: Structure, images: torch.Tensor) -> None:
        coefficients = structure.forward(images)
        assert coefficients.shape == images.shape
        _close(structure.inverse(coefficients), images)
        _close(coefficients.square().flatten(1).sum(1), images.square().flatten(1).sum(1))

    def test_the_covariance_is_symmetric_and_positive(self, covariance: Float64Array) -> None:
        np.testing.assert_allclose(covariance, covariance.T, rtol=0, atol=1e-12)
        assert np.linalg.eigvalsh(covariance).min() > 0

    def test_the_variances_are_its_eigenvalues(
        self, structure: Structure, variance: torch.Tensor, covariance: Float64Array
    ) -> None:
        expected = np.sort(np.broadcast_to(variance.numpy(), structure.shape).ravel())
        np.testing.assert_allclose(np.linalg.eigvalsh(covariance), expected, rtol=1e-10)

    def test_colour_is_the_symmetric_root(
        self, structure: Structure, variance: torch.Tensor, covariance: Float64Array
    ) -> None:
        root = _matrix(structure.colour(variance, _identity(structure)))
        np.testing.assert_allclose(root, root.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(root @ root, covariance, rtol=0, atol=1e-12)
        assert np.linalg.eigvalsh(root).min() > 0

    def test_solve_undoes_matvec(self, structure: Structure, variance: torch.Tensor, images: torch.Tensor) -> None:
        _close(structure.solve(variance, structure.matvec(variance, images)), images, 1e-10)

    def test_log_determinant_and_trace_of_the_inverse(
        self, structure: Structure, variance: torch.Tensor, covariance: Float64Array
    ) -> None:
        log_det, trace = structure.log_det(variance), structure.inverse_trace(variance)
        assert (log_det.dtype, trace.dtype) == (torch.float64, torch.float64)
        np.testing.assert_allclose(float(log_det), np.linalg.slogdet(covariance)[1], rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(float(trace), np.trace(np.linalg.inv(covariance)), rtol=1e-10)
        assert structure.log_det(variance.float()).dtype == torch.float64

    def test_quadratic_form(
        self, structure: Structure, variance: torch.Tensor, covariance: Float64Array, images: torch.Tensor
    ) -> None:
        flat, found = images.flatten(1).numpy(), structure.quadratic(variance, images)
        assert found.dtype == torch.float64
        expected = np.einsum("bi,bi->b", flat, np.linalg.solve(covariance, flat.T).T)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
        single = structure.quadratic(variance, images.float())
        assert single.dtype == torch.float64
        np.testing.assert_allclose(single.numpy(), expected, rtol=1e-5)

    def test_one_variance_for_each_image(
        self, structure: Structure, variance: torch.Tensor, images: torch.Tensor
    ) -> None:
        count = len(images)
        scale = torch.arange(1.0, count + 1, dtype=torch.float64)
        own = variance.reshape(1, *_full(structure)) * scale.view(-1, *(1,) * len(structure.shape))
        for call in (structure.colour, structure.matvec, structure.solve, structure.quadratic):
            together = call(own, images)
            for i in range(count):
                _close(together[i], call(scale[i] * variance, images[i : i + 1])[0], 1e-10)
        for reduce in (structure.log_det, structure.inverse_trace):
            together = reduce(own)
            assert together.shape == (count,)
            for i in range(count):
                _close(together[i], reduce(scale[i] * variance), 1e-10)

    def test_equal_variances_give_the_isotropic_noise_itself(self, structure: Structure, images: torch.Tensor) -> None:
        equal = torch.full(structure.variance_shape, 0.49, dtype=torch.float64)
        _close(structure.colour(equal, images), 0.7 * images)

    def test_pool_averages_the_elements_that_share_a_variance(self, structure: Structure, images: torch.Tensor) -> None:
        pooled = structure.pool(images.numpy())
        assert pooled.shape == (len(images), *structure.variance_shape)
        spread = np.broadcast_to(pooled.reshape(len(images), *_full(structure)), images.shape)
        axes = tuple(range(1, images.ndim))
        np.testing.assert_allclose(spread.mean(axes), images.numpy().mean(axes), rtol=0, atol=1e-12)
        again = structure.pool(np.ascontiguousarray(spread))
        np.testing.assert_allclose(again, pooled, rtol=0, atol=1e-12)
        np.testing.assert_allclose(structure.pool(images).numpy(), pooled, rtol=0, atol=1e-12)

    def test_precision_stays_that_of_the_images(
        self, structure: Structure, variance: torch.Tensor, images: torch.Tensor
    ) -> None:
        for call in (structure.colour, structure.matvec, structure.solve):
            assert call(variance.float(), images.float()).dtype == torch.float32
        assert structure.forward(images.float()).dtype == structure.inverse(images.float()).dtype == torch.float32


class CovarianceContract:
    """Tests of a `ReverseCovariance`: alone, in `Sampler` and in the likelihood bound. Give the fixture `covariance`,
    and `denoiser` where the default, exact Gaussian data of shape (3, 4, 4), does not fit."""

    #: The forward processes it is for.
    etas: tuple[float, ...] = (1.0, 0.5)
    #: The steps taken, as indices; of the default denoiser N is 100.
    steps: tuple[int, ...] = (1, 30, 100)

    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        """The covariance to test."""
        raise NotImplementedError("give a fixture `covariance`")

    @pytest.fixture
    def denoiser(self) -> Denoiser:
        """A model that it fits."""
        variance = np.exp(np.random.default_rng(1).uniform(-3, 0, (3, 4, 4)))
        return GaussianDenoiser(NoiseSchedule.linear(100, 1e-3, 0.1), 0.1, variance)

    def posterior(self, covariance: ReverseCovariance, denoiser: Denoiser, n: int, seed: int = 1) -> Posterior:
        """The posterior at index n for 4 noisy images."""
        x_t = np.random.default_rng(seed).standard_normal((4, *denoiser.shape)).astype(np.float32)
        with torch.no_grad():
            return covariance.prepare(denoiser)(torch.from_numpy(x_t).to(denoiser.device), n)

    def kernels(self, denoiser: Denoiser) -> list[ReverseKernel]:
        """The steps that add noise, for every η."""
        every = [k for eta in self.etas for k in reverse_kernels(denoiser.schedule, list(self.steps), eta)]
        return [kernel for kernel in every if not kernel.last]

    def test_says_what_it_is(self, covariance: ReverseCovariance) -> None:
        assert covariance.name
        assert json.loads(json.dumps(covariance.identity())), "identity must be plain data, and not empty"

    def test_accepts_the_model_and_the_steps(self, covariance: ReverseCovariance, denoiser: Denoiser) -> None:
        covariance.check(covariance.prepare(denoiser), self.kernels(denoiser))

    def test_fits_the_images(self, covariance: ReverseCovariance, denoiser: Denoiser) -> None:
        for kernel in self.kernels(denoiser):
            posterior = self.posterior(covariance, denoiser, int(kernel.level_t.index or 0))
            found = covariance(posterior, kernel)
            assert found is None or isinstance(found, StructuredCovariance)
            if found is None:
                continue
            assert found.structure.shape == denoiser.shape
            assert found.variance.dtype == posterior.mean.dtype
            assert found.variance.device == posterior.mean.device
            assert bool(torch.isfinite(found.variance).all())
            assert bool((found.variance >= 0).all())
            expected = {found.structure.variance_shape}
            if covariance.depends_on_image:
                full = _full(found.structure)
                expected |= {(4, *full), (1, *full)}
            assert tuple(found.variance.shape) in expected
            assert found.colour(torch.zeros_like(posterior.mean)).shape == posterior.mean.shape

    def test_depends_on_the_image_only_if_it_says_so(self, covariance: ReverseCovariance, denoiser: Denoiser) -> None:
        for kernel in self.kernels(denoiser):
            n = int(kernel.level_t.index or 0)
            first, second = (covariance(self.posterior(covariance, denoiser, n, seed), kernel) for seed in (1, 2))
            if first is None or second is None:
                assert first is second
            elif not covariance.depends_on_image:
                assert torch.equal(first.variance, second.variance)

    def test_an_image_does_not_depend_on_its_neighbours(
        self, covariance: ReverseCovariance, denoiser: Denoiser
    ) -> None:
        for kernel in self.kernels(denoiser):
            posterior = self.posterior(covariance, denoiser, int(kernel.level_t.index or 0))
            noise = torch.ones_like(posterior.mean)
            whole = covariance(posterior, kernel)
            for i in range(4):
                part = slice(i, i + 1)
                alone = covariance(posterior.rows(part), kernel)
                if whole is None or alone is None:
                    assert whole is alone
                else:
                    _close(alone.colour(noise[part]), whole.colour(noise)[part], 1e-5)

    def test_knows_what_is_left_of_x_0_or_says_that_it_does_not(
        self, covariance: ReverseCovariance, denoiser: Denoiser
    ) -> None:
        for n in self.steps:
            posterior, level = self.posterior(covariance, denoiser, n), denoiser.schedule.level(n)
            if not covariance.knows_x_0:
                with pytest.raises(InputError):
                    covariance.posterior_covariance(posterior, level, denoiser.schedule)
                continue
            found = covariance.posterior_covariance(posterior, level, denoiser.schedule)
            assert found.structure.shape == denoiser.shape
            assert found.variance.dtype == posterior.mean.dtype
            assert bool(torch.isfinite(found.variance).all())
            assert bool((found.variance >= 0).all())

    def test_in_the_sampler(self, covariance: ReverseCovariance, denoiser: Denoiser) -> None:
        for eta in self.etas:
            sampler = Sampler(denoiser, covariance, list(self.steps), eta)
            images = sampler.sample(5, seed=1, batch_size=5)
            assert images.shape == (5, *denoiser.shape)
            assert bool(torch.isfinite(images).all())
            _close(sampler.sample(5, seed=1, batch_size=2), images, 1e-4)

    def test_in_the_likelihood_bound(self, covariance: ReverseCovariance, denoiser: Denoiser) -> None:
        data = np.random.default_rng(3).uniform(-0.9, 0.9, (6, *denoiser.shape)).astype(np.float32)
        for eta in self.etas:
            bound = density_bound(denoiser, covariance, data, list(self.steps), eta=eta, decoder_variance=0.01)
            assert math.isfinite(bound.value)
            assert (bound.per_step[:-1] >= -1e-9).all(), "Kullback-Leibler terms are at least 0"


def _identity(structure: Structure) -> torch.Tensor:
    return torch.eye(structure.d, dtype=torch.float64).reshape(-1, *structure.shape)


def _matrix(columns: torch.Tensor) -> Float64Array:
    return columns.flatten(1).numpy()


def _full(structure: Structure) -> tuple[int, ...]:
    """The shape of its variances with one axis for each of an image's."""
    missing = len(structure.shape) - len(structure.variance_shape)
    return (*(1,) * missing, *structure.variance_shape)


def _close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
