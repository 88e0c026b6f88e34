"""The contracts, run on what a user wrote outside the package; and that they find what is wrong."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from rowwise import RowAnalytic, Rows

import diffusion_var as dv
from diffusion_var.testing import CovarianceContract, StructureContract

SCHEDULE = dv.NoiseSchedule.linear(100, 1e-3, 0.1)
SHAPE = (2, 5, 3)
ROW_VARIANCE = np.broadcast_to(np.geomspace(0.01, 2.0, 5)[None, :, None], SHAPE)


@cache
def exact() -> tuple[dv.Denoiser, dv.VarianceTable]:
    """Data whose variances differ by row and by nothing else, and its table."""
    denoiser = dv.oracles.GaussianDenoiser(SCHEDULE, 0.0, ROW_VARIANCE)
    images = denoiser.sample(3000, seed=1)
    return denoiser, dv.estimate(denoiser, images, 0.01, indices=[1, 30, 100], structures=["pixel"], progress=False)


class TestRows(StructureContract):
    @pytest.fixture
    def structure(self) -> dv.Structure:
        return Rows(SHAPE)


class TestRowAnalytic(CovarianceContract):
    @pytest.fixture
    def covariance(self) -> dv.ReverseCovariance:
        return RowAnalytic(exact()[1])

    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return exact()[0]


def test_it_samples_and_scores_as_well_as_one_variance_a_pixel() -> None:
    """The truth has one variance a row, so that rows lose nothing to pixels and gain over one variance for all."""
    denoiser, table = exact()
    choices: list[dv.ReverseCovariance] = [
        RowAnalytic(table),
        dv.Analytic(table, structure="pixel"),
        dv.Analytic(table),
    ]
    images = denoiser.sample(500, seed=2)
    rows, pixels, one = (float(dv.density_bound(denoiser, c, images, [1, 30, 100])) for c in choices)
    assert rows < one - 0.05
    assert rows == pytest.approx(pixels, abs=0.005)
    quantised = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    limited = dv.Denoiser(denoiser_network, SCHEDULE, "sample", SHAPE, clip=None, data_range=(-1.0, 1.0))
    table = dv.estimate(limited, quantised, 0.1, indices=[1, 30, 100], structures=["pixel"], progress=False)
    assert 0 < float(dv.bits_per_dim(limited, RowAnalytic(table), quantised[:50], [1, 30, 100])) < 20
    spread = dv.Sampler(denoiser, choices[0], [30, 100]).sample(4000, seed=3, batch_size=4000).square().mean(0)
    expected = ROW_VARIANCE**2 / (ROW_VARIANCE + (SCHEDULE.sigma[30] / SCHEDULE.alpha[30]) ** 2)
    assert np.abs(spread.numpy() / expected - 1).max() < 0.12  # 4 standard errors of 4,000 squares, and the table's


def denoiser_network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return exact()[0](x_t, timestep.long() + 1).mean


# ---- what the contracts find -----------------------------------------------------------------------------------------


class Stretched(Rows):
    """Its basis is not orthonormal."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        return coefficients / 2


class Rooted(Rows):
    """Forgets the square root."""

    def colour(self, variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return variance * noise


class OfTheBatch(RowAnalytic):
    """One image's covariance depends on its neighbours."""

    depends_on_image = True

    def __call__(self, posterior: Any, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        found = super().__call__(posterior, kernel)
        return dv.StructuredCovariance(found.structure, found.variance * (1 + posterior.mean.square().mean()))


class Secretive(RowAnalytic):
    """Depends on the image and does not say so."""

    def __call__(self, posterior: Any, kernel: dv.ReverseKernel) -> dv.StructuredCovariance:
        found = super().__call__(posterior, kernel)
        return dv.StructuredCovariance(found.structure, found.variance * (1 + posterior.mean[0].square().mean()))


class Nameless(RowAnalytic):
    def identity(self) -> dict[str, Any]:
        return {"table": self.table}


def failures(contract: Any, **fixtures: Any) -> list[str]:
    """The names of the tests that fail."""
    found = []
    for name in dir(contract):
        if name.startswith("test_"):
            call = getattr(contract, name)
            wanted = call.__func__.__code__.co_varnames[1 : call.__func__.__code__.co_argcount]
            try:
                call(**{fixture: fixtures[fixture] for fixture in wanted})
            except (AssertionError, TypeError):
                found.append(name)
    return found


def structure_failures(structure: dv.Structure) -> list[str]:
    variance = torch.linspace(0.1, 2.0, 5, dtype=torch.float64).view(1, 5, 1)
    eye = torch.eye(structure.d, dtype=torch.float64).reshape(-1, *SHAPE)
    covariance = structure.matvec(variance, eye).flatten(1).numpy()
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *SHAPE)))
    fixtures = {"structure": structure, "variance": variance, "covariance": covariance, "images": images}
    return failures(StructureContract(), **fixtures)


def test_a_structures_faults_are_found() -> None:
    assert structure_failures(Rows(SHAPE)) == []
    assert "test_the_basis_is_orthonormal" in structure_failures(Stretched(SHAPE))
    assert "test_colour_is_the_symmetric_root" in structure_failures(Rooted(SHAPE))


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (OfTheBatch, "test_an_image_does_not_depend_on_its_neighbours"),
        (Secretive, "test_depends_on_the_image_only_if_it_says_so"),
        (Nameless, "test_says_what_it_is"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_covariances_faults_are_found(kind: type[RowAnalytic], test: str) -> None:
    denoiser, table = exact()
    assert test in failures(CovarianceContract(), covariance=kind(table), denoiser=denoiser)
    assert failures(CovarianceContract(), covariance=RowAnalytic(table), denoiser=denoiser) == []
    assert json.dumps(RowAnalytic(table).identity())
