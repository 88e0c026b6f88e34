"""What sampler and likelihood share: the contract of every covariance, one for each step, rows, a visitor."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import small_heads
import torch
from small_likelihoods import SCHEDULE, SHAPE, STEPS, Network, pictures, small_denoiser

import diffusion_var as dv
from diffusion_var.covariance import reverse
from diffusion_var.covariance.lists import VarianceLists
from diffusion_var.covariance.reverse import ReverseCovariance, StepCovariances, StructuredCovariance
from diffusion_var.process.structure import make_structure
from diffusion_var.testing import CovarianceContract


class Counted(ReverseCovariance):
    """Counts how often it is asked for each step."""

    name = "counted"

    def __init__(self, depends_on_image: bool = False) -> None:
        self.depends_on_image = depends_on_image
        self.asked: list[tuple[int, int]] = []

    def __call__(self, posterior: dv.Posterior | None, kernel: dv.ReverseKernel) -> StructuredCovariance | None:
        self.asked.append((kernel.t, kernel.s))
        if kernel.t == 12:
            return None  # "exactly zero" is worth keeping too
        assert posterior is not None
        variance = kernel.beta * (1 + posterior.mean.square() if self.depends_on_image else torch.ones(SHAPE))
        return StructuredCovariance(make_structure("pixel", SHAPE), variance)


KERNELS = [dv.ReverseKernel(SCHEDULE, t, s) for t, s in ((100, 40), (100, 12), (12, 1))]


def posterior(seed: int) -> dv.Posterior:
    mean = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, *SHAPE)))
    return dv.Posterior(mean, mean)


def test_a_step_is_computed_once_and_known_by_both_its_ends() -> None:
    covariance = Counted()
    steps = StepCovariances(covariance)
    found = [[steps.at(posterior(seed), kernel) for kernel in KERNELS] for seed in (0, 1)]
    assert covariance.asked == [(100, 40), (100, 12), (12, 1)]
    assert all(one is other for one, other in zip(*found, strict=True))
    first, second, none = found[0]
    assert none is None
    assert first is not None
    assert second is not None
    assert not torch.equal(first.variance, second.variance)


def test_what_depends_on_the_image_is_computed_every_time() -> None:
    covariance = Counted(depends_on_image=True)
    steps = StepCovariances(covariance)
    one, other = (steps.at(posterior(seed), KERNELS[0]) for seed in (0, 1))
    assert len(covariance.asked) == 2
    assert one is not None
    assert other is not None
    assert not torch.equal(one.variance, other.variance)


def test_what_does_not_fit_into_the_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, asked in ((4 * math.prod(SHAPE), 1), (4 * math.prod(SHAPE) - 1, 2)):
        monkeypatch.setattr(reverse, "_KEPT_BYTES", room)
        covariance = Counted()
        steps = StepCovariances(covariance)
        first, second = (steps.at(posterior(0), KERNELS[0]) for _ in range(2))
        assert len(covariance.asked) == asked
        assert first is not None
        assert second is not None
        assert torch.equal(first.variance, second.variance)


def test_the_cap_is_for_the_step_to_the_last_level_alone() -> None:
    limit = float(KERNELS[2].beta) / 2
    for last, capped in (([SCHEDULE.level(1)], True), ([SCHEDULE.level(12)], False), ([], False)):
        steps = StepCovariances(Counted(depends_on_image=True), limit, last)
        found = steps.at(posterior(0), KERNELS[2])
        assert found is None  # 12 to 1 is zero here
        one = steps.at(posterior(0), dv.ReverseKernel(SCHEDULE, 40, 1))
        assert one is not None
        assert (float(one.variance.max()) <= limit) == capped


def test_likelihood_of_many_images_computes_each_step_once() -> None:
    covariance = Counted()
    dv.bits_per_dim(small_denoiser(), covariance, pictures(20), [1, 40, 100], batch_size=4)
    assert covariance.asked == [(100, 40), (40, 1)]


# ---- rows of a posterior ------------------------------------------------------------------------------------------


def test_rows_are_those_of_every_tensor() -> None:
    tensors = {
        name: torch.from_numpy(np.random.default_rng(k).normal(size=(6, 2, 3, 3)))
        for k, name in enumerate(("mean", "eps", "range", "features"))
    }
    whole, part = dv.Posterior(**tensors), slice(2, 5)
    rows = whole.rows(part)
    for name, tensor in tensors.items():
        assert torch.equal(getattr(rows, name), tensor[2:5]), name
    bare = dv.Posterior(tensors["mean"], tensors["eps"]).rows(part)
    assert torch.equal(bare.mean, tensors["mean"][2:5])
    assert torch.equal(bare.eps, tensors["eps"][2:5])
    assert bare.range is None
    assert bare.features is None


# ---- Sampler.stream(visit=...) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_visitor_sees_every_state_of_every_batch(eta: float) -> None:
    """Replayed from what it saw: each state's mean is the next network call's, and the last is the image."""
    network, visits, given = Network(), [], []
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].clone()))
    sampler = dv.Sampler(small_denoiser(network), dv.FixedSmall(), STEPS, eta)

    def visit(kernel: dv.ReverseKernel, x_s: torch.Tensor) -> None:
        visits.append((kernel, x_s.clone()))

    batches = list(sampler.stream(range(5), seed=3, batch_size=3, visit=visit))
    steps = [(100, 40), (40, 12), (12, 1), (1, 0)]
    assert [(kernel.t, kernel.s) for kernel, _ in visits] == steps * 2
    assert [len(x_s) for _, x_s in visits] == [3] * 4 + [2] * 4
    for k in (0, 1, 2, 4, 5, 6):  # what is seen at s is what the network is given there
        assert torch.equal(visits[k][1], given[k + 1])
    for batch, last in zip(batches, (visits[3][1], visits[7][1]), strict=True):
        assert torch.equal(batch, last.clamp(-1, 1))


def test_visiting_changes_no_image() -> None:
    sampler = dv.Sampler(small_denoiser(), dv.FixedLarge(), STEPS)
    seen: list[Any] = []
    visited = torch.cat(list(sampler.stream(range(4), batch_size=2, visit=lambda kernel, x: seen.append(kernel.s))))
    assert torch.equal(visited, sampler.sample(4, batch_size=2))
    assert seen == [40, 12, 1, 0] * 2


# ---- every covariance of the package keeps the contract ------------------------------------------------------------


class Exact(CovarianceContract):
    """On exact Gaussian data, whose table is measured at all steps."""

    shape: tuple[int, ...] = (3, 4, 4)

    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return gaussian(self.shape)


@cache
def gaussian(shape: tuple[int, ...]) -> dv.Denoiser:
    variance = np.exp(np.random.default_rng(1).uniform(-3, 0, shape))
    return dv.oracles.GaussianDenoiser(SCHEDULE, 0.1, variance)


@cache
def table(shape: tuple[int, ...]) -> dv.VarianceTable:
    model = gaussian(shape)
    return dv.estimate(model, model.sample(200, seed=2), 0.5, indices=[1, 30, 100], progress=False)


class TestFixedSmall(Exact):
    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.FixedSmall()


class TestFixedLarge(Exact):
    etas = (1.0,)

    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.FixedLarge()


class TestScaled(Exact):
    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.Scaled(dv.Analytic(table(self.shape), structure="dct"), 0.5)


class TestAnalytic(Exact):
    @pytest.fixture(params=["isotropic", "channel", "pixel", "dct"])
    def covariance(self, request: pytest.FixtureRequest) -> ReverseCovariance:
        return dv.Analytic(table(self.shape), structure=request.param)


class TestAnalyticOfVectors(TestAnalytic):
    shape = (5,)


class TestAnalyticOfSignals(TestAnalytic):
    shape = (2, 9)


class TestAnalyticOfVideos(TestAnalytic):
    shape = (3, 2, 3, 2)


class TestVarianceLists(Exact):
    @pytest.fixture(params=["isotropic", "channel"])
    def covariance(self, request: pytest.FixtureRequest) -> ReverseCovariance:
        return VarianceLists.from_table(table(self.shape), structure=request.param)


class TestLearnedRange(Exact):
    etas = (1.0,)

    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        def network(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.5 * torch.tanh(x_t), torch.tanh(2 * x_t)], dim=1)

        return dv.Denoiser(network, SCHEDULE, shape=self.shape, clip=None)

    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.LearnedRange(list(self.steps))


class TestLearnedVariance(TestLearnedRange):
    @pytest.fixture
    def covariance(self) -> ReverseCovariance:
        return dv.LearnedVariance(respaced=True)


class TestHead(CovarianceContract):
    steps = (1, 20, 50)

    @pytest.fixture
    def denoiser(self) -> dv.Denoiser:
        return small_heads.denoiser()

    @pytest.fixture(params=[{}, {"target": "factor", "structure": "dct"}], ids=["npr", "factor"])
    def covariance(self, request: pytest.FixtureRequest) -> ReverseCovariance:
        return small_heads.head(scale=0.3, **request.param)
