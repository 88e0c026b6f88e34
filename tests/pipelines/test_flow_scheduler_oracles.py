"""AnalyticFlowScheduler's steps against the sampler, exact data, and packed samples against images."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from small_flows import SHAPE, STRUCTURES, measured, normal, oracle, run, seeded, table, velocity

import diffusion_var as dv
from diffusion_var.models.pretrained.layout import Layout
from diffusion_var.sampling.noise import ImageNoise


def sampled(scheduler: Any, images: int = 3, steps: int = 6, **chosen: Any) -> torch.Tensor:
    """The loop with the sampler's noise (seed 2)."""
    scheduler.set_timesteps(steps, **chosen)
    noise = ImageNoise(2, range(images), SHAPE, torch.device("cpu"))
    x = noise.prior()
    for k, t in enumerate(scheduler.timesteps):
        given = {} if k == steps - 1 else {"variance_noise": noise.next()}
        x = scheduler.step(velocity(x, float(scheduler.sigmas[k])), t, x, return_dict=False, **given)[0]
    return x


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("noise", [{"eta": 1.0}, {"eta": 0.5}, {"eta": 0.0}, {"tau": 1.5}], ids=str)
def test_steps_are_the_samplers(structure: str, noise: dict[str, float]) -> None:
    """The table of shift 1 at the levels of a shift that depends on mu."""
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler = dv.AnalyticFlowScheduler.from_table(table(), theirs, structure=structure, **noise)
    mine = sampled(scheduler, mu=1.1)
    levels = [dv.NoiseLevel.flow(float(sigma)) for sigma in scheduler.sigmas[:-1]]
    analytic = dv.Analytic(measured(), structure=structure)
    expected = dv.Sampler(oracle(), analytic, levels, **noise, final_noise_cap=None).sample(3, seed=2)
    # The curve of isotropic and channel variances is the table's to 1e-4.
    assert float((mine - expected).abs().max()) < (1e-3 if structure in ("isotropic", "channel") else 1e-5)
    plain = sampled(dv.AnalyticFlowScheduler.from_config(theirs.config, **noise), mu=1.1)
    assert float((mine - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_exact_marginals_of_gaussian_data(shift: float) -> None:
    """Four steps with each element's own variance give the data's variance; without it they do not."""
    count, steps = 20000, 4
    x = normal(count, *SHAPE, seed=5)
    found = {}
    for name, scheduler in {
        "pixel": dv.AnalyticFlowScheduler.from_table(
            table(), FlowMatchEulerDiscreteScheduler(shift=shift), structure="pixel"
        ),
        "λ² alone": dv.AnalyticFlowScheduler(shift=shift),
        "ode": dv.AnalyticFlowScheduler(shift=shift, eta=0.0),
    }.items():
        scheduler.set_timesteps(steps)
        found[name] = run(scheduler, x, generator=seeded(7)).double()
    data = oracle().variance.numpy()
    # Of x_s at the last level, whose mean x̂_0 is: the step to clean data adds no noise, and loses what v is left.
    scheduler = dv.AnalyticFlowScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    left = oracle().posterior_variance(dv.NoiseLevel.flow(float(scheduler.sigmas[steps - 1])))
    ratio = {name: images.var(0).numpy() / (data - left) for name, images in found.items()}
    # A table of few draws has each element's variance to some 9 %.
    assert np.abs(ratio["pixel"] - 1.0).max() < 0.25
    assert abs(ratio["pixel"].mean() - 1.0) < 0.015
    assert abs(ratio["λ² alone"].mean() - 1.0) > 0.1
    assert abs(ratio["ode"].mean() - 1.0) > 0.03
    assert float((found["pixel"].mean((0, 2, 3)) - 0.3).abs().max()) < 0.02


# ---- packed samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["tokens", "tokens_2x2", "channels_last"])
def test_packed_samples_are_the_images(structure: str, name: str) -> None:
    layout = Layout(name).of(SHAPE)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain = dv.AnalyticFlowScheduler.from_table(table(), theirs, structure=structure)
    packed = dv.AnalyticFlowScheduler.from_table(table(), theirs, structure=structure, layout=name)
    x, noise = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    F, results = velocity(x, 1.0), []
    for scheduler, change in ((plain, lambda images: images), (packed, layout.samples)):
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[0]
        out = scheduler.step(change(F), t, change(x), variance_noise=change(noise), log_prob_reduction="sum")
        results.append(out)
        scored = scheduler.step(change(F), t, change(x), prev_sample=out.prev_sample, log_prob_reduction="sum")
        assert torch.equal(scored.log_prob, out.log_prob)
    images, samples = results
    for key in ("prev_sample", "prev_sample_mean", "pred_original_sample"):
        torch.testing.assert_close(samples[key], layout.samples(images[key]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(samples.log_prob, images.log_prob, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(samples.std_dev_t.ravel(), images.std_dev_t.ravel())


@pytest.mark.parametrize("name", ["tokens", "tokens_2x2"])
def test_variances_by_channel_serve_packed_samples_of_any_size(name: str) -> None:
    shape = (3, 8, 2)
    layout, theirs = Layout(name).of(shape), FlowMatchEulerDiscreteScheduler()
    plain = dv.AnalyticFlowScheduler.from_table(table(), theirs, structure="channel")
    packed = dv.AnalyticFlowScheduler.from_table(table(), theirs, structure="channel", layout=name)
    x, noise, found = normal(2, *shape), normal(2, *shape, seed=1), []
    for scheduler, change in ((plain, lambda images: images), (packed, layout.samples)):
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[0]
        found.append(scheduler.step(change(x), t, change(x), variance_noise=change(noise)).prev_sample)
    torch.testing.assert_close(found[1], layout.samples(found[0]))


def test_one_number_serves_samples_of_any_shape() -> None:
    scheduler = dv.AnalyticFlowScheduler.from_table(table(), FlowMatchEulerDiscreteScheduler())
    for shape in ((2, 7, 12), (2, 5, 4, 4), (2, 4, 3, 4, 4), (2, 9)):
        scheduler.set_timesteps(3)
        assert scheduler.step(normal(*shape), scheduler.timesteps[0], normal(*shape)).prev_sample.shape == shape


@pytest.mark.parametrize("structure", ["channel", "dct"])
def test_a_layout_that_images_of_the_tables_shape_cannot_have(structure: str) -> None:
    with pytest.raises(dv.InputError, match=r"images of shape \(3, 4, 6\) have no layout tokens_3x3"):
        dv.AnalyticFlowScheduler.from_table(
            table(), FlowMatchEulerDiscreteScheduler(), structure=structure, layout="tokens_3x3"
        )


def test_samples_that_are_not_of_the_layout() -> None:
    scheduler = dv.AnalyticFlowScheduler.from_table(
        table(), FlowMatchEulerDiscreteScheduler(), structure="dct", layout="tokens_2x2"
    )
    scheduler.set_timesteps(3)
    x = normal(2, 5, 12)
    with pytest.raises(dv.InputError, match=r"a sample has shape \(5, 12\), but images of shape \(3, 4, 6\) in layout"):
        scheduler.step(x, scheduler.timesteps[0], x)
