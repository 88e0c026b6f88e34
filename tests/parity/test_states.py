"""States of reverse chains, step by step, on the same network outputs and noise."""

import numpy as np
import parity_cases as cases
import pytest
import torch
from make_golden import golden
from parity_models import covariance_of, doubled, network, schedule_of
from parity_table import agree
from plain_draws import normal

import diffusion_var as dv
from diffusion_var.sampling import sampler as sampler_module

TOLERANCES = {torch.float32: 1.2e-5, torch.float64: 1e-10}
GOLDEN = golden("states")


class GivenNoise:
    """In place of the sampler's own noise: arrays as they come, in one precision."""

    arrays, dtype = [], torch.float64

    def __init__(self, seed, images, shape, device):
        self.left = [torch.from_numpy(array).to(self.dtype) for array in self.arrays]

    def prior(self):
        return self.left.pop(0)

    next = prior


def family(name):
    """As the table groups the chains."""
    families = {
        "ddpm": "DDPM",
        "ddim": "DDIM",
        "analytic": "Analytic-DPM",
        "improved": "Improved DDPM",
        "guided": "classifier guidance",
        "sde": "Euler–Maruyama",
    }
    return families.get(name.split("_")[0], "Euler steps of EDM and a flow")


def states_of(denoiser, covariance, steps, noise, dtype, monkeypatch, conditions=None, kind=dv.Sampler, **options):
    """x_s after every step, before the last is cut to the data range."""
    monkeypatch.setattr(GivenNoise, "arrays", noise)
    monkeypatch.setattr(GivenNoise, "dtype", dtype)
    monkeypatch.setattr(sampler_module, "ImageNoise", GivenNoise)
    sampler = kind(denoiser, covariance, steps, low_start=True, **options)
    seen = []
    list(sampler.stream(range(cases.BATCH), conditions=conditions, visit=lambda _, x: seen.append(x.double().numpy())))
    return seen


def compare(name, found, dtype):
    assert found[0].std() > 0.01
    precision = str(dtype).removeprefix("torch.")
    assert len(found) == len(GOLDEN[name])
    worst = []
    for mine, theirs in zip(found, GOLDEN[name], strict=True):  # every state in units of its own largest entry
        scale = np.abs(theirs).max()
        worst.append(np.concatenate([mine.ravel() / scale, np.array(theirs) / scale]).reshape(2, -1))
    both = np.concatenate(worst, axis=1)
    agree(f"states, {family(name)}, {precision}: {name}", both[0], both[1], TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", cases.STATES)
def test_chains_of_ddpm_ddim_and_analytic_dpm(name, dtype, monkeypatch):
    chain, schedule_name, steps, given = cases.STATES[name]
    schedule = schedule_of(schedule_name)
    clip = (-1.0, 1.0) if given["clip"] else None
    denoiser = dv.Denoiser(network, schedule, shape=cases.SHAPE, clip=clip, data_range=(-1.0, 1.0))
    covariance = covariance_of(schedule, steps, given)
    options = {"eta": given.get("eta", 1.0), "final_noise_cap": given.get("cap")}
    options["capped_steps"] = given.get("capped_steps", 1)
    if chain == "ddim":
        options["clipped_eps"] = "rederived" if given["rederive"] else "network"
    found = states_of(denoiser, covariance, steps, cases.noise_of(len(steps)), dtype, monkeypatch, **options)
    compare(name, found, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", cases.RESPACED_STATES)
def test_chains_of_improved_ddpm(name, dtype, monkeypatch):
    schedule_name, sections, kind, clip = cases.RESPACED_STATES[name]
    steps = dv.steps.respaced(cases.N, sections)
    covariance = {"small": dv.FixedSmall(), "large": dv.FixedLarge(), "range": dv.LearnedRange(steps)}[kind]
    clip = (-1.0, 1.0) if clip else None
    denoiser = dv.Denoiser(doubled, schedule_of(schedule_name), shape=cases.SHAPE, clip=clip, data_range=(-1.0, 1.0))
    compare(name, states_of(denoiser, covariance, steps, cases.noise_of(len(steps)), dtype, monkeypatch), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_chain_of_improved_ddpm_that_predicts_the_mean_and_log_variance(dtype, monkeypatch):
    def both(x_t, timestep):
        time = (timestep.to(x_t.dtype) / cases.BEFORE_STEPS).view(-1, 1, 1, 1)
        return torch.cat(cases.before_output(x_t, time, torch.tanh, torch.sin), 1)

    schedule = dv.NoiseSchedule.linear(cases.BEFORE_STEPS, *cases.BEFORE_BETAS)
    denoiser = dv.Denoiser(both, schedule, "previous_x", shape=cases.SHAPE, clip=None, data_range=(-1.0, 1.0))
    steps, noise = list(range(1, cases.BEFORE_STEPS + 1)), cases.noise_of(cases.BEFORE_STEPS)
    compare("improved_previous", states_of(denoiser, dv.LearnedVariance(), steps, noise, dtype, monkeypatch), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_chain_with_classifier_guidance(dtype, monkeypatch):
    weights = torch.from_numpy(cases.CLASSIFIER)
    plain = dv.Denoiser(
        network, schedule_of("linear"), shape=cases.SHAPE, clip=None, data_range=(-1.0, 1.0), conditional=False
    )
    denoiser = plain.with_classifier(
        lambda x, timestep: torch.einsum("bchw,kchw->bk", x, weights.to(x.dtype)), cases.SCALE
    )
    noise = cases.noise_of(len(cases.EVEN))
    labels = torch.tensor(cases.LABELS)
    found = states_of(denoiser, dv.FixedSmall(), cases.EVEN, noise, dtype, monkeypatch, conditions=labels, eta=0.0)
    compare("guided_ddim", found, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_euler_maruyama_of_the_vp_sde(dtype, monkeypatch):
    """The package has the SDE from differences of its schedule, which are exact for this one."""
    denoiser = dv.Denoiser(network, schedule_of("vp_sde"), shape=cases.SHAPE, clip=None, data_range=(-1.0, 1.0))
    noise = cases.noise_of(len(cases.SDE_STEPS))
    found = states_of(denoiser, None, cases.SDE_STEPS, noise, dtype, monkeypatch, kind=dv.EulerMaruyama)
    compare("sde", found, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_euler_steps_of_edm(dtype, monkeypatch):
    """DDIM's step at α = 1 is EDM's Euler step; its second-order part has no counterpart."""
    schedule = dv.NoiseSchedule.edm(cases.EDM_LEVELS)
    edm = dv.Denoiser(
        lambda x, told: cases.network(x, told.view(-1, 1, 1, 1).to(x.dtype), torch.tanh),
        schedule,
        "edm",
        shape=cases.SHAPE,
        clip=None,
        data_range=(-1.0, 1.0),
    )
    noise = [normal(100, cases.BATCH, *cases.SHAPE)]
    steps = list(range(1, cases.EDM_LEVELS + 1))
    compare("edm_euler", states_of(edm, dv.FixedSmall(), steps, noise, dtype, monkeypatch, eta=0.0), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_euler_steps_of_a_flow(dtype, monkeypatch):
    levels = [dv.NoiseLevel.flow(t, timestep_scale=1.0) for t in cases.FLOW_TIMES]
    flow = dv.Denoiser(
        lambda x, told: cases.network(x, told.view(-1, 1, 1, 1).to(x.dtype), torch.tanh),
        dv.NoiseSchedule.flow(10, timestep_scale=1.0),
        "flow",
        shape=cases.SHAPE,
        clip=None,
        data_range=(-1.0, 1.0),
    )
    noise = [normal(100, cases.BATCH, *cases.SHAPE)]
    compare("flow_euler", states_of(flow, dv.FixedSmall(), levels, noise, dtype, monkeypatch, eta=0.0), dtype)
