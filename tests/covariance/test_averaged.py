"""Averages of a state-dependent covariance: over each image, which keeps the contract, and over a batch."""

from typing import Any

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE, SHAPE, small_denoiser

import diffusion_var as dv
from diffusion_var.covariance.reverse import ReverseCovariance, StructuredCovariance
from diffusion_var.process.structure import Channel, Pixel
from diffusion_var.testing import CovarianceContract

KERNEL = dv.ReverseKernel(SCHEDULE, 40, 12)


class OfImage(ReverseCovariance):
    """Variances of its own for each image, in any structure."""

    name = "of image"
    depends_on_image = True

    def __init__(self, kind: type[dv.Structure] = Pixel) -> None:
        self.kind = kind

    def __call__(self, posterior: Any, kernel: dv.ReverseKernel) -> StructuredCovariance:
        structure = self.kind(tuple(posterior.mean.shape[1:]))
        variance = structure.pool(0.1 + posterior.mean.square())
        return StructuredCovariance(structure, kernel.lambda2 + kernel.gain**2 * variance)


class TestOverTheImage(CovarianceContract):
    @pytest.fixture(params=[OfImage(Pixel), OfImage(Channel), dv.FixedSmall(), dv.EpsSquare()], ids=lambda c: c.name)
    def covariance(self, request: pytest.FixtureRequest) -> ReverseCovariance:
        return dv.Averaged(request.param)


class TestOverTheBatchOfWhatDoesNotDepend(CovarianceContract):
    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.Averaged(dv.FixedSmall(), over="batch")


def posterior(count: int = 5) -> dv.Posterior:
    mean = torch.from_numpy(np.random.default_rng(4).normal(size=(count, *SHAPE)))
    return dv.Posterior(mean, mean)


@pytest.mark.parametrize("kind", [Pixel, Channel])
def test_over_the_image_is_the_trace_and_over_the_batch_the_mean(kind: type[dv.Structure]) -> None:
    said = posterior()
    inner = OfImage(kind)(said, KERNEL)
    image, batch = (dv.Averaged(OfImage(kind), over=over)(said, KERNEL) for over in ("image", "batch"))  # type: ignore[arg-type]
    assert image is not None
    assert batch is not None
    traces = inner.matvec(torch.ones(5, *SHAPE, dtype=torch.float64)).flatten(1).mean(1)
    torch.testing.assert_close(image.variance.flatten(), traces, rtol=1e-12, atol=0)
    assert (image.structure.name, batch.structure.name) == ("isotropic", kind.name)
    torch.testing.assert_close(batch.variance, inner.variance.mean(0, keepdim=True), rtol=1e-12, atol=0)
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=(5, *SHAPE)))
    torch.testing.assert_close(batch.colour(noise), batch.variance.sqrt() * noise, rtol=1e-12, atol=0)


def test_over_a_batch_an_image_depends_on_the_others() -> None:
    model, steps = small_denoiser(), [1, 12, 40, 100]
    sampler = dv.Sampler(model, dv.Averaged(OfImage(), over="batch"), steps)
    together = sampler.sample(6, seed=1, batch_size=6)
    assert torch.equal(sampler.sample(6, seed=1, batch_size=6), together)  # the same batches give the same images
    assert float((sampler.sample(6, seed=1, batch_size=2) - together).abs().max()) > 1e-3
    own = dv.Sampler(model, dv.Averaged(OfImage(), over="image"), steps)
    assert float((own.sample(6, seed=1, batch_size=6) - own.sample(6, seed=1, batch_size=2)).abs().max()) < 1e-5
    # alone in its batch an image has its own covariance
    alone, inner = (dv.Sampler(model, c, steps).sample(1, seed=1) for c in (sampler.covariance, OfImage()))
    assert float((alone - inner).abs().max()) < 1e-6


def test_it_says_what_it_averages() -> None:
    found = dv.Averaged(dv.EpsSquare(), over="batch")
    assert found.name == "eps-square, mean over the batch"
    assert found.identity() == {"name": "eps-square", "most": 1.0, "averaged": "batch"}
