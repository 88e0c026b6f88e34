"""Scheduler and model folders whose JSON is torn or holds other values: used as it was meant, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_heads
from diffusers import DDPMPipeline, DDPMScheduler
from mutants import json_mutants
from small_pipelines import small_unet

import diffusion_var as dv

# Of these every value is as good as another, or another class's business.
FREE = ("_class_name", "_diffusers_version", "something")


@pytest.fixture(scope="module")
def schedulers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of schedulers: with lists in the config, with a table beside it, with a head beside it."""
    table, folder = small_heads.table(), tmp_path_factory.mktemp("schedulers")
    scheduler = DDPMScheduler(50, beta_start=1e-3, beta_end=0.2)
    config, pipe = scheduler.config, DDPMPipeline(small_heads.denoiser().network, scheduler)
    made = {
        "lists": dv.AnalyticScheduler.from_table(table, config, structure="channel"),
        "table": dv.AnalyticScheduler.from_table(table, config, structure="pixel"),
        "head": dv.AnalyticScheduler.from_head(small_heads.head(), pipe),
    }
    for name, scheduler in made.items():
        scheduler.save_pretrained(folder / name)
    return {name: folder / name for name in made}


def variances(scheduler: dv.AnalyticScheduler) -> Any:
    """What a scheduler does, as far as its config decides it."""
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def outcomes(path: Path, use: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """What was wrong of the mutants of a JSON file, and which were accepted."""
    original = path.read_text()
    wrong, accepted = [], []
    try:
        for name, text in json_mutants(json.loads(original)):
            path.write_text(text)
            try:
                use()
                accepted.append(name)
            except dv.InputError as error:
                if "\n" in str(error) or len(str(error)) > 1000:
                    wrong.append(f"{name}: {error}")
            except Exception as error:  # the kind of it is what is asked
                wrong.append(f"{name}: {type(error).__name__}: {error}")
    finally:
        path.write_text(original)
    return wrong, accepted


@pytest.mark.parametrize("kind", ["lists", "table", "head"])
def test_schedulers(schedulers: dict[str, Path], kind: str) -> None:
    folder = schedulers[kind]
    loaded = dv.AnalyticScheduler.from_pretrained(folder)
    wrong, accepted = outcomes(folder / "scheduler_config.json", lambda: dv.AnalyticScheduler.from_pretrained(folder))
    assert not wrong, "\n".join(wrong)
    # What is gone has its default, which must be what it was; other settings are other, sensible schedulers.
    senseless = [name for name in accepted if " = " in name and not name.startswith(FREE)]
    assert not senseless, "\n".join(senseless)
    assert not any("variance" in name and "digest" not in name for name in accepted)
    assert variances(dv.AnalyticScheduler.from_pretrained(folder)) == variances(loaded)


def test_numbers_of_lists_are_told_from_others(schedulers: dict[str, Path]) -> None:
    path = schedulers["lists"] / "scheduler_config.json"
    original = path.read_text()
    content = json.loads(original)
    content["variance"]["posterior_variance"][7][0] *= 1.01
    path.write_text(json.dumps(content))
    with pytest.raises(dv.InputError, match="or holds other numbers than were written"):
        dv.AnalyticScheduler.from_pretrained(schedulers["lists"])
    path.write_text(original)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=r"the scheduler in .*nowhere cannot be read"):
        dv.AnalyticScheduler.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"])
def test_models(tmp_path: Path, name: str) -> None:
    DDPMPipeline(small_unet(in_channels=1, out_channels=1), DDPMScheduler(50)).save_pretrained(tmp_path)
    dv.Denoiser.from_pretrained(tmp_path)
    wrong, _ = outcomes(tmp_path / name, lambda: dv.Denoiser.from_pretrained(tmp_path))
    assert not wrong, "\n".join(wrong)
