"""Image-dependent covariances from given outputs of a head, as the papers' sampler has them: SN, NPR, OCM."""

from functools import cache

import numpy as np
import parity_cases as cases
import pytest
import torch
from make_golden import golden
from parity_models import network, schedule_of
from parity_table import agree, differ

import diffusion_var as dv
from diffusion_var.models.heads import HeadNetwork

GOLDEN = golden("heads")
FEATURES = 4, *cases.SHAPE[1:]


@cache
def table():
    """Of the network, unclipped, so that a step takes γ² v; the values do not matter, since a head's ρ is relative."""
    denoiser = dv.Denoiser(network, schedule_of("linear"), shape=cases.SHAPE, clip=None, data_range=(-1.0, 1.0))
    indices = sorted({t for t, _, _ in cases.HEAD_STEPS})
    raw = torch.from_numpy(cases.population()[0])
    return dv.estimate(denoiser, raw, 1e3, indices=indices, progress=False)


def reverse_variance(kind, t, s, eta):
    """Σ of a step, with the head's network saying `head_output`."""
    made = HeadNetwork("simple", FEATURES, cases.SHAPE)
    output = torch.from_numpy(cases.head_output(kind, t))
    made.forward = lambda features, time: output
    head = dv.Head(made, table(), dv.HeadSpec(target=kind, output="papers"))
    eps, x = torch.from_numpy(cases.head_eps(t)), torch.from_numpy(cases.head_input(t))
    level = table().schedule.level(t)
    posterior = dv.Posterior((x - level.sigma * eps) / level.alpha, eps, None, torch.zeros(cases.BATCH, *FEATURES))
    return head(posterior, dv.ReverseKernel(table().schedule, t, s, eta)).variance.numpy()


@pytest.mark.parametrize("kind", cases.HEADS)
@pytest.mark.parametrize(("t", "s", "eta"), cases.HEAD_STEPS)
def test_covariances_of_heads(kind, t, s, eta):
    stored = GOLDEN[f"{kind}_{t}_{s}_{eta}"]
    agree(
        f"covariances of {kind} heads: {t} to {s}, eta {eta}", reverse_variance(kind, t, s, eta), stored, 6e-6, "each"
    )


def posterior_of(t):
    """Of `head_input` at index t."""
    eps, x = torch.from_numpy(cases.head_eps(t)), torch.from_numpy(cases.head_input(t))
    level = table().schedule.level(t)
    return dv.Posterior((x - level.sigma * eps) / level.alpha, eps)


@pytest.mark.parametrize(("t", "s", "eta"), cases.HEAD_STEPS)
def test_the_covariance_without_a_head(t, s, eta):
    kernel, stored = dv.ReverseKernel(table().schedule, t, s, eta), GOLDEN[f"eps_{t}_{s}_{eta}"]
    agree(
        f"covariances from 1 − eps²: {t} to {s}, eta {eta}",
        dv.EpsSquare()(posterior_of(t), kernel).variance,
        stored,
        1e-10,
        "each",
    )


def test_its_mean_over_an_image():
    """Published, the mean over an image is taken before the cut to [0, 1], here after it: the same where no pixel is
    cut (index 20), and less where some are cut at 1 and the mean is too."""
    for t, s, eta in ((20, 3, 1.0), (900, 700, 1.0)):
        kernel, published = dv.ReverseKernel(table().schedule, t, s, eta), GOLDEN[f"mean_{t}_{s}_{eta}"]
        own = dv.Averaged(dv.EpsSquare())(posterior_of(t), kernel).variance.numpy().ravel()
        if t == 20:
            agree("mean over an image of 1 − eps², nothing cut: 20 to 3", own, published, 1e-10, "each")
        else:
            differ("mean over an image of 1 − eps², cut before or after: 900 to 700", own, published, 1e-4, 0.1)


def test_the_outputs_reach_both_cuts():
    for kind in cases.HEADS:
        for t, _, _ in cases.HEAD_STEPS[:2]:
            eps, raw = cases.head_eps(t), cases.head_output(kind, t)
            of_eps = {"sn": raw - eps**2, "npr": raw, "ocm": 1.0 + raw}[kind]
            assert (of_eps < 0).any()
            assert (of_eps > 0).any()
    alpha = schedule_of("linear").alpha[400]
    assert max(float(np.max(cases.head_output("npr", 400))) * (1 / alpha**2 - 1), 0.0) > 1.0
