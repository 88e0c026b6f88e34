"""Our schedulers inside the pipelines of every family that diffusers has (small ones, of random weights)."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

import diffusion_var as dv

pytest.importorskip("transformers")
from family_runs import (
    SHAPES,
    beta_table,
    call_of,
    check_flow_steps,
    drawn,
    flow_table,
    kept_steps,
    measured,
    off,
    references,
)
from small_families import BETA, FAMILIES, FLOW, STEPS

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about themselves


# ---- flow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOW)
def test_a_flow_pipeline_without_noise_is_its_own(name: str) -> None:
    pipe = FAMILIES[name]()
    own = drawn(pipe, call_of(name))
    pipe.scheduler = dv.AnalyticFlowScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert off(drawn(pipe, call_of(name)), own) <= 1e-5


@pytest.mark.parametrize("structure", ["isotropic", "channel", "dct"])
@pytest.mark.parametrize("name", FLOW)
def test_a_flow_pipeline_with_a_table(name: str, structure: str, tmp_path: Path) -> None:
    """Every step is the kernel's mean and the table's noise; saved and loaded by diffusers it gives the same bytes."""
    pipe, call, table = FAMILIES[name](), call_of(name), flow_table(name)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_table(table, pipe, structure=structure)
    with kept_steps(pipe.scheduler) as steps:
        made = drawn(pipe, call)
    assert len(steps) == STEPS
    check_flow_steps(steps, pipe, table, structure)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is dv.AnalyticFlowScheduler
    assert torch.equal(drawn(loaded, call), made)


@pytest.mark.parametrize("structure", ["isotropic", "channel", "dct"])
@pytest.mark.parametrize("name", FLOW)
def test_a_flow_pipelines_steps_have_their_log_probability(name: str, structure: str) -> None:
    pipe, table = FAMILIES[name](), flow_table(name)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_table(table, pipe, structure=structure)
    with kept_steps(pipe.scheduler) as steps:
        drawn(pipe, call_of(name))
    times = pipe.scheduler.timesteps
    for step, t, expected in zip(steps, times, references(steps, pipe, table, structure), strict=True):
        found = pipe.scheduler.step(step.output, t, step.sample, prev_sample=step.prev_sample)
        assert torch.equal(found.prev_sample, step.prev_sample)
        if expected.last:
            assert found.log_prob is None
        else:
            close = 5e-6 if structure == "dct" else 1e-4  # what is kept of the others is a curve
            torch.testing.assert_close(found.log_prob.double(), expected.log_prob, rtol=0, atol=close)


@pytest.mark.parametrize("name", ["sd3", "flux", "sana", "wan"])
def test_an_image_is_drawn_from_its_own_generators_in_any_batch(name: str) -> None:
    """Also where a pipeline hands its generators to the scheduler, as Sana's does."""
    pipe, call = FAMILIES[name](), call_of(name)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_table(flow_table(name), pipe)

    def run(seeds: list[int]) -> torch.Tensor:
        pipe.scheduler.generator = [torch.Generator().manual_seed(100 + seed) for seed in seeds]
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        prompts = [call["prompt"]] * len(seeds)
        return pipe(**{**call, "prompt": prompts}, generator=own)[0]

    both = run([1, 2])
    assert off(torch.cat([run([1]), run([2])]), both) <= 1e-5
    assert off(both[:1], both[1:]) > 0.1


# ---- betas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BETA)
def test_a_beta_pipeline_without_noise_is_ddims(name: str) -> None:
    pipe = FAMILIES[name]()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    own = drawn(pipe, call_of(name))
    pipe.scheduler = dv.AnalyticScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert off(drawn(pipe, call_of(name)), own) <= 1e-5


@pytest.mark.parametrize("name", BETA)
def test_a_beta_pipeline_with_a_table(name: str, tmp_path: Path) -> None:
    pipe, call = FAMILIES[name](), call_of(name)
    scheduler = pipe.scheduler
    table = beta_table(name)
    pipe.scheduler = dv.AnalyticScheduler.from_table(table, pipe, eta=1.0)
    made = drawn(pipe, call)
    pipe.scheduler = dv.AnalyticScheduler.from_config(scheduler.config, eta=1.0)
    assert off(made, drawn(pipe, call)) > 1e-3  # the table's variance is used
    pipe.scheduler = dv.AnalyticScheduler.from_table(table, pipe, eta=1.0)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is dv.AnalyticScheduler
    assert torch.equal(drawn(loaded, call), made)


# ---- which scheduler fits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FLOW, *BETA])
def test_the_scheduler_that_fits(name: str) -> None:
    flow = name in FLOW
    table, pipe = (flow_table if flow else beta_table)(name), FAMILIES[name]()
    right, wrong = dv.AnalyticFlowScheduler, dv.AnalyticScheduler
    if not flow:
        right, wrong = wrong, right
    assert type(dv.analytic_scheduler(table, pipe)) is right
    with pytest.raises(dv.InputError, match="analytic_scheduler|" + right.__name__):
        wrong.from_table(dataclasses.replace(table, prediction=None), pipe)


def test_no_scheduler_fits_sound_by_sigma() -> None:
    table = measured(dv.NoiseSchedule.edm(100), SHAPES["stable_audio"])
    with pytest.raises(dv.InputError, match="EDMDPMSolverMultistepScheduler"):
        dv.analytic_scheduler(table, FAMILIES["stable_audio"]())
