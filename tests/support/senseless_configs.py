"""Folders of schedulers and models whose JSON is changed: what makes them, and what came of the mutants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_heads
from diffusers import DDPMPipeline, DDPMScheduler
from mutants import json_mutants
from senseless import Outcome
from small_pipelines import small_unet

import diffusion_var as dv

#: Of these every value is as good as another, or another class's business.
FREE = ("_class_name", "_diffusers_version", "something")
SCHEDULERS = ("lists", "table", "head")
MODEL_FILES = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")


def save_schedulers(folder: Path) -> None:
    """Folders of schedulers: with lists in the config, with a table beside it, with a head beside it."""
    table, scheduler = small_heads.table(), DDPMScheduler(50, beta_start=1e-3, beta_end=0.2)
    config, pipe = scheduler.config, DDPMPipeline(small_heads.denoiser().network, scheduler)
    made = {
        "lists": dv.AnalyticScheduler.from_table(table, config, structure="channel"),
        "table": dv.AnalyticScheduler.from_table(table, config, structure="pixel"),
        "head": dv.AnalyticScheduler.from_head(small_heads.head(), pipe),
    }
    for name, scheduler in made.items():
        scheduler.save_pretrained(folder / name)


def save_model(folder: Path) -> None:
    """The folder of a pipeline of diffusers."""
    DDPMPipeline(small_unet(in_channels=1, out_channels=1), DDPMScheduler(50)).save_pretrained(folder)


def outcome(path: Path, folder: Path, use: Callable[[], Any], chosen: Callable[[int], list[int]]) -> Outcome:
    """Use what a JSON file belongs to with those of its mutants that are chosen of their number; sentences name
    the folder. All that are accepted are told, whatever they mean."""
    original, found = path.read_text(), Outcome(longest=1000)
    every = list(json_mutants(json.loads(original)))
    try:
        for number in chosen(len(every)):
            name, text = every[number]
            path.write_text(text)
            found.take(number, name, folder.name, use, lambda it: False)
    finally:
        path.write_text(original)
    return found


def senseless(found: Outcome) -> list[tuple[int, str]]:
    """What a scheduler must not accept. What is gone has its default, which must be what it was; other settings are
    other, sensible schedulers."""
    changed = [(k, name) for k, name in found.accepted if " = " in name and not name.startswith(FREE)]
    return changed + [(k, name) for k, name in found.accepted if "variance" in name and "digest" not in name]
