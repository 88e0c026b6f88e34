"""Terms of the likelihood bound, on the same images, noise and network outputs; and the decoder, which is exact here
and approximate in the published codes."""

import math

import numpy as np
import parity_cases as cases
import pytest
import torch
from make_golden import golden
from parity_models import covariance_of, doubled, network, schedule_of
from parity_table import agree, differ
from published_likelihood import approximate_cdf, exact_cdf

import diffusion_var as dv
from diffusion_var.likelihood.bound import Bound
from diffusion_var.likelihood.decoder import discretised_log_prob
from diffusion_var.likelihood.terms import prior_kl

TOLERANCES = {torch.float32: 6e-6, torch.float64: 1e-10}
GOLDEN = golden("terms")
#: Nats below which a term is a difference of nearly equal numbers in any code.
TINY = 1e-3
#: The largest error of the published codes' cdf, at |x| = 2.25 about (`test_the_published_cdf_errs_by_so_much`).
CDF_ERROR = 2.4e-4


def terms_of(bound, noise, dtype):
    """(steps + decoder, BATCH) nats, the noisiest step first; and the prior's."""
    x_0 = torch.from_numpy(cases.images()[1]).to(dtype)
    rows = []
    for evaluation, eps in zip(bound.terms.evaluations, noise, strict=False):
        eps = torch.from_numpy(eps).to(dtype)
        level = evaluation.level
        posterior = bound.denoiser(level.alpha * x_0 + level.sigma * eps, level)
        rows.append(bound.terms.at(evaluation, x_0, eps, posterior)[:, 0].numpy())
    last = bound.kernels[0].level_t
    prior = prior_kl(x_0, last.alpha, last.sigma, bound.denoiser.schedule.prior_std_at(last))
    return rows[:-1], rows[-1], prior.numpy()


def compare(name, bound, steps, dtype):
    precision = str(dtype).removeprefix("torch.")
    middle, decoder, prior = terms_of(bound, cases.noise_of(len(steps), seed=2), dtype)
    stored = GOLDEN[name]
    agree(f"prior KLs, {precision}: {name}", prior, stored["prior"], TOLERANCES[dtype], "each", TINY)
    agree(f"step KLs, {precision}: {name}", middle, stored["steps"], TOLERANCES[dtype], "each")
    agree(f"decoder terms, {precision}: {name}", decoder, stored["decoder"], TOLERANCES[dtype], "each")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", cases.TERMS)
def test_terms_of_analytic_dpm(name, dtype):
    schedule_name, steps, choice, clip = cases.TERMS[name]
    schedule = schedule_of(schedule_name)
    options = {"shape": cases.SHAPE, "clip": (-1.0, 1.0) if clip else None, "data_range": (-1.0, 1.0)}
    covariance = covariance_of(schedule, steps, {"choice": choice, "v": "gamma" if choice == "optimal" else None})
    decoder = dv.ReverseKernel(schedule, 2, 1).beta_tilde
    compare(name, Bound(dv.Denoiser(network, schedule, **options), covariance, steps, 1.0, decoder), steps, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", cases.RESPACED_TERMS)
def test_terms_of_improved_ddpm(name, dtype):
    """On a respaced process its decoder has β̃ of the second kept step to the first; or the network's own variance."""
    schedule_name, sections, kind, clip = cases.RESPACED_TERMS[name]
    steps = dv.steps.respaced(cases.N, sections)
    covariance = {"small": dv.FixedSmall(), "large": dv.FixedLarge(), "range": dv.LearnedRange(steps)}[kind]
    schedule = schedule_of(schedule_name)
    options = {"shape": cases.SHAPE, "clip": (-1.0, 1.0) if clip else None, "data_range": (-1.0, 1.0)}
    decoder = "covariance" if kind == "range" else "respaced"
    compare(name, Bound(dv.Denoiser(doubled, schedule, **options), covariance, steps, 1.0, decoder), steps, dtype)


def masses(std):
    """−log P of the decoder's grid of cases, as the package has it."""
    level = torch.tensor([k for k in cases.DECODER_LEVELS for _ in cases.DECODER_SHIFTS])
    shift = torch.tensor(cases.DECODER_SHIFTS * len(cases.DECODER_LEVELS), dtype=torch.float64)
    mean = level.double() / 127.5 - 1.0 + shift * std
    variance = torch.tensor(std**2, dtype=torch.float64)
    return -discretised_log_prob(level, mean, variance, 256, (-1.0, 1.0)).numpy()


@pytest.mark.parametrize("std", cases.DECODER_STDS)
def test_the_decoder_is_exact(std):
    agree(
        f"decoder alone, 0 to 6 standard deviations off: {std}",
        masses(std),
        golden("decoder")[str(std)]["exact"],
        1e-10,
        "each",
        TINY,
    )


def test_the_published_cdf_errs_by_so_much():
    found = max(abs(exact_cdf(x) - approximate_cdf(x)) for x in np.linspace(-8, 8, 16001))
    assert 0.5 * CDF_ERROR < found <= CDF_ERROR


@pytest.mark.parametrize("std", cases.DECODER_STDS)
def test_the_published_decoder_is_near(std):
    """Its masses are wrong by no more than twice its cdf's error, and 1e-12 where there is less."""
    ours, theirs = np.exp(-masses(std)), np.exp(-np.array(golden("decoder")[str(std)]["published"]))
    differ(
        f"decoder's masses with the published cdf, absolute: {std}",
        ours,
        theirs,
        1e-6,
        2 * CDF_ERROR + 1e-12,
        "absolute",
    )


def test_far_from_its_mean_the_published_decoder_knows_no_more_than_1e_12():
    """Where the mean is off by ten standard deviations the exact decoder says what that costs, the published one 27.6
    nats whatever it is."""
    level, mean = torch.tensor([128]), torch.tensor([128 / 127.5 - 1.0 + 0.1], dtype=torch.float64)
    exact = -float(discretised_log_prob(level, mean, torch.tensor(1e-4, dtype=torch.float64), 256, (-1.0, 1.0)))
    assert exact > 40 > 27.7 > -math.log(1e-12)


#: How far apart the two decoders are, in bits/dim. Where single pixels are more than seven standard deviations off
#: ("small" and "optimal": the last step begins at index 3, with β̃ of 2 → 1) the floor of 1e-12 decides.
IN_BITS = {"small": (0.1, 1.0), "optimal": (0.1, 1.0)}


@pytest.mark.parametrize("name", [*cases.TERMS, *cases.RESPACED_TERMS])
def test_what_the_published_decoder_changes_in_the_bound(name):
    exact, approximate = (np.array(GOLDEN[name][key]) / cases.D / math.log(2) for key in DECODERS)
    outliers = ", outliers" if name in IN_BITS else ""
    differ(
        f"decoder with the published cdf, bits/dim{outliers}: {name}",
        exact,
        approximate,
        *IN_BITS.get(name, (1e-4, 0.02)),
        unit="absolute",
    )


DECODERS = "decoder", "published_decoder"
