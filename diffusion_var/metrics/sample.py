"""Images through a feature network, once: what every score is made from.

    images ─> uint8 ─> [grey repeated to RGB] ─> feature network ─> mean, covariance [and the features themselves]
                └─> SHA-256
    (of pixels as features, floats stay what they are)

Images pass in batches and memory does not grow with their number, unless the features are kept. The result says what
it is of (`origin`): the SHA-256 of all 8-bit pixels in their order, and of the images' shape, tells one set of images
from another, however they were stored or cut into batches.

Processes share the batches (see `batches.py`). The first one takes the statistics and the hash, in the order of the
batches, so that the result is that of one process, to the byte. What it is sent for that is the pixels, a byte each,
and the features, 4 D bytes an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from .. import checks, parallel
from ..data.images import read_images, to_uint8
from ..data.ranges import ROUNDED, outside_range
from ..errors import InputError, warn
from ..parallel import Team
from ..progress import progress_bar
from .batches import facts, own_batches
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

    In a program of many processes each of them calls it, with the same images, and gets the same result. Raises
    InputError for no images, NaN or Inf in images or features, and anything that cannot be read.
    """
    batch_size = checks.whole("batch_size", batch_size, least=1)
    if isinstance(images, str | os.PathLike):
        name, images = name or os.fspath(images), read_images(images)
    name = name or _name(images)
    device, made = _ready(network, device), network_origin(network)
    alike = {"name": name, "batch_size": batch_size, "keep": keep, "data_range": list(data_range), **made}
    with parallel.sharing("collect", lambda: alike | facts(images)) as team:
        seen, statistics, kept = _Seen(name, data_range), None, []
        with progress_bar(None, name, "image", progress) as bar:
            for stretch in own_batches(images, batch_size, team):
                mine = []
                for number, batch in stretch:
                    mine.append((number, _looked_at(batch, network, data_range, device, name)))
                    bar.update(len(batch))
                    if team.called:
                        break
                for found in _in_order(team, mine):
                    seen.add(found, _repeats(found.pixels, network))
                    # Some networks know their dimension only after their first call.
                    statistics = (statistics or FeatureStatistics(network.dimension)).update(found.features)
                    if keep:
                        kept.append(found.features.astype(np.float32, copy=False))
                team.end_if_stopped()
        return _told(team, statistics, kept if keep else None, seen, {**made, **_left_out(images)})


class _Batch(NamedTuple):
    """A batch that went through the network: pixels (B, C, H, W), features (B, D), and whether the images were floats
    that all lie in the upper half of their range."""

    pixels: npt.NDArray[Any]
    features: npt.NDArray[Any]
    upper: bool


def _looked_at(
    batch: Tensor, network: FeatureNetwork, data_range: tuple[float, float], device: Any, name: str
) -> _Batch:
    """A batch, through the network."""
    upper = False
    if getattr(network, "takes_floats", False):
        pixels = to_unit(batch, data_range)
    else:
        upper = _in_upper_half(batch, data_range, name)
        pixels = to_uint8(batch, data_range)
    with torch.inference_mode():
        features = network((pixels.expand(-1, 3, -1, -1) if _repeats(pixels, network) else pixels).to(device))
    if len(features) != len(pixels):
        raise InputError(f"the network gives {len(features)} features for {len(pixels)} images; expected (B, D).")
    features = features.detach().cpu()
    features = features.float() if features.dtype == torch.bfloat16 else features  # NumPy has none
    return _Batch(pixels.cpu().contiguous().numpy(), features.numpy(), upper)


def _repeats(pixels: Any, network: FeatureNetwork) -> bool:
    """Whether grey images are repeated to three channels."""
    return pixels.shape[1] == 1 and getattr(network, "channels", None) == 3


def _in_order(team: Team, mine: list[tuple[int, _Batch]]) -> list[_Batch]:
    """Everybody's batches in the order of their numbers, in the first process; none in the others."""
    arrays = {f"pixels {k}": batch.pixels for k, (_, batch) in enumerate(mine)}
    arrays |= {f"features {k}": batch.features for k, (_, batch) in enumerate(mine)}
    found = team.gather(arrays, [[number, batch.upper] for number, batch in mine], to_first=True)
    every = [
        (number, _Batch(theirs[f"pixels {k}"], theirs[f"features {k}"], upper))
        for theirs, told in found
        for k, (number, upper) in enumerate(told)
    ]
    return [batch for _, batch in sorted(every, key=lambda one: one[0])]


def _told(
    team: Team, statistics: FeatureStatistics | None, kept: list[Any] | None, seen: _Seen, more: dict[str, Any]
) -> FeatureSample:
    """What the first process has found, in every one."""
    arrays = {} if statistics is None else dict(statistics.sums())
    if statistics is not None and kept is not None:
        arrays["features"] = np.concatenate(kept)
    found, origin = team.gather(arrays, None if statistics is None else seen.origin())[0]
    if origin is None:
        raise InputError(f"there are no images to score in {seen.name}; pass at least 2.")
    whole = FeatureStatistics.from_sums(found["mean"], found["scatter"], origin["count"])
    whole.origin = {**origin, **more}
    return FeatureSample(whole, found.get("features"), whole.origin)


def _left_out(images: Images) -> dict[str, int]:
    """How many images are not among those that are given, where any are not."""
    whole = _whole(images)
    found = {"skipped": len(getattr(whole, "skipped", ())), "left_out": getattr(whole, "left_out", 0)}
    return {why: number for why, number in found.items() if number}


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

    def __init__(self, name: str, data_range: tuple[float, float]) -> None:
        self.name, self.count, self.repeated, self._data_range = name, 0, False, data_range
        self.shape: tuple[int, ...] = ()
        self._hash = hashlib.sha256()
        self._same: npt.NDArray[Any] | None = None  # the first image, as long as all are equal to it
        self._upper = False  # whether all are floats in the upper half of their range

    def add(self, batch: _Batch, repeated: bool) -> None:
        pixels = batch.pixels
        shape, first = tuple(pixels.shape[1:]), self.count == 0
        self._upper = batch.upper and (first or self._upper)
        if first:
            self.shape, self.repeated, self._same = shape, repeated, pixels[0]
            self._hash.update(f"{shape}".encode())
            if repeated:
                warn(
                    f"the images of {self.name} are grey and the feature network wants RGB; their channel is repeated."
                )
        elif shape != self.shape:
            raise InputError(f"images have shapes {self.shape} and {shape}; all must share one: resize them.")
        self._hash.update(np.ascontiguousarray(pixels).data)
        self.count += len(pixels)
        if self._same is not None and not bool((pixels == self._same).all()):
            self._same = None

    def origin(self) -> dict[str, Any]:
        if self._same is not None and self.count > 1:
            warn(f"all {self.count} images of {self.name} are identical; the covariance of their features is zero.")
        if self._upper:
            low, high = self._data_range
            warn(
                f"all values of {self.name} lie in the upper half of the data range [{low:g}, {high:g}]; if theirs is "
                "another one, such as [0, 1], pass it as data_range."
            )
        return {
            "name": self.name,
            "sha256": self._hash.hexdigest(),
            "count": self.count,
            "shape": list(self.shape),
            "colour": REPEATED if self.repeated else AS_GIVEN,
        }


def _in_upper_half(batch: Tensor, data_range: tuple[float, float], name: str) -> bool:
    """Whether floats are in the upper half of their range only; those of another range, which rounding to 8 bits would
    only clamp, are refused."""
    if not batch.is_floating_point() or batch.numel() == 0:
        return False
    (low, high), (least, most) = data_range, (float(end) for end in torch.aminmax(batch))
    if outside_range(batch, data_range, ROUNDED):
        raise InputError(
            f"the images of {name} hold values from {least:.4g} to {most:.4g}, but the data range is [{low:g}, "
            f"{high:g}]; pass their data_range, or convert them to 8 bits, or clamp them."
        )
    return least >= (low + high) / 2


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
