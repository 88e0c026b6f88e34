"""What kind of latents an autoencoder makes: their scaling, and how large the pictures, videos or sounds of them are.

    one scale and shift        AutoencoderKL, VQModel, AutoencoderDC: scaling_factor, shift_factor
    by channel                 Wan, Qwen-Image, LTX, Mochi: scale = scaling_factor/latents_std, shift = latents_mean
    by channel of patches      Flux.2: 2 × 2 places are one of four times the channels, statistics of its batch norm
    none                       AutoencoderOobleck, AutoencoderTiny (which gives latents as they are after scaling)

Read from the config and the buffers of the autoencoder alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...process.diffusers_configs import number
from ...unwrapping import unwrapped

#: One number, or one for each channel of the latents.
ByChannel = float | tuple[float, ...]
SCALED_ALREADY = ("AutoencoderTiny",)
_DEFAULT = {"AutoencoderKL": 0.18215, "VQModel": 0.18215, None: 0.18215}  # where a config does not say


def latent_scaling(config: Mapping[str, Any], kind: str | None = None) -> tuple[float, float]:
    """(scale, shift) of the config of an autoencoder of class `kind`; where it does not say, the class's default."""
    shift = number(config, "shift_factor", 0.0) if config.get("shift_factor") is not None else 0.0
    return number(config, "scaling_factor", _DEFAULT.get(kind, 1.0)), shift


def common_scaling(config: Mapping[str, Any], kind: str | None) -> tuple[float, float] | None:
    """`latent_scaling`, where it tells latents from others: None for AutoencoderTiny, which is distilled to give the
    latents of an AutoencoderKL as they are after its scaling."""
    return None if kind in SCALED_ALREADY else latent_scaling(config, kind)


@dataclass(frozen=True)
class LatentForm:
    """What kind of latents an autoencoder makes.

    Attributes:
        kind: the autoencoder's class.
        scale, shift: z = (encoder's − shift) · scale.
        channels: of the images.
        factor, frames: how many times larger an image's sides, and how many times as many the frames of a video are.
        axes: spatial axes that the autoencoder works on: 1 of sounds, 2 of images, 3 of videos.
        patch: side of the places that are one in latents.
        told_timestep: whether its decoder is told a noise level, which is 0.
    """

    kind: str | None
    scale: ByChannel
    shift: ByChannel
    channels: int = 3
    factor: int = 1
    frames: int = 1
    axes: int = 2
    patch: int = 1
    told_timestep: bool = False

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        wrong = next((s for s in scales if not math.isfinite(s) or s == 0), None)
        checks.refuse(
            wrong is not None, f"the autoencoder's scaling_factor is {wrong}, but it must be finite and not 0."
        )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> LatentForm:
        """From the config (with `_class_name`) of an autoencoder of images with one scale."""
        kind = config.get("_class_name")
        scale, shift = latent_scaling(config, kind)
        levels = config.get("encoder_block_out_channels" if kind in SCALED_ALREADY else "block_out_channels", (64,))
        return cls(kind, scale, shift, int(config.get("in_channels", 3)), 2 ** (len(levels) - 1))

    @classmethod
    def of(cls, network: Any) -> LatentForm:
        """Of a loaded autoencoder."""
        bare = unwrapped(network)
        config, kind = {**bare.config}, type(bare).__name__
        scale, shift = latent_scaling(config, kind)
        by_channel = _statistics(bare, config)
        if by_channel is not None:
            mean, std = by_channel
            checks.refuse(not all(std), f"latents_std of the {kind} holds 0, but scales are expected that are not.")
            return cls(kind, tuple(scale / s for s in std), tuple(mean), **_sizes(bare, config))
        return cls(kind, scale, shift, **_sizes(bare, config))

    @property
    def common_scaling(self) -> tuple[ByChannel, ByChannel] | None:
        """(scale, shift), where it tells latents from others, as the function of this name does."""
        return None if self.kind in SCALED_ALREADY else (self.scale, self.shift)

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (C, *spatial) of what has latents of this shape."""
        spatial = latent_shape[1:]
        frames = [(n - 1) * self.frames + 1 for n in spatial[:-2]]
        return (self.channels, *frames, *(n * self.factor * self.patch for n in spatial[-2:]))


def _statistics(bare: Any, config: Mapping[str, Any]) -> tuple[list[float], list[float]] | None:
    """(means, standard deviations) of the channels of latents, where the autoencoder has them."""
    norm = getattr(bare, "bn", None)
    if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
        eps = number(config, "batch_norm_eps", norm.eps)
        return norm.running_mean.double().tolist(), (norm.running_var.double() + eps).sqrt().tolist()
    found = []
    for name in ("latents_mean", "latents_std"):
        value = bare._buffers.get(name)  # LTX's are weights
        value = config.get(name) if not isinstance(value, torch.Tensor) else value.double().tolist()
        if value is None:
            return None
        try:
            found.append([float(x) for x in value])
        except (TypeError, ValueError):
            raise InputError(f"{name} of the autoencoder is no list of numbers, but one is expected.") from None
    return found[0], found[1]


def _sizes(bare: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {type(module) for module in bare.modules()}
    video = any(issubclass(kind, torch.nn.Conv3d) for kind in kinds)
    sound = not video and not any(issubclass(kind, torch.nn.Conv2d) for kind in kinds)
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or (64,)
    down = getattr(bare, "temperal_downsample", ())  # spelt so by diffusers
    frames = config.get("scale_factor_temporal") or getattr(bare, "temporal_compression_ratio", None)
    sides = config.get("scale_factor_spatial") or getattr(bare, "spatial_compression_ratio", None)
    return {
        "channels": int(config.get("audio_channels", 1) if sound else config.get("in_channels", 3)),
        "factor": int(getattr(bare, "hop_length", 1) if sound else sides or 2 ** (len(levels) - 1)),
        "frames": int(frames or 2 ** sum(map(bool, down))) if video else 1,
        "axes": 3 if video else 1 if sound else 2,
        "patch": 2 if isinstance(getattr(bare, "bn", None), torch.nn.BatchNorm2d) else 1,
        "told_timestep": bool(config.get("timestep_conditioning")),
    }
