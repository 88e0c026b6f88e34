"""Heads of bands against a mixture of smooth and of rough images, whose Cov[x_0|x_t] is known in closed form.

Both kinds have the same variance on average, and another spectrum: one number an image can say little of which it is,
numbers of its bands can.
"""

from functools import cache

import numpy as np
import pytest
import torch

import diffusion_var as dv
from diffusion_var.process.bands import frequencies
from diffusion_var.process.structure import make_structure
from diffusion_var.randomness import generator
from diffusion_var.training import HeadTraining, train_head
from diffusion_var.training.head import HeadRun, new_head
from diffusion_var.training.head_draws import Source

SHAPE = (1, 6, 6)
BANDS = 4
TIMES = (10, 20, 30)


class Trunk(torch.nn.Module):
    """The exact ε̂ of the mixture, with what its posterior depends on as features: which kind it is, and the level."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.last = exact, torch.nn.Identity()
        self.one = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x_t, timestep):
        n = timestep.long() + 1
        alpha, sigma = self.exact.schedule.coefficients(n, x_t)
        smooth = self.exact.responsibilities(x_t.double(), alpha.double(), sigma.double())[:, :1, None, None].float()
        level = (sigma / alpha).log()
        maps = [
            smooth,
            1 - smooth,
            level,
            level**2,
            smooth * level,
            smooth * level**2,
            smooth**2,
            torch.ones_like(level),
        ]
        self.last(torch.cat([each.expand_as(x_t) for each in maps], 1))
        return self.exact(x_t, n).eps


@cache
def mixture():
    structure, frequency = make_structure("dct", SHAPE), frequencies(SHAPE[1:])
    smooth = np.exp(-((frequency / 0.3) ** 2)) + 0.01
    kinds = [smooth / smooth.mean(), np.ones(SHAPE[1:])]
    basis = structure.forward(torch.eye(36, dtype=torch.float64).view(36, *SHAPE)).flatten(1)  # Bᵀ
    covariances = [basis @ torch.from_numpy(0.3 * kind.flatten()).diag() @ basis.T for kind in kinds]
    schedule = dv.NoiseSchedule.linear(40, 2e-3, 0.25)
    return dv.oracles.MixtureDenoiser(schedule, np.zeros((2, *SHAPE)), covariances=torch.stack(covariances).numpy())


@cache
def model():
    made = mixture()
    trunk = Trunk(made)
    denoiser = dv.Denoiser(trunk, made.schedule, shape=SHAPE, clip=None, data_range=None, conditional=False)
    data = made.sample(2000, seed=1)
    table = dv.estimate(
        *(denoiser, data, 0.05), progress=False, structures=["isotropic", "dct"], indices=[1, 5, 10, 20, 30, 40]
    )
    return denoiser, data, table


@cache
def trained(weighting="likelihood", steps=120, **spec):
    denoiser, data, table = model()
    settings = HeadTraining(
        *(steps, 128, 1e-2, "cosine"), ema_decay=0.98, weighting=weighting, evaluate_every=40, likelihood_images=0
    )
    chosen = dv.HeadSpec(module="last", **spec)
    held_out = mixture().sample(512, seed=5)
    return train_head(denoiser, table, data, settings, chosen, held_out=held_out, progress=False)


def errors(head):
    """‖ρ v − diag B Cov Bᵀ‖ over the norm of the latter at each of TIMES, and the same of ρ = 1."""
    denoiser, _, table = model()
    said, without = [], []
    for n in TIMES:
        x_0 = mixture().sample(400, seed=2)
        eps = torch.from_numpy(generator(3, "noise", n).standard_normal(x_0.shape)).float()
        alpha, sigma = mixture().schedule.coefficients(n, x_0)
        x_t = alpha * x_0 + sigma * eps
        truth = mixture().posterior_variance(x_t, n, "dct").double()
        with torch.no_grad():
            ratio = head.ratio(head.prepare(denoiser)(x_t, n), n).double()
        v = torch.from_numpy(table.posterior_variance(n, structure="dct"))
        said.append(float((ratio * v - truth).norm() / truth.norm()))
        without.append(float((v - truth).norm() / truth.norm()))
    return np.array(said), np.array(without)


@pytest.mark.parametrize("weighting", ["likelihood", "table"])
def test_they_approach_the_covariance_of_each_image(weighting):
    said, table = errors(trained(weighting, target="bands", bands=BANDS).head)
    print(weighting, said.round(3), table.round(3))
    assert (said[:2] < 0.8 * table[:2]).all()
    assert said[2] < table[2] + 0.04  # where the noise hides nearly all, the table is right already


def test_the_loss_falls_below_the_tables():
    """Which is 0 up to the noise of errors (E9): a step's cost in nats a dimension, less what is expected of ρ = 1."""
    curve = trained(target="bands", bands=BANDS).curve
    assert [point.step for point in curve] == [40, 80, 120]
    assert curve[-1].held_out < -0.009
    assert curve[-1].held_out < curve[0].held_out + 5e-4
    assert curve[-1].held_out < 1.5 * trained(target="factor", structure="dct").curve[-1].held_out


def test_the_bound_is_between_the_factors_and_the_exact_covariances():
    denoiser, _, table = model()
    images, exact = mixture().sample(200, seed=9), dv.ExactCovariance(mixture(), "dct")
    bands, factor = trained(target="bands", bands=BANDS).head, trained(target="factor", structure="dct").head
    pairs = [(mixture(), exact), *((denoiser, each) for each in (bands, factor, dv.Analytic(table, structure="dct")))]
    best, mine, one, none = (float(dv.density_bound(each, covariance, images, 5)) for each, covariance in pairs)
    print("bits/dim", best, mine, one, none)
    assert best - 1e-3 < mine < best + 0.3 * (one - best)
    assert one < none


def test_every_weight_of_a_head_is_trained():
    """The last layer from the first step on, what is before it from the second on: the last begins at zero."""
    denoiser, data, table = model()
    settings = HeadTraining(2, 32, 1e-2, weighting="likelihood", likelihood_images=0)
    source = Source.of(data, None, denoiser, "images")
    spec = dv.HeadSpec("bands", module="last", bands=BANDS)
    run = HeadRun(new_head(denoiser, table, spec, 0, source), denoiser, [source], settings)
    assert run.network.out.weight.shape == (BANDS, 64)
    with run.draws.run:
        for _ in range(2):
            run.step()
    still = [name for name, each in run.network.named_parameters() if not float(each.grad.abs().max()) > 0]
    assert still == []


def test_a_head_of_bands_samples_as_its_images_are():
    """Draws of a few steps have the spectrum of the data, as those of the table; and do not depend on the batch."""
    denoiser, _, _ = model()
    head = trained(target="bands", bands=BANDS).head
    sampler = dv.Sampler(denoiser, head, steps=8)
    found = sampler.sample(256, seed=4, batch_size=128)
    structure = make_structure("dct", SHAPE)
    power, expected = (structure.forward(x.double()).square().mean(0) for x in (found, mixture().sample(4000, seed=6)))
    low = power[0, :2, :2].mean() / expected[0, :2, :2].mean()
    assert abs(float(low) - 1) < 0.2
    assert float((sampler.sample(6, seed=4, batch_size=2) - found[:6]).abs().max()) < 1e-4
