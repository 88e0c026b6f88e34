"""Our schedulers inside the pipelines that begin with a picture: image to image, inpainting, image to video."""

import pytest
import torch
from diffusers import DDIMScheduler

import diffusion_var as dv

pytest.importorskip("transformers")
from family_runs import beta_table, check_flow_steps, drawn, flow_table, kept_steps, off
from image_families import FROM_PICTURES, made_of
from small_families import FLOW

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about themselves

FLOWS = [kind for kind, (family, _) in FROM_PICTURES.items() if family in FLOW]
BETAS = [kind for kind in FROM_PICTURES if kind not in FLOWS]
BY_TOKEN = "LTXConditionPipeline"  # it hands a timestep for every token


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_pipeline_without_noise_is_its_own(kind: str) -> None:
    pipe, call = made_of(kind)
    own = drawn(pipe, call)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert off(drawn(pipe, call), own) <= 1e-5


@pytest.mark.parametrize("structure", ["isotropic", "channel"])
@pytest.mark.parametrize("kind", [kind for kind in FLOWS if kind != BY_TOKEN])
def test_a_flow_pipeline_with_a_table(kind: str, structure: str) -> None:
    pipe, call = made_of(kind)
    table = flow_table(FROM_PICTURES[kind][0])
    pipe.scheduler = dv.AnalyticFlowScheduler.from_table(table, pipe, structure=structure)
    with kept_steps(pipe.scheduler) as steps:
        made = drawn(pipe, call)
    assert len(steps) == 3
    check_flow_steps(steps, pipe, table, structure)
    assert torch.equal(drawn(pipe, call), made)


def test_noise_with_a_timestep_for_every_token_is_refused() -> None:
    pipe, call = made_of(BY_TOKEN)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_table(flow_table("ltx"), pipe)
    with pytest.raises(dv.InputError, match="per_token_timesteps"):
        drawn(pipe, call)


@pytest.mark.parametrize("kind", BETAS)
def test_a_beta_pipeline_without_noise_is_ddims(kind: str) -> None:
    pipe, call = made_of(kind)
    assert type(pipe.scheduler) is DDIMScheduler
    own = drawn(pipe, call)
    pipe.scheduler = dv.AnalyticScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert off(drawn(pipe, call), own) <= 1e-5


@pytest.mark.parametrize("kind", BETAS)
def test_a_beta_pipeline_with_a_table(kind: str) -> None:
    pipe, call = made_of(kind)
    config = pipe.scheduler.config
    pipe.scheduler = dv.AnalyticScheduler.from_table(beta_table(FROM_PICTURES[kind][0]), pipe, eta=1.0)
    made = drawn(pipe, call)
    assert torch.equal(drawn(pipe, call), made)
    pipe.scheduler = dv.AnalyticScheduler.from_config(config, eta=1.0)
    assert off(made, drawn(pipe, call)) > 1e-3  # the table's variance is used
