"""Networks that are called as network(x_t, timestep, condition), and what their configs say of them.

UNet2DModel (DDPM, DDIM, LDM and score-SDE pipelines, class labels included), UNet2DConditionModel without other
embeddings than prompts (Stable Diffusion 1 and 2 and their like), and DiTTransformer2DModel. A UNet that takes more
channels than it returns is shown an image beside the noisy one (a mask and what is left of an inpainted picture, a
small picture to enlarge): that is a condition, {"concatenated": (B, c, H, W)}, with {"prompt": …} or {"label": …} where
it takes those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...process.diffusers_configs import config_of, schedule_of
from ...unwrapping import unwrapped
from ..guidance import OwnGuidance
from .conventions import clip_of, data_range_of, prediction_of
from .latents import LatentCodec
from .prompts import PromptEncoder


@dataclass(frozen=True)
class Told:
    """What a scheduler's config says of a network; see `Denoiser` for the names."""

    config: Mapping[str, Any]
    arguments: dict[str, Any]
    data_range: tuple[float, float]

    @classmethod
    def by(cls, scheduler: Any, name: str) -> Told:
        """From the scheduler (or its config) of a model called `name`."""
        with _scheduler_of(name):
            config = config_of(scheduler)
            _check_thresholding(config)
            arguments: dict[str, Any] = {
                "schedule": schedule_of(config),
                "prediction": prediction_of(config),
                "clip": clip_of(config),
            }
            arguments["sigma_data"] = checks.number("sigma_data", config.get("sigma_data", 0.5))
            return cls(config, arguments, data_range_of(config))


@contextmanager
def _scheduler_of(name: str) -> Iterator[None]:
    """What is wrong with a config is said with the name of the model that it belongs to."""
    try:
        yield
    except InputError as error:
        raise InputError(
            str(error) if name in str(error) else f"the scheduler of {name} cannot be used: {error}"
        ) from error


class Concatenated(torch.nn.Module):
    """A network that is shown a condition's image in its last channels."""

    wraps = "network"

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, condition: Any) -> Any:
        """The network's output for x_t (B, C, H, W) beside condition["concatenated"] (B, c, H, W)."""
        wrong = not isinstance(condition, dict) or "concatenated" not in condition
        checks.refuse(
            wrong, f'the condition must be {{"concatenated": (B, c, H, W), …}}, but it is a {type(condition).__name__}.'
        )
        others = [value for name, value in condition.items() if name != "concatenated"]
        extra = unwrapped(self.network).config.in_channels - x.shape[1]
        beside, expected = condition["concatenated"], (extra, *x.shape[2:])
        checks.refuse(
            tuple(beside.shape[1:]) != expected,
            f'condition["concatenated"] has shape {tuple(beside.shape)}, but (B, {", ".join(map(str, expected))}) is '
            "expected.",
        )
        return self.network(torch.cat([x, beside.to(x.dtype)], dim=1), timestep, *others)


def is_direct(network: Any) -> bool:
    """Whether a network (or its config, as a dict with `_class_name`) is one of those that are called here."""
    config = network if isinstance(network, Mapping) else {**getattr(unwrapped(network), "config", {})}
    kind = config.get("_class_name") if isinstance(network, Mapping) else type(unwrapped(network)).__name__
    if kind == "UNet2DConditionModel":
        return not _wanted(config)
    dit = kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return kind in ("UNet2DModel", "DiTTransformer2DModel") or dit


@dataclass(frozen=True)
class Parts:
    """What a denoiser is made of: the arguments of `Denoiser` by name, and what comes along.

    Attribute `guidance`: that of a network which guides itself.
    """

    arguments: dict[str, Any]
    codec: LatentCodec | None
    prompts: Any
    guidance: OwnGuidance | None = None


def assemble(
    network: Any,
    told: Told,
    codec: LatentCodec | None,
    prompts: PromptEncoder | None,
    name: str,
    device: torch.device,
    autocast: torch.dtype | None = None,
    guidance_scale: float = 1.0,
    unconditional: Any = None,
    size: tuple[int, int] | None = None,
) -> Parts:
    """The denoiser's parts for such a network; see `Denoiser.from_pretrained`.

    Args:
        name: of the model, for messages.
        size: H and W of what it works on; None: as its config says.
    """
    bare = unwrapped(network)
    channels, extra = _channels(name, bare.config, told.config)
    if unconditional is None:
        unconditional = _unconditional(bare, prompts, guidance_scale)
        if extra and unconditional is not None:
            unconditional = {"prompt": unconditional}
    conditional = _conditional(bare, name) or extra > 0
    arguments = dict(
        network=Concatenated(network) if extra else network,
        shape=(channels, *(size or _height_and_width(bare.config.sample_size, name))),
        data_range=None if codec is not None else told.data_range,
        device=device,
        autocast=autocast,
        guidance_scale=guidance_scale,
        unconditional=unconditional,
        conditional=conditional,
        classes=None if extra else _classes(bare),
        **told.arguments,
    )
    return Parts(arguments, codec, prompts)


def size_of_call(name: str, call: Mapping[str, Any], factor: int) -> tuple[int, int] | None:
    """H and W of what a network works on, of the pictures' height and width; None where they are not given. InputError
    for other arguments of a pipeline's call, which has no part in it."""
    if not call:
        return None
    checks.refuse(
        call.keys() != {"height", "width"},
        f"of {name}, whose network is called without its pipeline's loop, height and width (both) can be given, but "
        f"got {checks.listing(list(call))}; leave it out.",
    )
    sides = [checks.whole(side, call[side], least=1) for side in ("height", "width")]
    wrong = any(side % factor for side in sides)
    checks.refuse(wrong, f"height and width are {sides[0]} and {sides[1]}, but multiples of {factor} are expected.")
    return sides[0] // factor, sides[1] // factor


def _channels(name: str, config: Any, scheduler: Mapping[str, Any]) -> tuple[int, int]:
    """(C of the images, channels of an image beside them); refused are a learned range that only one of network and
    scheduler knows of, and networks that return more than that."""
    given, returned = config.in_channels, config.out_channels or config.in_channels
    kind = scheduler.get("variance_type")
    learned = isinstance(kind, str) and kind.startswith("learned")
    if returned not in (given, 2 * given) and (returned > given or learned):
        raise InputError(
            f"the network in {name} takes {given} channels and returns {returned}, but the same number, fewer "
            "(beside an image), or twice as many for a learned range, is expected; wrap it with Denoiser(callable, "
            "schedule, …)."
        )
    if returned <= given and learned:
        raise InputError(
            f"the scheduler in {name} has variance_type={kind!r}, but its network returns {returned} channels, "
            f"not {2 * given}; set variance_type to fixed_small in scheduler_config.json."
        )
    if returned > given and kind is not None and not learned:
        raise InputError(
            f"the network in {name} returns {returned} channels, a learned range, but its scheduler has "
            f"variance_type={kind!r}; set it to learned_range in scheduler_config.json."
        )
    if kind == "learned":
        raise InputError(
            f"the scheduler in {name} has variance_type='learned' (log-variances), but only learned_range is "
            "supported; wrap the network with Denoiser(callable, schedule, …)."
        )
    return (returned, given - returned) if returned < given else (given, 0)


def _check_thresholding(scheduler: Mapping[str, Any]) -> None:
    if scheduler.get("thresholding"):
        raise InputError(
            "the scheduler has thresholding=true (dynamic clipping), which is not supported; set it to false in "
            "scheduler_config.json."
        )


def _wanted(config: Mapping[str, Any]) -> list[str]:
    """What a UNet2DConditionModel wants besides prompts, by the names of its config."""
    names = (
        *("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim"),
    )
    return [name for name in names if config.get(name) is not None]


def _conditional(network: Any, name: str) -> bool:
    """Whether the network wants a condition, as its third argument; InputError where it wants more than one."""
    config = network.config
    if type(network).__name__ == "UNet2DModel":
        return config.class_embed_type is not None or config.num_class_embeds is not None
    if type(network).__name__ == "UNet2DConditionModel" and (wants := _wanted({**config})):
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
