"""Our schedulers inside the pipelines of every family that diffusers has (small ones, of random weights)."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

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
    read_back,
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
    loaded = read_back(tmp_path)
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
    loaded = read_back(tmp_path)
    assert type(loaded.scheduler) is dv.AnalyticScheduler
    assert torch.equal(drawn(loaded, call), made)


# ---- from a pipeline to its table and back ---------------------------------------------------------------------------

_NOT_OF_THE_MODEL = ("prompt", "output_type", "num_inference_steps", "image", "mask_image")
MEASURED = [name for name in (*FLOW, *BETA) if name != "text_to_video"]  # which takes too long, frame by frame


@pytest.mark.parametrize("name", MEASURED)
def test_a_table_that_is_measured_through_a_pipeline_serves_it(name: str) -> None:
    """Of the network, guidance and latent scaling that the pipeline has; other weights are refused."""
    pipe = FAMILIES[name]()
    denoiser = dv.Denoiser.from_pipeline(pipe, **model_call(name))
    conditions, images = conditions_of(denoiser, name), torch.zeros((2, *denoiser.shape))
    images[1] = 0.5
    last = denoiser.schedule.num_steps
    table = dv.estimate(denoiser, images, 1e9, indices=[1, last], conditions=conditions, structures=(), progress=False)
    own = pipe.scheduler
    pipe.scheduler = dv.analytic_scheduler(table, pipe)
    with kept_steps(pipe.scheduler) as steps:
        assert drawn(pipe, call_of(name)).isfinite().all()
    if name in FLOW:
        check_flow_steps(steps, pipe, table, "isotropic")
    network = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, network, copy.deepcopy(getattr(pipe, network)))
    next(p for p in getattr(pipe, network).parameters() if p.any()).data.mul_(1.5)
    pipe.scheduler = own
    with pytest.raises(dv.InputError, match="network fingerprint"):
        dv.analytic_scheduler(table, pipe)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "sdxl"])
def test_a_pipeline_that_is_saved_with_a_measured_scheduler_is_a_model_again(name: str, tmp_path: Path) -> None:
    pipe, call = FAMILIES[name](), model_call(name)
    own = dv.Denoiser.from_pipeline(pipe, **{**call, "guidance_scale": 3.0})
    table = flow_table(name) if name in FLOW else beta_table(name)
    pipe.scheduler = dv.analytic_scheduler(table, pipe, structure="dct")
    pipe.save_pretrained(tmp_path)
    size = {key: value for key, value in call.items() if key != "guidance_scale"}
    loaded = dv.Denoiser.from_pretrained(tmp_path, device="cpu", guidance_scale=3.0, call=size)
    x_t = torch.randn((1, *own.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = (d(x_t, 5, d.prompts.encode(["a cat"])).mean for d in (loaded, own))
    assert loaded.schedule.matches(own.schedule)
    assert torch.equal(found, expected)


def model_call(name: str) -> dict[str, Any]:
    """The arguments of a call that belong to the model."""
    if name in ("ddpm", "ldm"):
        return {}
    if name in ("sd", "sd_inpaint", "dit"):
        return {"guidance_scale": 1.0}
    kept = {key: value for key, value in call_of(name).items() if key not in _NOT_OF_THE_MODEL}
    return kept | ({"max_sequence_length": 1024} if name == "qwen_image" else {})  # behind a text of this length


def conditions_of(denoiser: dv.Denoiser, name: str) -> Any:
    """One prompt or class, for two images."""
    rows = torch.zeros(2, dtype=torch.long)
    if name == "dit":
        return dv.Conditions(torch.tensor([1]), rows)
    if denoiser.prompts is None:
        return None
    encoded = denoiser.prompts.encode(["a cat"])
    if name == "sd_inpaint":
        encoded = {"prompt": encoded, "concatenated": torch.zeros((1, 5, 8, 8))}
    return dv.Conditions(encoded, rows)


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
