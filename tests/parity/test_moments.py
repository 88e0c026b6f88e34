"""What the estimator measures, from its own pass over given draws: Γ = E‖ε̂‖²/d, the three estimators, and what clipping
does at η < 1; and variances from published arrays."""

from functools import cache

import numpy as np
import parity_cases as cases
import pytest
import torch
from make_golden import golden
from parity_models import network, schedule_of
from parity_table import agree, differ

import diffusion_var as dv
from diffusion_var.covariance.analytic import optimal_variance
from diffusion_var.variance import shards
from diffusion_var.variance.estimators import score_norm
from diffusion_var.variance.moments import CONTROLS, TARGETS

GOLDEN = golden("moments")


class GivenDraws:
    """In place of the estimator's random streams."""

    def at(self, seed, purpose, n, shard):
        self.place = n, shard
        return self

    def integers(self, high, size):
        return np.array(cases.picks_of(*self.place))

    def standard_normal(self, out, dtype):
        out[...] = cases.noise_of_shard(*self.place)


@cache
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "Streams", GivenDraws)
        denoiser = dv.Denoiser(network, schedule_of("linear"), shape=cases.SHAPE)
        raw = torch.from_numpy(cases.population()[0])
        return dv.estimate(denoiser, raw, 1e3, indices=cases.MOMENT_INDICES, progress=False)


def raw_mean(name, n, structure="isotropic"):
    """The plain mean over the draws, without control variates."""
    place = list(table().indices).index(n)
    assert table().counts[place] == cases.DRAWS
    return table().moments[structure].means[place, [*TARGETS, *CONTROLS].index(name)]


@pytest.mark.parametrize("n", cases.MOMENT_INDICES)
def test_moments_of_the_draws(n):
    stored, schedule = GOLDEN[str(n)], table().schedule
    gamma = raw_mean("eps_square", n)
    agree(f"E eps² per dimension: index {n}", gamma, stored["gamma"], 6e-6, "each")
    agree(f"E (mean − mu)²: index {n}", raw_mean("mean_square", n), stored["spread"], 6e-6, "each")
    agree(f"residual: index {n}", raw_mean("error_square", n), stored["error"], 6e-6, "each")
    agree(f"residual by pixels: index {n}", raw_mean("error_square", n, "pixel"), stored["pixel"], 6e-6, "each")
    own = score_norm(gamma, schedule.alpha[n], schedule.sigma[n])
    agree(f"score_norm: index {n}", own, stored["score_norm"], 6e-6, "each")
    l = float(table().data.pixel_variance.mean())
    agree(f"data_variance: index {n}", l - raw_mean("mean_square", n), GOLDEN["data_variance"] - stored["spread"],
          2e-5, "each")  # fmt: skip


@pytest.mark.parametrize("n", cases.MOMENT_INDICES)
def test_the_control_variates_stay_within_the_plain_mean_s_error(n):
    """What the table answers is the same mean, with less of the draws' noise."""
    plain = GOLDEN[str(n)]["error"]
    # Draws of one shard are independent; squares of d numbers scatter by about √(2/d).
    plain_error = plain * np.sqrt(2.0 / cases.D / cases.DRAWS)
    assert abs(table().posterior_variance(n) - plain) < 4.0 * plain_error
    assert 0.0 < table().standard_error(n) < 1.5 * plain_error


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_clipping_below_eta_one(eta):
    """With clipping and the network's own ε̂ the error of a step's mean is not γ times that of x̂_0: the package's three
    moments give it, and λ² + γ² v, as published, does not."""
    kernel = dv.ReverseKernel(table().schedule, 300, 150, eta, "network")
    own = optimal_variance(kernel, *(raw_mean(name, 300) for name in TARGETS[2:]))
    direct = GOLDEN[f"step_{eta}"]
    agree(f"variance of a clipped step with the network's eps: eta {eta}", own, direct, 6e-6, "each")
    published = kernel.lambda2 + kernel.gain**2 * GOLDEN["300"]["error"]
    differ(f"λ² + γ² v for such a step, relative: eta {eta}", published, direct, 0.02, 1.0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_variances_of_published_arrays(name):
    """(σ²/α²)(1 − Γ), cut to [0, 1]; some of these Γ exceed 1, as noisy ones do."""
    gamma, alpha_bar = cases.gammas(name), cases.alpha_bars(name)
    assert (gamma[1:] > 1).sum() > 10
    published = np.clip((1.0 - alpha_bar[1:]) / alpha_bar[1:] * (1.0 - gamma[1:]), 0.0, 1.0)
    array = dv.VarianceTable.from_moments(schedule_of(name), eps_square=gamma)
    own = [array.posterior_variance(n, "score_norm") for n in range(1, cases.N + 1)]
    agree(f"variances of published arrays: {name}", own, published, 1e-10)


def test_noise_of_published_arrays_is_not_seen_in_them():
    """At high noise (1 − Γ) drowns in the draws' noise, and cut to [0, 1] it is 0 or 1 by chance: of the last tenth of
    the indices, here with an error of Γ of 1e-3 at most, hardly any is within 10 % of the true value."""
    gamma, alpha_bar = cases.gammas("linear"), cases.alpha_bars("linear")
    v = np.clip((1.0 - alpha_bar[1:]) / alpha_bar[1:] * (1.0 - gamma[1:]), 0.0, 1.0)
    true = 0.3 * (1.0 - alpha_bar[1:]) / (0.3 * alpha_bar[1:] + 1.0 - alpha_bar[1:])
    near = np.abs(v - true) < 0.1 * true
    assert near[:300].mean() > 0.9 > 0.1 > near[900:].mean()
    assert ((v[900:] == 0.0) | (v[900:] == 1.0)).mean() > 0.8


def test_cancellation_in_float32():
    """A code that computes 1 − Γ in float32 loses what Γ's rounding is of it: at high noise all of it."""
    gamma = np.float64(1.0) - np.float64(4.1e-8)  # v = 1e-3 × (σ²/α² = 2.4e4) at the linear schedule's last index
    single = 1.0 - float(np.float32(gamma))
    differ("1 − Γ in float32 near pure noise, relative: N", single, 1.0 - gamma, 0.3, 1.0)
