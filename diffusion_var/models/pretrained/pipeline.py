"""A loaded diffusers pipeline, as the parts of a `Denoiser`.

Networks that are called as network(x_t, timestep, condition) are called so (`direct`); every other pipeline is run by
its own loop (`loop`), with the prompts that its own `encode_prompt` encoded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...unwrapping import device_of, unwrapped
from ..network_checks import checked_device
from .direct import Parts, Told, assemble, is_direct, size_of_call
from .latents import LatentCodec
from .layout import Layout
from .loop import BESIDE_THE_LOOP, PipelineLoop, called_with_scale, text_encoders_on
from .loop_checks import modules_of, network_name
from .prompts import PromptEncoder

_CODECS = ("vae", "vqvae")


def from_pipeline(
    pipe: Any,
    guidance_scale: float | None,
    device: torch.device | str | None,
    autocast: torch.dtype | None,
    layout: Layout | str | None,
    call: Mapping[str, Any],
    unguided: bool = False,
) -> Parts:
    """See `Denoiser.from_pipeline`; `unguided`: without classifier-free guidance where no scale is given."""
    _check_is_pipeline(pipe)
    network, name = getattr(pipe, network_name(pipe)), type(pipe).__name__
    told = Told.by(pipe.scheduler, name)
    chosen = _device(pipe, network) if device is None else checked_device(device)
    codec = codec_of(pipe, chosen)
    if is_direct(network) and _is_plain(pipe):
        checks.refuse(layout is not None, f"the samples of {name} are images as they are; leave layout out.")
        scale = _default_scale(pipe) if guidance_scale is None else guidance_scale
        prompts, size = _prompts(pipe, chosen), size_of_call(name, call, 1 if codec is None else codec.factor)
        return assemble(network, told, codec, prompts, name, chosen, autocast, scale, size=size)
    loop = PipelineLoop(pipe, _with_guidance(pipe, guidance_scale, call), chosen, layout)
    if unguided and guidance_scale is None and loop.guided and loop.scale_name not in call:
        call = loop.without_guidance(chosen).call  # made anew, to be asked for prompts as it is
        loop = PipelineLoop(pipe, call, chosen, layout)
    arguments = dict(
        network=loop,
        shape=loop.shape,
        data_range=None if codec is not None else told.data_range,
        device=chosen,
        autocast=autocast,
        conditional=loop.takes_prompts,
        **told.arguments,
    )
    return Parts(arguments, codec, loop.prompts(chosen), loop.guidance)


def _is_plain(pipe: Any) -> bool:
    """Whether all that a pipeline does with its network is to call it and to guide it: there is no other network beside
    it (a ControlNet, an adapter), and no other guidance (PAG, SAG)."""
    known = (*BESIDE_THE_LOOP, *_CODECS, network_name(pipe))
    scales = {name for name in inspect.signature(type(pipe).__call__).parameters if name.endswith("_scale")}
    return all(name.startswith(known) for name in modules_of(pipe)) and scales <= {"guidance_scale"}


def _device(pipe: Any, network: Any) -> torch.device:
    """Where the network is; of one on the CPU, where the pipeline's hooks bring it."""
    found = device_of(network)
    return torch.device(getattr(pipe, "_execution_device", found)) if found.type == "cpu" else found


def codec_of(pipe: Any, device: torch.device) -> LatentCodec | None:
    """The autoencoder of a pipeline, if it has one."""
    found = next((codec for name in _CODECS if (codec := getattr(pipe, name, None)) is not None), None)
    return None if found is None else LatentCodec.of(found, device)


# ---- guidance -------------------------------------------------------------------------------------------------------


def _with_guidance(pipe: Any, scale: float | None, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with a guidance scale: the network's own argument where it has one, else classifier-free guidance."""
    if scale is None:
        return dict(call)
    scale = checks.number("guidance_scale", scale, "a finite number; 1 means no guidance")
    parameters = inspect.signature(type(pipe).__call__).parameters
    config = dict(getattr(unwrapped(getattr(pipe, network_name(pipe))), "config", {}))
    name = "guidance_scale"
    if "true_cfg_scale" in parameters and not config.get("guidance_embeds"):
        name = "true_cfg_scale"
    checks.refuse(
        name not in parameters,
        f"{type(pipe).__name__} takes no guidance_scale; leave it out.",
    )
    checks.refuse(
        name in call,
        f"guidance_scale={scale:g} and {name}={call.get(name)!r} of {type(pipe).__name__}'s call are one scale; give "
        "one of them.",
    )
    return called_with_scale(call, name, scale, "negative_prompt" in parameters)


def _default_scale(pipe: Any) -> float:
    found = inspect.signature(type(pipe).__call__).parameters.get("guidance_scale")
    return float(found.default) if found is not None and checks.is_number(found.default) else 1.0


# ---- what comes along with a network that is called directly --------------------------------------------------------


def _prompts(pipe: Any, device: torch.device) -> PromptEncoder | None:
    tokenizer, encoder = getattr(pipe, "tokenizer", None), getattr(pipe, "text_encoder", None)
    if tokenizer is None or encoder is None:
        return None
    return PromptEncoder(Path(), device, held=(tokenizer, encoder), placed=lambda: text_encoders_on(pipe, device))


# ---- what is refused ------------------------------------------------------------------------------------------------


def _check_is_pipeline(pipe: Any) -> None:
    hint = ""
    if isinstance(pipe, str | Path):
        hint = "; for a folder or a hub id use dv.Denoiser.from_pretrained(path)"
    elif isinstance(pipe, torch.nn.Module):
        hint = "; wrap a network by hand (dv.Denoiser(network, schedule, …))"
    elif isinstance(pipe, type):
        hint = "; give a loaded one"
    checks.refuse(
        bool(hint) or not hasattr(pipe, "scheduler"),
        f"pipe must be a loaded diffusers pipeline, with its scheduler, but got {checks.brief(pipe)}{hint}.",
    )
    checks.refuse(
        not callable(pipe) or not hasattr(pipe.scheduler, "config"),
        f"the pipeline {type(pipe).__name__} cannot be called, or its scheduler ({type(pipe.scheduler).__name__}) has "
        "no config; wrap its network by hand (dv.Denoiser(callable, schedule, …)).",
    )
