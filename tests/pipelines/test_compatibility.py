"""AnalyticScheduler and configs of other classes: what is taken over, and what is refused instead of guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from small_pipelines import small_unet

import diffusion_var as dv

CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    "scheduler",
    [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(), EulerDiscreteScheduler(**CONTINUOUS)],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_noise_levels_without_betas_are_refused(scheduler: Any, tmp_path: Path) -> None:
    """Left to diffusers, all of their keys would be dropped in silence, and DDPM's schedule used."""
    with pytest.raises(dv.InputError, match="schedules that are given by betas"):
        dv.AnalyticScheduler.from_config(scheduler.config)
    scheduler.save_pretrained(tmp_path)
    with pytest.raises(dv.InputError, match="schedules that are given by betas"):
        dv.AnalyticScheduler.from_pretrained(tmp_path)


def test_a_saved_solver_without_a_variance(tmp_path: Path) -> None:
    solver = DPMSolverMultistepScheduler(beta_start=0.002, beta_end=0.03)
    solver.save_pretrained(tmp_path)
    loaded = dv.AnalyticScheduler.from_pretrained(tmp_path)
    assert loaded.config.variance_type == "fixed_small"
    assert loaded.schedule == dv.NoiseSchedule.linear(1000, 0.002, 0.03)


def test_a_scheduler_that_lost_its_table_is_not_saved(tmp_path: Path) -> None:
    schedule = dv.NoiseSchedule.linear(20)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full((1, 2, 2), 0.3))
    table = dv.estimate(oracle, oracle.sample(20), 1e9, indices=[1, 20], progress=False)
    table.prediction = "epsilon"
    config = DDIMScheduler(num_train_timesteps=20, clip_sample=False).config
    whole = dv.AnalyticScheduler.from_table(table, config, structure="pixel")
    lost = dv.AnalyticScheduler.from_config(whole.config)
    with pytest.raises(dv.InputError, match=r"not attached, so that it cannot be saved"):
        lost.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    lost.attach(whole.table)
    lost.save_pretrained(tmp_path)
    assert (tmp_path / "variance_table.safetensors").exists()


@pytest.mark.parametrize("clipped", [False, True])
def test_use_clipped_model_output_is_ddims(clipped: bool) -> None:
    """False means the network's own ε̂, also at η = 1."""
    theirs = DDIMScheduler()
    ours = dv.AnalyticScheduler.from_config(theirs.config)
    x, out, noise = 2.0 * torch.from_numpy(np.random.default_rng(0).standard_normal((3, 2, 1, 4, 4))).float()
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    options: dict[str, Any] = {"eta": 1.0, "use_clipped_model_output": clipped, "variance_noise": noise}
    for t in (900, 500, 100):
        expected = theirs.step(out, t, x, **options).prev_sample
        torch.testing.assert_close(ours.step(out, t, x, **options).prev_sample, expected, rtol=1e-4, atol=1e-4)


def test_a_subclass_is_known_by_what_it_is(tmp_path: Path) -> None:
    class Mine(dv.AnalyticScheduler):
        pass

    scheduler = Mine(num_train_timesteps=100)
    assert scheduler.schedule == dv.NoiseSchedule.linear(100)
    scheduler.save_pretrained(tmp_path)
    assert Mine.from_pretrained(tmp_path).schedule == scheduler.schedule


# ---- numbers that belong to their config --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed() -> dv.AnalyticScheduler:
    """A scheduler with isotropic variances in its config."""
    schedule = dv.NoiseSchedule.linear(20)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full((1, 2, 2), 0.3))
    table = dv.estimate(oracle, oracle.sample(20), 1e9, indices=[1, 20], progress=False)
    table.prediction = "epsilon"
    return dv.AnalyticScheduler.from_table(table, DDIMScheduler(num_train_timesteps=20, clip_sample=False).config)


@pytest.mark.parametrize(
    "change",
    [
        {"estimator": "score_norm"},
        {"structure": "pixel"},
        {"prediction_type": "v_prediction"},
        {"clip_sample": True},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_end": 0.03},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
        {"thresholding": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_variances_of_another_config_are_refused(
    listed: dv.AnalyticScheduler, change: dict[str, Any], tmp_path: Path
) -> None:
    if not set(change) & {*listed.config}:  # of the entry
        change = {"variance": {**listed.config.variance, **change}}
    with pytest.raises(dv.InputError, match="was measured under another schedule, prediction type"):
        dv.AnalyticScheduler.from_config(listed.config, **change)
    listed.save_pretrained(tmp_path)
    with pytest.raises(dv.InputError, match="was measured under another schedule, prediction type"):
        dv.AnalyticScheduler.from_pretrained(tmp_path, **change)


def test_what_does_not_touch_the_variances_may_change(listed: dv.AnalyticScheduler) -> None:
    changes: dict[str, Any] = {
        "eta": 0.5,
        "timestep_spacing": "trailing",
        "final_noise_cap": 1.0,
        "data_range": [-1, 1],
    }
    changed = dv.AnalyticScheduler.from_config(listed.config, **changes)
    assert changed.config.variance == listed.config.variance


@pytest.mark.parametrize("cap", [-1.0, 0.0, float("nan"), float("inf"), "x"])
def test_impossible_caps(cap: Any) -> None:
    with pytest.raises(dv.InputError, match="must be a positive number of 255ths"):
        dv.AnalyticScheduler(final_noise_cap=cap, data_range=[-1, 1])


@pytest.mark.parametrize("data_range", [[1, -1], [1], ["a", "b"]])
def test_impossible_ranges(data_range: Any) -> None:
    with pytest.raises(dv.InputError, match="data_range="):
        dv.AnalyticScheduler(final_noise_cap=1.0, data_range=data_range)


@pytest.mark.parametrize(("offset", "K"), [(1, 1000), (200, 10), (-1, 10)])
def test_an_offset_that_leaves_the_schedule_is_named(offset: int, K: int) -> None:
    with pytest.raises(dv.InputError, match=f"steps_offset={offset} moves {K} steps"):
        dv.AnalyticScheduler(steps_offset=offset).set_timesteps(K)


@pytest.mark.parametrize("timesteps", [5, torch.tensor(5), ["a"], [9.5, 3]])
def test_timesteps_that_are_none(timesteps: Any) -> None:
    with pytest.raises(dv.InputError, match="must be a list of whole numbers"):
        dv.AnalyticScheduler().set_timesteps(timesteps=timesteps)


def test_misspelt_options_and_pipelines_that_replace_the_scheduler(listed: dv.AnalyticScheduler) -> None:
    schedule = dv.NoiseSchedule.linear(20)
    oracle = dv.oracles.GaussianDenoiser(schedule, 0.0, np.full((1, 2, 2), 0.3))
    table = dv.estimate(oracle, oracle.sample(20), 1e9, indices=[1, 20], progress=False)
    table.prediction = "epsilon"
    with pytest.raises(TypeError, match="timestep_spacng"):
        dv.AnalyticScheduler.from_table(table, listed.config, timestep_spacng="trailing")
    unet = small_unet(sample_size=4, in_channels=1, out_channels=2)
    own = DDIMScheduler(num_train_timesteps=20, clip_sample=False)
    with pytest.raises(dv.InputError, match="DDIMPipeline hands its own eta"):
        dv.AnalyticScheduler.from_table(table, DDIMPipeline(unet, own))
    with pytest.raises(dv.InputError, match="returns a learned range"):
        dv.AnalyticScheduler.from_table(table, DDPMPipeline(unet, own))
