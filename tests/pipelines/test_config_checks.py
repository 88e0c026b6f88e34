"""Scheduler and model folders whose JSON is torn or holds other values: used as it was meant, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from senseless_configs import MODEL_FILES, SCHEDULERS, outcome, save_model, save_schedulers, senseless

import diffusion_var as dv


def every(count: int) -> list[int]:
    return list(range(count))


@pytest.fixture(scope="module")
def schedulers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("schedulers")
    save_schedulers(folder)
    return {name: folder / name for name in SCHEDULERS}


def variances(scheduler: dv.AnalyticScheduler) -> Any:
    """What a scheduler does, as far as its config decides it."""
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers(schedulers: dict[str, Path], kind: str) -> None:
    folder = schedulers[kind]
    loaded = dv.AnalyticScheduler.from_pretrained(folder)
    config = folder / "scheduler_config.json"
    found = outcome(config, folder, lambda: dv.AnalyticScheduler.from_pretrained(folder), every)
    assert not found.crashed
    assert not senseless(found)
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


def test_text_is_not_the_name_of_a_model_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text('"somebody/else"')
    with pytest.raises(dv.InputError, match="its config is a str, but names and values are needed"):
        dv.AnalyticScheduler.from_pretrained(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(dv.InputError, match=r"the scheduler in .*nowhere cannot be read"):
        dv.AnalyticScheduler.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", MODEL_FILES)
def test_models(tmp_path: Path, name: str) -> None:
    save_model(tmp_path)
    dv.Denoiser.from_pretrained(tmp_path)
    found = outcome(tmp_path / name, tmp_path, lambda: dv.Denoiser.from_pretrained(tmp_path), every)
    assert not found.crashed, "\n".join(found.crashed)
