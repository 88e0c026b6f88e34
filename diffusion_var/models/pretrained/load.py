"""Loading diffusers models: a folder (or hub id) becomes a `Denoiser`.

Read from the configs alone: what the network predicts, whether its mean is clipped, the noise schedule, the range of
the data, whether it works on latents, and what it is conditioned on. Networks that are called as network(x_t, timestep,
condition) (see `direct`) are read one by one; of other networks the whole pipeline is, by diffusers' own class (see
`pipeline`). Safetensors only, unless pickles are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ..denoiser import Denoiser
from .aligned import aligned
from .components import CODECS, NETWORKS, load_component
from .direct import Parts, Told, assemble, is_direct, size_of_call
from .folder import ModelFolder, open_folder, whole
from .latents import LatentCodec
from .loop_checks import modules_of
from .pipeline import from_pipeline
from .prompts import PromptEncoder
from .whole import read_pipeline

#: Parts of a pipeline that steer its network, which is then no more called alone.
_STEERING = {"controlnet", "adapter", "motion_adapter"}


def load(
    path: str | Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    variant: str | None,
    revision: str | None,
    autocast: torch.dtype | None,
    guidance_scale: float | None,
    unconditional: Any,
    allow_pickle: bool,
    call: Mapping[str, Any] | None = None,
) -> Denoiser:
    """See `Denoiser.from_pretrained`."""
    folder = open_folder(path, revision, variant, allow_pickle)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    part, config = folder.network()
    told = Told.by(folder.scheduler(), folder.name)
    listed = folder.index().get(part)
    named = isinstance(listed, list) and config.get("_class_name") in listed[1:]
    if named and not (is_direct(config) and not _STEERING & {*folder.index()}):
        checks.refuse(
            unconditional is not None,
            f"{folder.name} is run by its pipeline's own loop, which makes what stands for none of a negative prompt; "
            "leave unconditional out, and give negative_prompt in the pipeline's call.",
        )
        pipe = read_pipeline(whole(folder, path, revision, allow_pickle), dtype, allow_pickle)
        for module in modules_of(pipe).values():
            aligned(module, device)
        return _made(from_pipeline(pipe, guidance_scale, device, autocast, None, call or {}, unguided=True))
    network = aligned(load_component(folder, part, config, NETWORKS, dtype, allow_pickle), device).to(device)
    codec, prompts = _codec(folder, device, dtype, allow_pickle), _prompts(folder, device)
    scale = 1.0 if guidance_scale is None else guidance_scale
    size = size_of_call(folder.name, call or {}, 1 if codec is None else codec.factor)
    name = folder.name
    return _made(assemble(network, told, codec, prompts, name, device, autocast, scale, unconditional, size))


def load_pipeline(
    pipe: Any,
    guidance_scale: float | None,
    device: torch.device | str | None,
    autocast: torch.dtype | None,
    layout: Any,
    call: Mapping[str, Any],
) -> Denoiser:
    """See `Denoiser.from_pipeline`."""
    return _made(from_pipeline(pipe, guidance_scale, device, autocast, layout, call))


def _made(parts: Parts) -> Denoiser:
    denoiser = Denoiser(**parts.arguments)
    denoiser.codec, denoiser.prompts = parts.codec, parts.prompts
    denoiser.guidance = parts.guidance or denoiser.guidance
    return denoiser


# ---- what comes along -----------------------------------------------------------------------------------------


def _codec(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype | None, allow_pickle: bool
) -> LatentCodec | None:
    found = folder.codec()
    if found is None:
        return None
    part, config = found
    if config.get("_class_name") not in CODECS:
        raise InputError(
            f"the autoencoder in {folder.name} is a {config.get('_class_name')}, but the supported ones are "
            f"{', '.join(CODECS)}; wrap the network with Denoiser(callable, schedule, …)."
        )
    load = partial(load_component, folder, part, config, CODECS, dtype, allow_pickle)
    return LatentCodec(lambda: aligned(load(), device), config, device)


def _prompts(folder: ModelFolder, device: torch.device) -> PromptEncoder | None:
    return PromptEncoder(folder.path, device, folder.variant) if folder.has_prompts else None
