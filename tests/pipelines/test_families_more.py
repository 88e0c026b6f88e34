"""AnalyticFlowScheduler in flow pipelines that treat their scheduler in ways of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch

import diffusion_var as dv

pytest.importorskip("transformers")
from family_runs import check_flow_steps, drawn, kept_steps, measured, off
from other_flow_families import OTHER_SHAPES, OTHERS
from small_families import STEPS

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about themselves


def made(name: str) -> tuple[Any, dict[str, Any]]:
    pipe, call = OTHERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


@pytest.mark.parametrize("name", OTHERS)
def test_without_noise_it_is_the_pipelines_own(name: str) -> None:
    pipe, call = made(name)
    own = drawn(pipe, call)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_config(pipe.scheduler.config, eta=0.0)
    assert off(drawn(pipe, call), own) <= 1e-5


@pytest.mark.parametrize("structure", ["isotropic", "channel", "dct"])
@pytest.mark.parametrize("name", OTHERS)
def test_with_a_table(name: str, structure: str, tmp_path: Path) -> None:
    pipe, call = made(name)
    schedule = dv.NoiseSchedule.from_diffusers(pipe.scheduler)
    inverted = pipe.scheduler.config.invert_sigmas
    table = measured(schedule, OTHER_SHAPES[name], prediction="flow_to_data" if inverted else "flow")
    pipe.scheduler = dv.analytic_scheduler(table, pipe, structure=structure)
    with kept_steps(pipe.scheduler) as steps:
        first = drawn(pipe, call)
    assert len(steps) == STEPS
    check_flow_steps(steps, pipe, table, structure)
    pipe.scheduler.save_pretrained(tmp_path)
    pipe.scheduler = dv.AnalyticFlowScheduler.from_pretrained(tmp_path)
    assert torch.equal(drawn(pipe, call), first)
