"""A loaded diffusers pipeline as a `Denoiser`.

Networks that are called as network(x_t, timestep, condition) are called so (`direct`); every other pipeline is run by
its own loop (`loop`), with the prompts that its own `encode_prompt` encoded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...unwrapping import device_of, unwrapped
from ..denoiser import Denoiser
from ..guidance import OwnGuidance
from ..network_checks import checked_device
from .direct import Told, assemble, is_direct, size_of_call
from .latents import LatentCodec
from .layout import Layout
from .loop import PipelineLoop, network_name, text_encoders_on
from .prompts import PromptEncoder

_CODECS = ("vae", "vqvae")


class PipelinePrompts:
    """The prompts of a pipeline's loop, encoded by the pipeline itself."""

    def __init__(self, loop: PipelineLoop, device: torch.device) -> None:
        self.loop, self.device = loop, device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 1) -> dict[str, torch.Tensor]:
        """The conditions of P prompts, a nest of tensors (P, …) on the CPU; "" is a prompt. Each is encoded alone, as
        the pipeline would for one image (`batch_size` changes nothing). Afterwards the text encoders lie on the CPU."""
        if isinstance(prompts, str) or len(prompts) == 0 or not all(isinstance(p, str) for p in prompts):
            raise InputError(f"prompts={prompts!r} must be a list of at least one text.")
        return self.loop.encoded(prompts, self.device)


def from_pipeline(
    pipe: Any,
    guidance_scale: float | None,
    device: torch.device | str | None,
    autocast: torch.dtype | None,
    layout: Layout | str | None,
    call: Mapping[str, Any],
) -> Denoiser:
    """See `Denoiser.from_pipeline`."""
    _check_is_pipeline(pipe)
    network, name = getattr(pipe, network_name(pipe)), type(pipe).__name__
    told = Told.by(pipe.scheduler, name)
    chosen = _device(pipe, network) if device is None else checked_device(device)
    codec = codec_of(pipe, chosen)
    if is_direct(network):
        checks.refuse(layout is not None, f"the samples of {name} are images as they are; leave layout out.")
        scale = _default_scale(pipe) if guidance_scale is None else guidance_scale
        prompts, size = _prompts(pipe, chosen), size_of_call(name, call, 1 if codec is None else codec.factor)
        return assemble(network, told, codec, prompts, name, chosen, autocast, scale, size=size)
    loop = PipelineLoop(pipe, _with_guidance(pipe, guidance_scale, call), chosen, layout)
    denoiser = Denoiser(
        loop,
        shape=loop.shape,
        data_range=None if codec is not None else told.data_range,
        device=chosen,
        autocast=autocast,
        conditional=loop.takes_prompts,
        **told.arguments,
    )
    denoiser.codec = codec
    return with_loop(denoiser, loop)


def with_loop(denoiser: Denoiser, loop: PipelineLoop) -> Denoiser:
    """The denoiser with a loop for its network, its prompts and its guidance."""
    denoiser.network = loop
    denoiser.prompts = PipelinePrompts(loop, denoiser.device) if loop.takes_prompts else None
    denoiser.guidance = None if loop.guidance_scale == 1 else OwnGuidance(loop.guidance_scale, ())
    return denoiser


def with_other_guidance(denoiser: Denoiser, scale: float) -> Denoiser:
    """The denoiser with classifier-free guidance of another scale, applied by its pipeline."""
    loop: Any = denoiser.network
    scale = checks.number("guidance_scale", scale, "a finite number; 1 means no guidance")
    call = _with_scale({**loop.call}, loop.scale_name, scale, loop.takes("negative_prompt"))
    return with_loop(denoiser, PipelineLoop(loop.pipe, call, denoiser.device, loop.layout.name))


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
    return _with_scale(dict(call), name, scale, "negative_prompt" in parameters)


def _with_scale(call: dict[str, Any], name: str, scale: float, negative: bool) -> dict[str, Any]:
    call[name] = scale
    if name == "true_cfg_scale" and negative and scale > 1:  # without a negative prompt, such pipelines do not guide
        call.setdefault("negative_prompt", "")
    return call


def unguided(pipe: Any) -> float | None:
    """The guidance_scale that means no classifier-free guidance: 1, and the pipeline's default (None) where its network
    is told the scale, or it takes none."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    config = dict(getattr(unwrapped(getattr(pipe, network_name(pipe))), "config", {}))
    told = bool(config.get("guidance_embeds")) or not {"guidance_scale", "true_cfg_scale"} & {*parameters}
    return None if told else 1.0


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
