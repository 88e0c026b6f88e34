"""How a pipeline's samples become images (C, *spatial) and back: what a covariance by channel or place asks.

    plain           (B, C, *spatial)    nearly all: latents, signals (B, C, L), videos (B, C, F, H, W)
    channels_last   (B, *spatial, C)    Kandinsky 5, sounds of ACE-Step
    tokens          (B, L, C)           L places in row order: Flux.2, Qwen-Image 2.1, LTX
    tokens_2x2      (B, L, C·2·2)       a token is a patch: Flux, Chroma, Bria, Qwen-Image (tokens_1x2x2: of videos)

A token holds its patch channel by channel: entry (c, i, j) of C × p × p. All of them only reorder numbers, so that
noise, log-determinants and norms are the same in either order. From samples of tokens alone H and W cannot be told:
there the layout needs the images' shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ... import checks
from ...errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One order of a sample's numbers.

    Args:
        name: "plain", "channels_last", "tokens", or "tokens_" and the patch, such as "tokens_2x2".
        shape: (C, *spatial) of the images, which tokens need (see `of`).
    """

    name: str
    shape: Shape | None = None

    def __post_init__(self) -> None:
        known = self.name in LAYOUTS or re.fullmatch(r"tokens_\d{1,3}(x\d{1,3}){0,2}", str(self.name)) is not None
        checks.refuse(
            not known or 0 in self.patch,
            f"layout={checks.brief(self.name)} is not known; use one of {', '.join(LAYOUTS)}, or another patch.",
        )
        if self.shape is not None:
            shape = checks.shape("an image shape", self.shape)
            object.__setattr__(self, "shape", shape)  # the class is frozen
            wrong = len(self.patch) >= len(shape) or any(
                n % p for n, p in zip(shape[1:], self._patches(shape), strict=True)
            )
            checks.refuse(wrong, f"images of shape {shape} have no layout {self.name}: its patches do not fill them.")

    @property
    def patch(self) -> Shape:
        """Sizes of a token's patch, along the last spatial axes; () where there are no patches."""
        return tuple(int(p) for p in re.findall(r"\d+", str(self.name)))

    @property
    def is_plain(self) -> bool:
        """Whether samples are images as they are."""
        return self.name == "plain"

    def of(self, shape: Sequence[int]) -> Layout:
        """The layout for images of this shape (C, *spatial)."""
        return replace(self, shape=tuple(shape))

    def by_channel(self, channels: int, sample: Sequence[int]) -> Layout:
        """A layout that keeps channels alone apart, for one sample of this shape (without the batch): tokens become
        signals (C, L·p²), whatever H and W they are of."""
        if not self.name.startswith("tokens"):
            return self
        if len(sample) > 2:  # no tokens: some pipelines unpack what they step (LTX, from an image)
            return Layout("plain")
        patch = math.prod(self.patch)
        places = sample[0] if len(sample) == 2 else 1
        return Layout("tokens" if patch == 1 else f"tokens_{patch}", (channels, places * patch))

    def sample_shape(self, shape: Sequence[int]) -> Shape:
        """The shape of one sample, without the batch, that stands for an image of this shape."""
        C, *spatial = self.of(shape).shape or ()
        if self.name == "plain":
            return (C, *spatial)
        if self.name == "channels_last":
            return (*spatial, C)
        patch = math.prod(self.patch)
        return (math.prod(spatial) // patch, C * patch)

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) of samples (B, …). InputError for samples of another shape than the images' own."""
        if self.is_plain:
            return x
        if self.name == "channels_last":
            return x.movedim(-1, 1)
        shape = checks.given(
            self.shape, f"samples in layout {self.name} do not say how large their images are; give layout.of(shape)."
        )
        found, expected = tuple(x.shape[1:]), self.sample_shape(shape)
        checks.refuse(
            found != expected,
            f"a sample has shape {found}, but images of shape {shape} in layout {self.name} are {expected}; use what "
            "was measured at this size.",
        )
        patches, k = self._patches(shape), len(shape) - 1
        grid = [n // p for n, p in zip(shape[1:], patches, strict=True)]
        tokens = x.reshape(len(x), *grid, shape[0], *patches)  # (B, *grid, C, *patch)
        order = [0, 1 + k, *(axis for i in range(k) for axis in (1 + i, 2 + k + i))]
        return tokens.permute(order).reshape(len(x), *shape)

    def samples(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, *spatial) as the pipeline has them: the inverse of `images`."""
        if self.is_plain:
            return images
        if self.name == "channels_last":
            return images.movedim(1, -1)
        shape = tuple(images.shape[1:])
        patches, k = self._patches(shape), len(shape) - 1
        split = [size for n, p in zip(shape[1:], patches, strict=True) for size in (n // p, p)]
        apart = images.reshape(len(images), shape[0], *split)  # (B, C, grid_1, patch_1, …)
        order = [0, *(2 + 2 * i for i in range(k)), 1, *(3 + 2 * i for i in range(k))]
        return apart.permute(order).reshape(len(images), *self.sample_shape(shape))

    def _patches(self, shape: Shape) -> Shape:
        """A patch's size along every spatial axis."""
        return (1,) * (len(shape) - 1 - len(self.patch)) + self.patch


#: The names; tokens have other patches too.
LAYOUTS = ("plain", "channels_last", "tokens", "tokens_2x2")
# By the beginning of a pipeline's name, the longest first; others that pack their latents are not known.
_BY_CLASS = {
    "BriaFibo": "tokens",
    "Flux2": "tokens",
    "QwenImage21": "tokens",
    "AceStep": "channels_last",
    "Ideogram4": "tokens",
    "Kandinsky5": "channels_last",
    "Kandinsky6": "channels_last",
    "LongCatAudioDiT": "channels_last",
    "Bria": "tokens_2x2",
    "Chroma": "tokens_2x2",
    "Flux": "tokens_2x2",
    "LongCatImage": "tokens_2x2",
    "OvisImage": "tokens_2x2",
    "QwenImage": "tokens_2x2",
}
_UNKNOWN = ("QwenImageLayered", "JoyImageEdit")  # layers, each of them packed; a list of images beside each other


def layout_named(layout: str | Layout) -> Layout:
    """The layout of this name; InputError for none."""
    return layout if isinstance(layout, Layout) else Layout(layout)


def layout_of(pipe: Any) -> Layout:
    """The layout of a pipeline's samples, by its class; "plain" for those that do not pack them.

    Raises InputError for a pipeline that packs its latents in a way that is not known here.
    """
    kind = type(pipe).__name__
    if kind.startswith("LTX"):
        return Layout(_of_patches(getattr(pipe, "transformer_temporal_patch_size", 1), _spatial_patch(pipe)))
    known = [] if kind.startswith(_UNKNOWN) else [name for name in _BY_CLASS if kind.startswith(name)]
    if known:
        return Layout(_BY_CLASS[max(known, key=len)])
    if hasattr(type(pipe), "_pack_latents") or kind.startswith(_UNKNOWN):
        raise InputError(
            f"how {kind} packs its latents is not known, so that a variance by channel or place has no place in them; "
            f"give layout=, one of {', '.join(LAYOUTS)}, or take structure='isotropic', which needs none."
        )
    return Layout("plain")


def _spatial_patch(pipe: Any) -> int:
    return int(getattr(pipe, "transformer_spatial_patch_size", 1))


def _of_patches(frames: Any, places: int) -> str:
    return "tokens" if frames == places == 1 else f"tokens_{frames}x{places}x{places}"
