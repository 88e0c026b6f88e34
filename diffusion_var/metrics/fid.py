"""FID: the Fréchet distance between the features of two sets of images (Heusel et al. 2017, arXiv:1706.08500).

    images ─> uint8 ─> feature network ─> mean, covariance ─┐
    reference ─> ........................ mean, covariance ─┴─> Fréchet distance

An FID is comparable to another only under the same protocol: the same features, number format and counts (its bias
falls as 1/N, so 10,000 images score worse than 50,000). A `Score` therefore carries its protocol. Images pass through
in batches; memory does not grow with their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import InputError
from .distances import frechet_distance
from .features import FeatureNetwork, load_features
from .images import read_images, to_uint8
from .statistics import FeatureStatistics

Images = Tensor | npt.NDArray[Any] | Dataset[Any] | Iterable[Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class Score:
    """A number and how it was made. `float(score)` is the number."""

    value: float
    protocol: dict[str, Any] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


def fid(
    images: Images | FeatureStatistics,
    reference: Images | FeatureStatistics,
    features: str | FeatureNetwork = "inception",
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Score:
    """The FID of `images` against `reference` (lower is better; 0 for equal feature statistics).

    Either side: a tensor or array (N, C, H, W), uint8 or floats in `data_range` (rounded to uint8); a Dataset; an
    iterable of images or batches, such as a sampler's stream; a path for `read_images`; FeatureStatistics; or the path
    of an `.npz` with `mu` and `sigma`. Statistics are taken to be of the same features: they do not say.
    Raises InputError for fewer than 2 images, NaN, and anything that cannot be read.
    """
    sides = [_known_statistics(images), _known_statistics(reference)]
    # Two given statistics need no network, so none is loaded, and the protocol claims none.
    network = load_features(features) if None in sides else None
    statistics = []
    for side, known, role in zip((images, reference), sides, ("images", "reference"), strict=True):
        if known is None:
            assert network is not None
            assert not isinstance(side, FeatureStatistics)
            known = feature_statistics(side, network, data_range=data_range, batch_size=batch_size, device=device)
        if known.count is not None and known.count < 2:
            raise InputError(
                f"FID needs at least 2 images on each side, but {role} holds {known.count}; pass more images."
            )
        statistics.append(known)
    return Score(
        frechet_distance(*statistics),
        {
            "metric": "fid",
            "features": network.name if network else None,
            "features_sha256": network.fingerprint if network else None,
            "number_format": "uint8",
            "images": statistics[0].count,
            "reference": statistics[1].count,
            "images_from": "images" if sides[0] is None else "statistics",
            "reference_from": "images" if sides[1] is None else "statistics",
            "torch": torch.__version__,
            "diffusion_var": _version(),
        },
    )


def feature_statistics(
    images: Images,
    features: str | FeatureNetwork = "inception",
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> FeatureStatistics:
    """Mean and covariance of the features of `images` (anything `fid` takes as images), in constant memory.

    The network runs where its parameters are, or on `device` if given. Raises InputError for no images, for NaN, and
    for anything that cannot be read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1.")
    network = load_features(features)
    if isinstance(network, nn.Module):
        if device is not None:
            network.to(device)
        device = next((parameter.device for parameter in network.parameters()), device)
        if network.training:
            raise InputError(
                "the feature network is in training mode (its dropout is random); call network.eval() first."
            )
    statistics = FeatureStatistics(network.dimension)
    with torch.inference_mode():
        for batch in _batches(images, batch_size):
            statistics.update(network(to_uint8(batch, data_range).to(device)))
    if statistics.count == 0:
        raise InputError("there are no images to score; pass at least 2.")
    return statistics


def _known_statistics(side: Images | FeatureStatistics) -> FeatureStatistics | None:
    """The statistics that were passed, or that the `.npz` at the path holds; None where the side is images."""
    if isinstance(side, FeatureStatistics):
        return side
    if isinstance(side, str | os.PathLike) and Path(side).suffix.lower() == ".npz" and Path(side).is_file():
        try:
            with np.load(side, allow_pickle=False) as content:
                is_statistics = "mu" in content and "sigma" in content
        except Exception:  # unreadable: let read_images say so
            return None
        return FeatureStatistics.load(side) if is_statistics else None
    return None


def _batches(images: Images, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, C, H, W), B ≤ `batch_size`, from anything that gives images (C, H, W) or batches (B, C, H, W)."""
    if isinstance(images, str | os.PathLike):
        images = read_images(images)
    if isinstance(images, Tensor | np.ndarray):
        if images.ndim != 4:
            raise InputError(f"images have shape {tuple(images.shape)}; expected (N, C, H, W): reshape them.")
        images = [images]
    single: list[Tensor] = []
    for item in _items(images):
        image = _tensor(item)
        if image.ndim == 4:
            yield from torch.split(image, batch_size)
        elif image.ndim == 3:
            if single and image.shape != single[0].shape:
                raise InputError(
                    f"images have shapes {tuple(single[0].shape)} and {tuple(image.shape)}; all must share one: "
                    "resize them."
                )
            single.append(image)
        else:
            raise InputError(
                f"an image has shape {tuple(image.shape)}; expected (C, H, W), or (B, C, H, W) for a batch."
            )
        if len(single) == batch_size:
            yield torch.stack(single)
            single = []
    if single:
        yield torch.stack(single)


def _items(images: Any) -> Iterator[Any]:
    # A map-style Dataset need not stop an iteration by IndexError, so its length is what counts.
    if isinstance(images, Dataset) and hasattr(images, "__len__"):
        return (images[index] for index in range(len(images)))
    try:
        return iter(images)
    except TypeError as error:
        raise InputError(
            f"images is a {type(images).__name__}; expected a tensor, an array, a Dataset, batches or a path."
        ) from error


def _tensor(item: Any) -> Tensor:
    if isinstance(item, tuple | list) and item:  # (image, label), as labelled datasets and their loaders give
        item = item[0]
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item))
    if not isinstance(item, Tensor):
        raise InputError(f"an image is a {type(item).__name__}; expected a tensor or an array: add a transform.")
    return item


def _version() -> str:
    try:
        return metadata.version("diffusion-var")
    except metadata.PackageNotFoundError:  # run from a bare checkout
        return "unknown"
