"""Loading diffusers models: a folder (or hub id) becomes a `Denoiser`.

Read from the configs alone: what the network predicts, whether its mean is clipped, the noise schedule, the range of
the data, whether it works on latents, and what it is conditioned on. Supported are UNet2DModel (DDPM, DDIM, LDM and
score-SDE pipelines, class labels included), UNet2DConditionModel (Stable Diffusion 1 and 2 and their like) and
DiTTransformer2DModel; for others, `Denoiser(callable, schedule, …)`. Safetensors only, unless pickles are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...process.diffusers_configs import config_of, schedule_of
from ..denoiser import Denoiser
from .components import CODECS, NETWORKS, load_component
from .conventions import clip_of, data_range_of, prediction_of
from .folder import ModelFolder, open_folder
from .latents import LatentCodec
from .prompts import PromptEncoder


def load(
    path: str | Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    variant: str | None,
    revision: str | None,
    autocast: torch.dtype | None,
    guidance_scale: float,
    unconditional: Any,
    allow_pickle: bool,
) -> Denoiser:
    """See `Denoiser.from_pretrained`."""
    folder = open_folder(path, revision, variant, allow_pickle)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    part, config = folder.network()
    with _scheduler_of(folder.name):
        scheduler = config_of(folder.scheduler())
        _check_thresholding(scheduler)
        schedule, prediction = schedule_of(scheduler), prediction_of(scheduler)
        clip, data_range = clip_of(scheduler), data_range_of(scheduler)
        sigma_data = checks.number("sigma_data", scheduler.get("sigma_data", 0.5))
    network = load_component(folder, part, config, NETWORKS, dtype, allow_pickle).to(device)
    _check_channels(folder, network.config, scheduler)
    codec, prompts = _codec(folder, device, dtype, allow_pickle), _prompts(folder, device)
    if unconditional is None:
        unconditional = _unconditional(network, prompts, guidance_scale)
    denoiser = Denoiser(
        network,
        schedule,
        prediction,
        (network.config.in_channels, *_height_and_width(network.config.sample_size, folder.name)),
        clip=clip,
        data_range=None if codec is not None else data_range,
        device=device,
        autocast=autocast,
        sigma_data=sigma_data,
        guidance_scale=guidance_scale,
        unconditional=unconditional,
        conditional=_conditional(network, folder.name),
        classes=_classes(network),
    )
    denoiser.codec, denoiser.prompts = codec, prompts
    return denoiser


@contextmanager
def _scheduler_of(name: str) -> Iterator[None]:
    """What is wrong with a config is said with the name of the model that it belongs to."""
    try:
        yield
    except InputError as error:
        raise InputError(
            str(error) if name in str(error) else f"the scheduler of {name} cannot be used: {error}"
        ) from error


# ---- the network ----------------------------------------------------------------------------------------------


def _check_channels(folder: ModelFolder, config: Any, scheduler: Mapping[str, Any]) -> None:
    """Refuse networks that are not C to C or 2C channels, and a learned range that only one of the two knows of."""
    given, returned = config.in_channels, config.out_channels or config.in_channels
    if returned not in (given, 2 * given):
        raise InputError(
            f"the network in {folder.name} takes {given} channels and returns {returned}, but the same number, or "
            "twice as many for a learned range, is expected (inpainting UNets take masks too); wrap it with "
            "Denoiser(callable, schedule, …)."
        )
    kind = scheduler.get("variance_type")
    learned = isinstance(kind, str) and kind.startswith("learned")
    if returned == given and learned:
        raise InputError(
            f"the scheduler in {folder.name} has variance_type={kind!r}, but its network returns {returned} channels, "
            f"not {2 * given}; set variance_type to fixed_small in scheduler_config.json."
        )
    if returned != given and kind is not None and not learned:
        raise InputError(
            f"the network in {folder.name} returns {returned} channels, a learned range, but its scheduler has "
            f"variance_type={kind!r}; set it to learned_range in scheduler_config.json."
        )
    if kind == "learned":
        raise InputError(
            f"the scheduler in {folder.name} has variance_type='learned' (log-variances), but only learned_range is "
            "supported; wrap the network with Denoiser(callable, schedule, …)."
        )


def _check_thresholding(scheduler: Mapping[str, Any]) -> None:
    if scheduler.get("thresholding"):
        raise InputError(
            "the scheduler has thresholding=true (dynamic clipping), which is not supported; set it to false in "
            "scheduler_config.json."
        )


def _conditional(network: Any, name: str) -> bool:
    """Whether the network wants a condition, as its third argument; InputError where it wants more than one."""
    config = network.config
    if type(network).__name__ == "UNet2DModel":
        return config.class_embed_type is not None or config.num_class_embeds is not None
    wants = [
        key
        for key in (
            "addition_embed_type",
            "encoder_hid_dim_type",
            "class_embed_type",
            "num_class_embeds",
            "time_cond_proj_dim",
        )
        if getattr(config, key, None) is not None
    ]
    if type(network).__name__ == "UNet2DConditionModel" and wants:
        raise InputError(
            f"the UNet in {name} wants more than prompt embeddings ({wants[0]}={getattr(config, wants[0])!r}), which "
            "is not supported; wrap it with Denoiser(callable, schedule, …)."
        )
    return True


def _unconditional(network: Any, prompts: PromptEncoder | None, guidance_scale: float) -> Any:
    """The condition that stands for none: DiT's null label, or the empty prompt (if it is wanted now)."""
    if type(network).__name__ == "DiTTransformer2DModel":
        return torch.tensor(network.config.num_embeds_ada_norm)
    return None if prompts is None or guidance_scale == 1 else prompts.encode([""])[0]


def _classes(network: Any) -> int | None:
    """How many class labels the network knows; None where it takes none, or something else in their place."""
    if type(network).__name__ == "DiTTransformer2DModel":
        return int(network.config.num_embeds_ada_norm) + 1
    plain = type(network).__name__ == "UNet2DModel" and network.config.class_embed_type is None
    return network.config.num_class_embeds if plain else None


def _height_and_width(sample_size: Any, name: str) -> tuple[int, int]:
    sizes = sample_size if isinstance(sample_size, (list, tuple)) else [sample_size] * 2
    if len(sizes) == 2 and all(checks.is_number(size) and 0 < size < math.inf and size == int(size) for size in sizes):
        return int(sizes[0]), int(sizes[1])
    raise InputError(
        f"the UNet in {name} has sample_size={checks.brief(sample_size)} in its config, so the image shape is unknown; "
        "set it there."
    )


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
    return LatentCodec(lambda: load_component(folder, part, config, CODECS, dtype, allow_pickle), config, device)


def _prompts(folder: ModelFolder, device: torch.device) -> PromptEncoder | None:
    return PromptEncoder(folder.path, device, folder.variant) if folder.has_prompts else None
