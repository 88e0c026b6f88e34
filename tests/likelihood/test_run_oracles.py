"""Where the bound's noise comes from, what its two standard errors mean, and the steps that are drawn at random."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from small_likelihoods import SCHEDULE, STEPS, Network, pictures, small_denoiser

import diffusion_var as dv
from diffusion_var.likelihood.rows import strata_of
from diffusion_var.likelihood.run import noise_key
from diffusion_var.likelihood.terms import Evaluation

#: A decoder that does not drown the other terms of this small model.
OPTIONS: dict[str, Any] = {"steps": STEPS, "decoder_variance": 0.01}


def bound(images: torch.Tensor, covariance: Any = None, **options: Any) -> dv.LikelihoodBound:
    return dv.bits_per_dim(small_denoiser(), covariance or dv.FixedLarge(), images, **{**OPTIONS, **options})


# ---- common random numbers ----------------------------------------------------------------------------------------


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (bound(pictures(5), seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.per_step, again.per_step)
    assert first.value != other.value
    assert first.prior == other.prior  # no noise in it


def test_noise_belongs_to_image_draw_and_index() -> None:
    """So that methods compared with each other see the same noise, whatever their steps."""
    images = pictures(6)
    long, short = (bound(images, steps=steps) for steps in ([1, 5, 12, 40, 100], [1, 12, 70]))
    assert long.decoder == short.decoder
    assert long.per_step[long.labels.index("12 to 5")] != short.per_step[short.labels.index("12 to 1")]
    # the mean's error is the same in another covariance: only what is made of it differs
    small, large = bound(images, dv.FixedSmall()), bound(images)
    for k, kernel in enumerate([dv.ReverseKernel(SCHEDULE, t, s) for t, s in ((100, 40), (40, 12), (12, 1))], 1):
        squares = []
        for found, variance in ((small, kernel.lambda2), (large, kernel.beta)):
            ratio = kernel.lambda2 / variance
            squares.append((2 * math.log(2) * found.per_step[k] - ratio + 1 + math.log(ratio)) * variance)
        assert squares[0] == pytest.approx(squares[1], rel=1e-4)
    assert bound(images, draws=2).value != large.value  # another draw is other noise


def test_no_global_random_numbers_are_read_or_written() -> None:
    np.random.seed(0)  # noqa: NPY002 (the global generator is what is tested)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = bound(pictures(3), step_samples=1, draws=2)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    torch.manual_seed(1)
    assert bound(pictures(3), step_samples=1, draws=2).value == first.value


# ---- the two standard errors --------------------------------------------------------------------------------------


def spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1))


def root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize(("draws", "step_samples"), [(2, None), (4, None), (2, 1)])
def test_noise_error_is_the_spread_over_seeds(draws: int, step_samples: int | None) -> None:
    """Of the same images; the standard error of 80 standard deviations' ratio is about 0.09."""
    images = pictures(12)
    found = [bound(images, seed=seed, draws=draws, step_samples=step_samples, batch_size=12) for seed in range(80)]
    measured_spread = spread([each.value for each in found])
    assert root_mean_square([each.noise_error for each in found]) == pytest.approx(measured_spread, rel=0.3)
    # The images' own spread would be seen if the two were mixed up.
    assert step_samples or root_mean_square([each.standard_error for each in found]) > 1.3 * measured_spread


@pytest.mark.parametrize(("draws", "step_samples"), [(1, None), (2, 1)])
def test_standard_error_is_the_spread_over_sets_of_images(draws: int, step_samples: int | None) -> None:
    images = pictures(80 * 12, seed=3)
    found = [
        bound(part, seed=k, draws=draws, step_samples=step_samples, batch_size=12)
        for k, part in enumerate(images.split(12))
    ]
    expected = np.std([each.per_step for each in found], axis=0, ddof=1)
    errors = np.sqrt(np.mean([np.square(each.per_step_error) for each in found], axis=0))
    np.testing.assert_allclose(errors, expected, rtol=0.3)
    whole = root_mean_square([each.standard_error for each in found])
    assert whole == pytest.approx(spread([each.value for each in found]), rel=0.3)


def test_errors_fall_with_the_square_root_of_their_counts() -> None:
    images = pictures(400, seed=4)
    small, large = bound(images[:100], draws=2), bound(images, draws=2)
    assert small.standard_error / large.standard_error == pytest.approx(2, rel=0.2)
    assert small.noise_error / large.noise_error == pytest.approx(2, rel=0.2)
    more = bound(images[:100], draws=8)
    assert small.noise_error / more.noise_error == pytest.approx(2, rel=0.2)
    assert more.standard_error < small.standard_error


# ---- sampled steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_samples", [1, 3, 8])
def test_sampled_steps_are_unbiased(step_samples: int) -> None:
    """Against all steps of the same images and noise, so that the choice of steps is all that differs."""
    images, differences = pictures(8), []
    for seed in range(40):
        options: dict[str, Any] = {"seed": seed, "steps": 12, "draws": 2, "batch_size": 5}
        full, sampled = (bound(images, step_samples=count, **options) for count in (None, step_samples))
        assert sampled.prior == full.prior
        assert sampled.decoder == pytest.approx(full.decoder, rel=1e-6)  # always evaluated
        differences.append(sampled.per_step - full.per_step)
    each = np.array(differences)[:, 1:-1]
    error = each.std(0, ddof=1) / math.sqrt(40)
    assert (np.abs(each.mean(0)) < 4 * error + 1e-6).all()  # (groups of one are not random)
    total = each.sum(1)
    assert 0 < total.std(ddof=1) / math.sqrt(40) < 0.2 * full.value
    assert abs(total.mean()) < 4 * total.std(ddof=1) / math.sqrt(40)


@pytest.mark.parametrize(("steps", "step_samples"), [(12, 1), (12, 4), (12, 10), (12, 11), (12, 50), (1, 1), (2, 3)])
def test_sampled_steps_are_one_of_each_group(steps: int, step_samples: int) -> None:
    network = Network()
    found = dv.bits_per_dim(
        small_denoiser(network), dv.FixedLarge(), pictures(1), steps, step_samples=step_samples, decoder_variance=0.01
    )
    count = min(step_samples, steps - 1)
    assert found.evaluations == network.rows == count + 1
    assert len(found.per_step) == steps + 1
    middle = np.flatnonzero(found.per_step[1:-1])
    assert len(middle) == count
    falling = found.steps[::-1]
    kernels = [dv.ReverseKernel(small_denoiser().schedule, t, s) for t, s in pairwise(falling)]
    groups = strata_of([Evaluation(k.level_t, ((i, k),)) for i, k in enumerate(kernels)], count) if count else []
    assert [k for group in groups for k in group] == list(range(steps - 1))
    for k, group in zip(middle, groups, strict=True):
        assert k in group


def test_groups_of_steps_cost_about_the_same() -> None:
    """log((1 + SNR_s)/(1 + SNR_t)) is twice the KL of a step for data of variance 1."""
    schedule = dv.NoiseSchedule.linear(1000)
    kernels = [dv.ReverseKernel(schedule, t, t - 1) for t in range(1000, 1, -1)]
    groups = strata_of([Evaluation(k.level_t, ((i, k),)) for i, k in enumerate(kernels)], 10)
    v = 1 / (1 + np.exp(schedule.log_snr))
    costs = np.array([math.log1p(k.gain**2 * v[k.t] / k.lambda2) for k in kernels])
    shares = np.array([costs[group].sum() for group in groups]) / costs.sum()
    assert np.concatenate(groups).tolist() == list(range(999))
    assert len(groups[0]) > 20 * len(groups[-1])
    assert np.abs(shares - 0.1).max() < costs.max() / costs.sum()


def test_the_dear_steps_are_sampled_apart() -> None:
    """With equal numbers of steps in the groups the spread is many times as large."""
    denoiser = dv.oracles.GaussianDenoiser(dv.NoiseSchedule.linear(1000), 0.0, np.full((1, 4, 4), 0.3))
    data = denoiser.sample(200, seed=1)
    full = dv.density_bound(denoiser, dv.FixedLarge(), data, 200, decoder_variance=0.01)
    some = dv.density_bound(denoiser, dv.FixedLarge(), data, 200, decoder_variance=0.01, step_samples=20)
    assert abs(some.value - full.value) < 4 * some.standard_error
    assert some.standard_error < 3 * full.standard_error


def test_images_and_draws_have_their_own_steps() -> None:
    network = Network()
    told: list[int] = []
    network.register_forward_pre_hook(lambda module, given: told.extend(given[1].tolist()))
    dv.bits_per_dim(small_denoiser(network), dv.FixedLarge(), pictures(30), 100, step_samples=1, draws=2)
    counts = np.bincount(told, minlength=100)
    assert counts[0] == 60  # the decoder's, every time
    assert counts.sum() == 120
    assert (counts[1:] > 0).sum() > 30


# ---- noise off the grid ---------------------------------------------------------------------------------------------


def test_noise_belongs_to_the_level_off_the_grid_too() -> None:
    """Two levels have noise of their own, and one level has the same whatever the others are."""
    seen: dict[float, torch.Tensor] = {}

    def spy(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for row, told in zip(x_t, timestep.tolist(), strict=True):
            seen[told] = row.clone()
        return torch.zeros_like(x_t)

    def noise(levels: list[dv.NoiseLevel]) -> list[torch.Tensor]:
        seen.clear()
        denoiser = small_denoiser(spy, prediction="sample", clip=None)
        dv.density_bound(denoiser, dv.FixedSmall(), torch.zeros(1, 3, 4, 4), levels, decoder_variance=0.1)
        return [seen[torch.tensor(level.timestep).item()] / level.sigma for level in levels]

    a, b, c = dv.steps.sigmas(SCHEDULE, [0.9, 0.4, 0.1])
    (first, second), (again, third) = noise([a, b]), noise([a, c])
    torch.testing.assert_close(first, again)
    correlations = torch.corrcoef(torch.stack([first.flatten(), second.flatten(), third.flatten()]))
    assert float((correlations - torch.eye(3)).abs().max()) < 0.6  # 48 numbers each
    keys = [noise_key(SCHEDULE, level) for level in (a, b, c, SCHEDULE.level(5))]
    assert len(set(keys)) == 4
    assert keys[3] == 5
