"""AnalyticScheduler and configs of other classes: what is taken over, and what is refused instead of guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

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
