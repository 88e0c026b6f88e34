"""Latents: what an autoencoder makes of images, scaled as the diffusion network was trained on them.

    z = (encoder mean − shift) · scale        image = decoder(z/scale + shift)

`scale` and `shift` are numbers, or one for each channel (see `latent_form`). The encoder's mean (not a random draw from
its posterior) is used, so that an image has one latent. VQ models encode to their unquantised latents and quantise
when decoding (latent diffusion, arXiv:2112.10752). Autoencoders of videos see an image as a video of one frame, those
of images a video as its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch

from ...errors import InputError
from ...randomness import generator, normal
from ...unwrapping import is_placed
from ..fingerprint import precision_of, weights_fingerprint
from ..network_use import NetworkUse, failing
from ..probe import probed
from .latent_form import ByChannel, LatentForm, common_scaling

__all__ = ["IMAGE_RANGE", "LatentCodec", "common_scaling"]
#: The range of the images that autoencoders take and give.
IMAGE_RANGE = (-1.0, 1.0)


class LatentCodec:
    """An autoencoder that is loaded when it is first used, evaluated in evaluation mode and left in its own.

    Args:
        load: makes the autoencoder (AutoencoderKL, AutoencoderTiny or VQModel), on the CPU.
        config: its config.
        device: where it runs.
        form: what its latents are like; None: as its config says.

    What it raises is a `NetworkError`.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        config: Mapping[str, Any],
        device: torch.device,
        form: LatentForm | None = None,
    ) -> None:
        self._load, self.device, self._use = load, device, NetworkUse()
        self.form = LatentForm.of_config(config) if form is None else form
        self.factor = self.form.factor * self.form.patch

    @classmethod
    def of(cls, network: Any, device: torch.device) -> LatentCodec:
        """The codec of a loaded autoencoder, of any kind."""
        return cls(lambda: network, {}, device, LatentForm.of(network))

    @cached_property
    def network(self) -> Any:
        """The autoencoder itself."""
        found = self._load()
        return found if is_placed(found) else found.to(self.device)

    @property
    def fingerprint(self) -> str:
        """The digest of the autoencoder's weights as they are now."""
        return weights_fingerprint(self.network)

    def probe(self) -> dict[str, Any] | None:
        """What its encoder does, as `measured` numbers; None where it cannot be told."""
        small = {1: (1, 8), 2: (1, 8, 8), 3: (1, 1, 8, 8)}[self.form.axes]
        shape = (1, *self.image_shape(small))

        def latents(images: Sequence[int]) -> torch.Tensor:
            noise = [normal(generator(0, "probe of an encoder", k), *shape) for k in images]
            return self._latents(torch.cat(noise).clamp(*IMAGE_RANGE))

        return probed(self.network, latents, [0], list(shape), precision_of(self.network), hooks=False)

    @property
    def scaling(self) -> tuple[ByChannel, ByChannel]:
        """(scale, shift) of its latents."""
        return self.form.scale, self.form.shift

    @property
    def common_scaling(self) -> tuple[ByChannel, ByChannel] | None:
        """See `LatentForm`."""
        return self.form.common_scaling

    def image_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, *spatial) of the images, videos or sounds that have latents of this shape."""
        return self.form.image_shape(latent_shape)

    def evaluating(self) -> AbstractContextManager[None]:
        """The autoencoder in evaluation mode, for a run of many batches."""
        return self._use.evaluating(self.network)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) in [-1, 1] to latents (B, c, *spatial), float32 on the CPU."""
        with self._called(f"to encode a batch of {len(images)}", images):
            return self._latents(images)

    @contextmanager
    def _called(self, where: str, given: torch.Tensor) -> Iterator[None]:
        with self.evaluating(), failing(self.network, given, lambda: where, "the autoencoder"):
            yield

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        given = images.to(self.device, self.network.dtype, copy=True)  # it may write into them
        found = self.network.encode(self._shown(given))
        name = next((name for name in ("latents", "latent") if hasattr(found, name)), None)
        raw = self._seen(found.latent_dist.mode() if name is None else getattr(found, name), images)
        if self.form.patch > 1:
            raw = torch.nn.functional.pixel_unshuffle(raw, self.form.patch)
        scale, shift = (_by_channel(value, raw) for value in self.scaling)
        latents: torch.Tensor = (raw.float() - shift) * scale
        return latents.cpu()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
        """Latents (B, c, *spatial) to images (B, C, *spatial), float32 on the CPU; pictures are cut to [-1, 1]."""
        self._check(latents, batch_size)
        parts = []
        for start in range(0, len(latents), batch_size):
            images = self._images(latents[start : start + batch_size].to(self.device).float())
            cut = images.float() if self.form.axes == 1 else images.float().clamp(*IMAGE_RANGE)
            parts.append(cut.cpu())
        return torch.cat(parts)

    def differentiable(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, as part of a computation that is differentiated, forwards or backwards: (B, c, *spatial) to
        (B, C, *spatial) in one batch, not cut, on the autoencoder's device and in the latents' dtype.

        Its derivatives are the autoencoder's own: VQ models pass those of the quantised latents to the latents.
        """
        self._check(latents, 1)
        return self._images(latents.to(self.device)).to(latents.dtype)

    def _images(self, z: torch.Tensor) -> torch.Tensor:
        scale, shift = (_by_channel(value, z) for value in self.scaling)
        given = z / scale + shift
        with self._called(f"to decode a batch of {len(z)}", given):
            return self._decoded(given)

    def _decoded(self, z: torch.Tensor) -> torch.Tensor:
        if self.form.patch > 1:
            z = torch.nn.functional.pixel_shuffle(z, self.form.patch)
        given = self._shown(z.to(self.network.dtype))
        levels = (torch.zeros(len(given), device=given.device, dtype=given.dtype),) if self.form.told_timestep else ()
        return self._seen(self.network.decode(given, *levels).sample, z)

    # ---- images and videos --------------------------------------------------------------------------------------

    def _check(self, latents: Any, batch_size: int) -> None:
        if not isinstance(latents, torch.Tensor) or not self._fits(latents) or len(latents) == 0 or batch_size < 1:
            found = tuple(latents.shape) if hasattr(latents, "shape") else type(latents).__name__
            raise InputError(
                f"latents are {found} and batch_size={batch_size}, but a tensor {self._form} of at least one latent, "
                "and at least 1, are expected."
            )

    def _fits(self, latents: torch.Tensor) -> bool:
        axes, of = latents.ndim - 2, self.form.axes
        return axes == of or {axes, of} == {2, 3}

    @property
    def _form(self) -> str:
        return {1: "(B, c, l)", 2: "(B, c, h, w)", 3: "(B, c, f, h, w)"}[self.form.axes]

    def _shown(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) with as many axes as the autoencoder works on."""
        if self.form.axes == 3 and x.ndim == 4:
            return x.unsqueeze(2)
        if self.form.axes == 2 and x.ndim == 5:
            return x.movedim(2, 1).flatten(0, 1)
        return x

    def _seen(self, out: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What it returned, with as many axes as it was given."""
        if self.form.axes == 3 and like.ndim == 4:
            return out.squeeze(2)
        if self.form.axes == 2 and like.ndim == 5:
            return out.reshape(len(like), like.shape[2], *out.shape[1:]).movedim(1, 2)
        return out


def _by_channel(value: ByChannel, like: torch.Tensor) -> Any:
    """A number, or numbers of channels that broadcast to latents."""
    if not isinstance(value, tuple):
        return value
    return torch.tensor(value, dtype=torch.float32, device=like.device).view(-1, *(1,) * (like.ndim - 2))
