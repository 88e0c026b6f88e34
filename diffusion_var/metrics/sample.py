"""Images through a feature network, once: what every score is made from.

    images ─> uint8 ─> [grey repeated to RGB] ─> feature network ─> mean, covariance [and the features themselves]
                └─> SHA-256
    (of pixels as features, floats stay what they are)

Images pass in batches and memory does not grow with their number, unless the features are kept. The result says what
it is of (`origin`): the SHA-256 of all 8-bit pixels in their order, and of the images' shape, tells one set of images
from another, however they were stored or cut into batches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from .. import checks
from ..data.containers import in_passing
from ..data.images import read_images, to_uint8
from ..data.ranges import ROUNDED, outside_range
from ..errors import InputError, warn
from ..progress import progress_bar
from .networks import FeatureNetwork
from .pixels import to_unit
from .statistics import FeatureStatistics

Images = Tensor | npt.NDArray[Any] | Dataset[Any] | Iterable[Any] | str | os.PathLike[str]

NUMBER_FORMAT = "uint8, round half to even"
AS_GIVEN, REPEATED = "as given", "grey repeated to RGB"


@dataclass(frozen=True)
class FeatureSample:
    """The features of a set of images.

    Attributes:
        statistics: their mean and covariance.
        features: (N, D) float32, in the order of the images; None unless kept.
        origin: name, sha256 (of the pixels), count, shape (C, H, W), features and features_sha256 (of the network),
            resize, colour, number_format, and skipped, the number of corrupt files left out, if any were.
    """

    statistics: FeatureStatistics
    features: npt.NDArray[np.float32] | None
    origin: dict[str, Any]


def collect(
    images: Images,
    network: FeatureNetwork,
    *,
    keep: bool = False,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
    name: str | None = None,
    progress: bool = False,
) -> FeatureSample:
    """The feature statistics of `images`, in constant memory; with `keep` the features too (4 N D bytes).

    Args:
        images: a tensor or array (N, C, H, W), uint8 or floats in `data_range` (rounded to uint8, but for the features
            "pixels"); a Dataset; an iterable of images or batches, such as a sampler's stream; or a path for
            `read_images`. Items may be records of an image, such as (image, label); see `data/containers.py` for what
            is read and what is refused.
        network: runs where its parameters are, or on `device` if given. If its `channels` is 3, grey images are
            repeated to three channels, with a warning.
        name: of the images, for protocols; by default their path or type.

    Raises InputError for no images, NaN or Inf in images or features, and anything that cannot be read.
    """
    batch_size = checks.whole("batch_size", batch_size, least=1)
    if isinstance(images, str | os.PathLike):
        name, images = name or os.fspath(images), read_images(images)
    name = name or _name(images)
    device = _ready(network, device)
    seen, statistics, kept = _Seen(name), None, []
    with torch.inference_mode():
        for batch in _shown(_batches(images, batch_size), name, progress):
            if getattr(network, "takes_floats", False):
                pixels = to_unit(batch, data_range)
            else:
                seen.look(batch, data_range)
                pixels = to_uint8(batch, data_range)
            repeat = pixels.shape[1] == 1 and getattr(network, "channels", None) == 3
            features = network((pixels.expand(-1, 3, -1, -1) if repeat else pixels).to(device))
            seen.add(pixels, repeat)
            if len(features) != len(pixels):
                raise InputError(
                    f"the network gives {len(features)} features for {len(pixels)} images; expected (B, D)."
                )
            # Some networks know their dimension only after their first call.
            statistics = (statistics or FeatureStatistics(network.dimension)).update(features)
            if keep:
                kept.append(features.detach().cpu().float().numpy())
    if statistics is None:
        raise InputError(f"there are no images to score in {name}; pass at least 2.")
    origin = {**seen.origin(), **network_origin(network)}
    if skipped := len(getattr(_whole(images), "skipped", ())):
        origin["skipped"] = skipped
    if left_out := getattr(_whole(images), "left_out", 0):
        origin["left_out"] = left_out
    statistics.origin = origin
    return FeatureSample(statistics, np.concatenate(kept) if keep else None, origin)


def network_origin(network: FeatureNetwork) -> dict[str, Any]:
    """What an origin says of the network and of the numbers it is given."""
    return {
        "features": network.name,
        "features_sha256": network.fingerprint,
        "resize": getattr(network, "resize", "none"),
        "number_format": getattr(network, "number_format", NUMBER_FORMAT),
    }


class _Seen:
    """What is remembered of the images: their hash, number and shape, and whether they are all the same."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.repeated = name, 0, False
        self.shape: tuple[int, ...] = ()
        self._hash = hashlib.sha256()
        self._same: Tensor | None = None  # the first image, as long as all are equal to it
        self._half: tuple[float, float] | None = None  # the data range, as long as floats are in its upper half only

    def look(self, batch: Tensor, data_range: tuple[float, float]) -> None:
        """Refuse floats of another range, which rounding to 8 bits would only clamp."""
        if not batch.is_floating_point() or batch.numel() == 0:
            return
        (low, high), (least, most) = data_range, (float(end) for end in torch.aminmax(batch))
        if outside_range(batch, data_range, ROUNDED):
            raise InputError(
                f"the images of {self.name} hold values from {least:.4g} to {most:.4g}, but the data range is "
                f"[{low:g}, {high:g}]; pass their data_range, or convert them to 8 bits, or clamp them."
            )
        upper = least >= (low + high) / 2
        self._half = data_range if upper and (self.count == 0 or self._half is not None) else None

    def add(self, pixels: Tensor, repeated: bool) -> None:
        shape, first = tuple(pixels.shape[1:]), self.count == 0
        if first:
            self.shape, self.repeated, self._same = shape, repeated, pixels[0]
            self._hash.update(f"{shape}".encode())
            if repeated:
                warn(
                    f"the images of {self.name} are grey and the feature network wants RGB; their channel is repeated."
                )
        elif shape != self.shape:
            raise InputError(f"images have shapes {self.shape} and {shape}; all must share one: resize them.")
        self._hash.update(pixels.cpu().contiguous().numpy().data)
        self.count += len(pixels)
        if self._same is not None and not bool((pixels == self._same).all()):
            self._same = None

    def origin(self) -> dict[str, Any]:
        if self._same is not None and self.count > 1:
            warn(f"all {self.count} images of {self.name} are identical; the covariance of their features is zero.")
        if self._half is not None:
            warn(
                f"all values of {self.name} lie in the upper half of the data range [{self._half[0]:g}, "
                f"{self._half[1]:g}]; if theirs is another one, such as [0, 1], pass it as data_range."
            )
        return {
            "name": self.name,
            "sha256": self._hash.hexdigest(),
            "count": self.count,
            "shape": list(self.shape),
            "colour": REPEATED if self.repeated else AS_GIVEN,
        }


def _ready(network: FeatureNetwork, device: str | torch.device | None) -> str | torch.device | None:
    """Move the network to `device`, if one is given; the device it is on."""
    if not isinstance(network, nn.Module):
        return device
    if device is not None:
        network.to(device)
    if network.training:
        raise InputError("the feature network is in training mode (its dropout is random); call network.eval() first.")
    return next((parameter.device for parameter in network.parameters()), device)


def _name(images: Any) -> str:
    whole = _whole(images)
    name = str(getattr(whole, "path", None) or type(whole).__name__)
    return name if whole is images else f"part of {name}"


def _whole(images: Any) -> Any:
    while isinstance(images, Subset):
        images = images.dataset
    return images


def _shown(batches: Iterator[Tensor], name: str, progress: bool) -> Iterator[Tensor]:
    """The batches, with a progress bar that counts images."""
    with progress_bar(None, name, "image", progress) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _batches(images: Any, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, C, H, W), B ≤ `batch_size`, from anything that gives images (C, H, W) or batches (B, C, H, W)."""
    single: list[Tensor] = []
    for image in in_passing(images, batch_size):
        if image.ndim not in (3, 4) or _channels_last(image.shape[-3:]):
            last = "; its channels are last: permute it" if image.ndim in (3, 4) else ""
            raise InputError(
                f"an image has shape {tuple(image.shape)}; expected (C, H, W), or (B, C, H, W) for a batch{last}."
            )
        if image.ndim == 4:
            yield from (part for part in torch.split(image, batch_size) if len(part))
            continue
        if single and image.shape != single[0].shape:
            raise InputError(
                f"images have shapes {tuple(single[0].shape)} and {tuple(image.shape)}; all must share one: resize "
                "them, and give all of them the same channels."
            )
        single.append(image)
        if len(single) == batch_size:
            yield torch.stack(single)
            single = []
    if single:
        yield torch.stack(single)


def _channels_last(shape: Sequence[int]) -> bool:
    """Whether (C, H, W) is (H, W, C): no picture is 1 or 3 wide and has other than 1, 3 or 4 channels."""
    return shape[0] not in (1, 3, 4) and shape[2] in (1, 3)
