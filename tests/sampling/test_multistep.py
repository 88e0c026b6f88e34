"""Second order by shares of a multistep drift and of the covariance: a whole drift is DPM-Solver++(2M), none is the
plain sampler, and every share has the second order, by closed forms of Gaussian data."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.sampling.multistep import best_share, width

FIRST, LAST = -5.0, 3.0  # log-SNR between which the steps are
VARIANCE = 0.3


@pytest.fixture(scope="module")
def mixture():
    stream = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 4, 4, generator=stream, dtype=torch.float64)
    return dv.oracles.MixtureDenoiser(dv.NoiseSchedule.linear(1000), means, [0.02, 0.1, 0.3])


def gaussian(schedule=None):
    schedule = dv.NoiseSchedule.linear(1000) if schedule is None else schedule
    return dv.oracles.MixtureDenoiser(schedule, np.zeros((1, 1, 1)), [VARIANCE])


def levels_of(denoiser, count):
    return [denoiser.schedule.level_at(float(v)) for v in np.linspace(FIRST, LAST, count + 1)]


def test_a_whole_share_is_dpm_solver(mixture):
    """As diffusers has it, whatever the covariance; which then adds nothing but λ², and that is 0."""
    steps = dv.steps.log_snr_levels(mixture.schedule, 8)
    theirs = dv.SolverSampler(mixture, "dpm_solver_pp", steps).sample(16, 0)
    for covariance in (dv.FixedSmall(), dv.ExactCovariance(mixture, "dct")):
        ours = dv.MultistepSampler(mixture, covariance, steps, share=1).sample(16, 0)
        assert torch.allclose(ours, theirs, atol=2e-5)


def test_a_whole_share_is_dpm_solver_between_levels_at_any_distance(mixture):
    """Each difference is over the distance of its own two levels."""
    steps = [mixture.schedule.level_at(v) for v in (-9.0, -6.0, -5.0, -1.0, 0.0, 3.5, 5.0, 9.0)]
    theirs = dv.SolverSampler(mixture, "dpm_solver_pp", steps).sample(16, 0)
    ours = dv.MultistepSampler(mixture, dv.FixedSmall(), steps, share=1).sample(16, 0)
    assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_no_share_is_the_plain_sampler(mixture, eta):
    covariance = dv.ExactCovariance(mixture, "dct")
    ours = dv.MultistepSampler(mixture, covariance, 5, eta, share=0).sample(8, 0)
    assert torch.equal(ours, dv.Sampler(mixture, covariance, 5, eta).sample(8, 0))


def test_noise_may_be_given_by_tau(mixture):
    covariance = dv.ExactCovariance(mixture, "dct")
    ours, plain = dv.MultistepSampler(mixture, covariance, 5, tau=0.6), dv.Sampler(mixture, covariance, 5, tau=0.6)
    assert [kernel.lambda2 for kernel in ours.kernels] == [kernel.lambda2 for kernel in plain.kernels]
    assert ours.kernels[0].lambda2 > 0.0
    assert all(kernel.lambda2 == 0.0 for kernel in dv.MultistepSampler(mixture, covariance, 5).kernels)


def test_the_rest_of_the_covariance(mixture):
    """λ² stays whole, γ² Cov[x_0|x_t] has 1 − a of it, and "auto" takes a from the step."""
    covariance, level = dv.ExactCovariance(mixture, "dct"), mixture.schedule.level
    sampler = dv.MultistepSampler(mixture, covariance, [200, 500, 800, 1000], 1.0)
    posterior = mixture(torch.zeros(2, 1, 4, 4), 500)
    kernel = sampler.kernels[2]
    h = 0.5 * (level(200).log_snr - level(500).log_snr)
    assert width(kernel) == pytest.approx(h)
    a = 1.0 / (1.0 + h**2)
    assert best_share(h) == a
    own, rest = covariance(posterior, kernel).variance, sampler.covariance(posterior, kernel).variance
    assert torch.allclose(rest, kernel.lambda2 + (1.0 - a) * (own - kernel.lambda2), rtol=1e-6)
    whole = sampler.covariance.posterior_covariance(posterior, level(500)).variance
    assert torch.equal(whole, covariance.posterior_covariance(posterior, level(500)).variance)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_rounding_leaves_below_lambda_square_is_nothing(mixture, eta):
    """It has no share, and is no negative variance where λ is 0."""

    class Below(dv.ExactCovariance):
        def __call__(self, posterior, kernel):
            found = super().__call__(posterior, kernel)
            return dv.StructuredCovariance(found.structure, kernel.lambda2 - 1e-9 * torch.ones_like(found.variance))

    sampler = dv.MultistepSampler(mixture, Below(mixture, "dct"), [200, 500, 1000], eta, share=0.5)
    kernel = sampler.kernels[1]
    found = sampler.covariance(mixture(torch.zeros(2, 1, 4, 4, dtype=torch.float64), 500), kernel).variance
    assert torch.equal(found, torch.full_like(found, kernel.lambda2))


def last_variance(denoiser, sampler):
    """Of x at the last level, by what every independent number contributes: all is linear, and nothing is random.

    Row i of the batch has the i-th of them, the first x or the noise of a step, as 1, and all others as 0.
    """
    kernels = sampler.kernels[:-1]
    start = kernels[0].level_t
    x = torch.zeros(len(kernels) + 1, 1, 1, dtype=torch.float64)
    x[0] = math.sqrt(start.alpha**2 * VARIANCE + start.sigma**2)  # the exact x_t
    before = None
    for i, kernel in enumerate(kernels, start=1):
        posterior = denoiser(x, kernel.level_t)
        x = sampler.step_mean(kernel, x, posterior, before)
        before = kernel, posterior.mean
        found = sampler.covariance(posterior, kernel)
        if found is not None:
            unit = torch.zeros_like(x)
            unit[i] = 1.0
            x = x + found.colour(unit)
    return float(x.square().sum())


def orders(share, eta, covariance=dv.ExactCovariance):
    errors = []
    for count in (128, 256, 512):
        denoiser = gaussian()
        levels = levels_of(denoiser, count)
        sampler = dv.MultistepSampler(denoiser, covariance(denoiser), levels, eta, share=share, low_start=True)
        end = levels[-1]
        errors.append(abs(last_variance(denoiser, sampler) - (end.alpha**2 * VARIANCE + end.sigma**2)))
    return np.log2(np.array(errors[:-1]) / errors[1:])


# The whole drift at η = 1 is left out: its error passes through 0 at these numbers of steps.
@pytest.mark.parametrize(("share", "eta"), [*product((0.25, 0.5), (0.0, 0.5, 1.0)), (1.0, 0.0), (1.0, 0.5)])
def test_every_share_is_of_second_order(share, eta):
    """Whatever λ² is. (No share at all is exact: a Gaussian step errs in third cumulants, which Gaussians have not.)"""
    assert orders(share, eta) == pytest.approx([2.0, 2.0], abs=0.15)


def test_the_best_share_is_not_of_a_lower_one():
    assert min(orders("auto", 0.0)) > 1.9


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_shares_that_do_not_add_up_are_of_first_order(eta):
    """Half of the drift, and of a covariance twice as large: three halves of what a step lacks."""
    twice = lambda denoiser: Twice(dv.ExactCovariance(denoiser))  # noqa: E731
    assert orders(0.5, eta, twice) == pytest.approx([1.0, 1.0], abs=0.2)


class Twice(dv.ReverseCovariance):
    """λ² I + 2 γ² Cov[x_0|x_t]."""

    name = "twice"

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, posterior, kernel):
        found = self.inner(posterior, kernel)
        return dv.StructuredCovariance(found.structure, 2.0 * found.variance - kernel.lambda2)


def test_levels_without_signal_have_no_share():
    """Where log-SNR is infinite no derivative by it begins: the second step then goes without a drift too."""
    schedule = dv.NoiseSchedule.linear(1000).with_zero_terminal_snr()
    denoiser = gaussian(schedule)
    sampler = dv.MultistepSampler(denoiser, dv.ExactCovariance(denoiser), 5, share=0.5)
    assert [sampler.covariance.share_at(kernel) for kernel in sampler.kernels] == [0.0, 0.5, 0.5, 0.5, 0.0]
    assert bool(torch.isfinite(sampler.sample(4, 0)).all())


def test_images_do_not_depend_on_the_batch(mixture):
    sampler = dv.MultistepSampler(mixture, dv.ExactCovariance(mixture, "dct"), 5)
    assert torch.allclose(sampler.sample(5, 3, batch_size=2), sampler.sample(5, 3, batch_size=5), atol=1e-5)
    plain = dv.Sampler(mixture, dv.ExactCovariance(mixture, "dct"), 5, 0.0)
    assert sampler.facts() != plain.facts()


def test_shares_are_told_apart(mixture):
    """By the sampler's facts, and by its covariance's identity, which is no longer the inner one's."""
    covariance = dv.ExactCovariance(mixture, "dct")
    samplers = [dv.MultistepSampler(mixture, covariance, 5, share=share) for share in (0, 0.5, 1.0, "auto")]
    assert [sampler.facts()["multistep"] for sampler in samplers] == [0, 0.5, 1.0, "auto"]
    identities = [covariance.identity(), *(sampler.covariance.identity() for sampler in samplers)]
    assert len({repr(identity) for identity in identities}) == 5
    assert len({sampler.covariance.name for sampler in samplers}) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"share": 1.5}, 'share=1.5 must be a number from 0 to 1, or "auto"'),
        ({"share": "all"}, "share='all' must be a number from 0 to 1, or \"auto\""),
        ({"covariance": dv.FixedSmall()}, "says nothing of Cov"),
        ({"covariance": dv.Lanczos()}, "lanczos-3, no table is known by products alone, and a share"),
    ],
)
def test_what_is_refused(mixture, arguments, sentence):
    given = {"covariance": dv.ExactCovariance(mixture, "dct"), "steps": 4} | arguments
    with pytest.raises(dv.InputError, match=sentence.replace("(", r"\(")):
        dv.MultistepSampler(mixture, **given)
