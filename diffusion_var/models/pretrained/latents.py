"""Latents: what an autoencoder makes of images, scaled as the diffusion network was trained on them.

    z = (encoder mean − shift) · scale        image = decoder(z/scale + shift)

`scale` and `shift` are the autoencoder's scaling_factor and shift_factor. The encoder's mean (not a random draw from
its posterior) is used, so that an image has one latent. VQ models encode to their unquantised latents and quantise
when decoding (latent diffusion, arXiv:2112.10752).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch

from ...errors import InputError
from ...process.diffusers_configs import number
from ...randomness import generator, normal
from ...unwrapping import unwrapped
from ..fingerprint import precision_of, weights_fingerprint
from ..network_use import NetworkUse, failing
from ..probe import probed

_SCALED_ALREADY = ("AutoencoderTiny",)
#: The range of the images that autoencoders take and give.
IMAGE_RANGE = (-1.0, 1.0)


def latent_scaling(config: Mapping[str, Any], kind: str | None = None) -> tuple[float, float]:
    """(scale, shift) of the config of an autoencoder of class `kind`; where it does not say, the class's default."""
    shift = number(config, "shift_factor", 0.0) if config.get("shift_factor") is not None else 0.0
    return number(config, "scaling_factor", 1.0 if kind in _SCALED_ALREADY else 0.18215), shift


def common_scaling(config: Mapping[str, Any], kind: str | None) -> tuple[float, float] | None:
    """`latent_scaling`, where it tells latents from others: None for AutoencoderTiny, which is distilled to give the
    latents of an AutoencoderKL as they are after its scaling."""
    return None if kind in _SCALED_ALREADY else latent_scaling(config, kind)


class LatentCodec:
    """An autoencoder that is loaded when it is first used, evaluated in evaluation mode and left in its own.

    Args:
        load: makes the autoencoder (AutoencoderKL, AutoencoderTiny or VQModel), on the CPU.
        config: its config.
        device: where it runs.

    What it raises is a `NetworkError`.
    """

    def __init__(self, load: Callable[[], Any], config: dict[str, Any], device: torch.device) -> None:
        self._load, self.device, self._use = load, device, NetworkUse()
        kind = config.get("_class_name")
        self.scale, self.shift = latent_scaling(config, kind)
        self.common_scaling = common_scaling(config, kind)
        self.image_channels = int(config.get("in_channels", 3))
        levels = config.get("encoder_block_out_channels" if kind in _SCALED_ALREADY else "block_out_channels", (64,))
        self.factor = 2 ** (len(levels) - 1)
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise InputError(f"the autoencoder's scaling_factor is {self.scale}, but it must be finite and not 0.")

    @classmethod
    def of(cls, network: Any, device: torch.device) -> LatentCodec:
        """The codec of a loaded autoencoder."""
        bare = unwrapped(network)
        return cls(lambda: network, {**bare.config, "_class_name": type(bare).__name__}, device)

    @cached_property
    def network(self) -> Any:
        """The autoencoder itself."""
        return self._load().to(self.device)

    @property
    def fingerprint(self) -> str:
        """The digest of the autoencoder's weights as they are now."""
        return weights_fingerprint(self.network)

    def probe(self) -> dict[str, Any] | None:
        """What its encoder does, as `measured` numbers; None where it cannot be told."""
        shape = (1, self.image_channels, 8 * self.factor, 8 * self.factor)

        def latents(images: Sequence[int]) -> torch.Tensor:
            noise = [normal(generator(0, "probe of an encoder", k), *shape) for k in images]
            return self._latents(torch.cat(noise).clamp(*IMAGE_RANGE))

        return probed(self.network, latents, [0], list(shape), precision_of(self.network), hooks=False)

    @property
    def scaling(self) -> tuple[float, float]:
        """(scale, shift) of its latents."""
        return self.scale, self.shift

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) of the images that have latents of this shape."""
        return self.image_channels, latent_shape[1] * self.factor, latent_shape[2] * self.factor

    def evaluating(self) -> AbstractContextManager[None]:
        """The autoencoder in evaluation mode, for a run of many batches."""
        return self._use.evaluating(self.network)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] to latents (B, c, h, w), float32 on the CPU."""
        with self._called(f"to encode a batch of {len(images)}", images):
            return self._latents(images)

    @contextmanager
    def _called(self, where: str, given: torch.Tensor) -> Iterator[None]:
        with self.evaluating(), failing(self.network, given, lambda: where, "the autoencoder"):
            yield

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network.encode(images.to(self.device, self.network.dtype, copy=True))  # it may write into them
        raw: torch.Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return ((raw.float() - self.shift) * self.scale).cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
        """Latents (B, c, h, w) to images (B, C, H, W) in [-1, 1], float32 on the CPU."""
        if not isinstance(latents, torch.Tensor) or latents.ndim != 4 or len(latents) == 0 or batch_size < 1:
            found = tuple(latents.shape) if hasattr(latents, "shape") else type(latents).__name__
            raise InputError(
                f"latents are {found} and batch_size={batch_size}, but a tensor (B, c, h, w) of at least one latent, "
                "and at least 1, are expected."
            )
        parts = []
        for start in range(0, len(latents), batch_size):
            z = latents[start : start + batch_size].to(self.device).float() / self.scale + self.shift
            with self._called(f"to decode a batch of {len(z)}", z):
                images = self.network.decode(z.to(self.network.dtype)).sample
            parts.append(images.float().clamp(*IMAGE_RANGE).cpu())
        return torch.cat(parts)
