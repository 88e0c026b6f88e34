"""FID: the Fréchet distance between the features of two sets of images (Heusel et al. 2017, arXiv:1706.08500).

    images ─> uint8 ─> feature network ─> mean, covariance ─┐
    reference ─> ........................ mean, covariance ─┴─> Fréchet distance

An FID is comparable to another only under the same protocol, which each `Score` carries (see `score.py`). More metrics
of the same images, intervals and the extrapolation in the number of images: `evaluate`.
"""

from __future__ import annotations

import torch

from .networks import load_features
from .sample import Images, collect
from .score import Score as Score
from .scores import evaluate
from .sides import Features, Side
from .statistics import FeatureStatistics


def fid(
    images: Side,
    reference: Side,
    features: Features = "inception",
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> Score:
    """The FID of `images` against `reference` (lower is better; 0 for equal feature statistics).

    Either side: a tensor or array (N, C, H, W), uint8 or floats in `data_range` (rounded to uint8); a Dataset; an
    iterable of images or batches, such as a sampler's stream; a path for `read_images`; a FeatureSample;
    FeatureStatistics; or the path of an `.npz` with `mu` and `sigma`, which must be of the same features.
    Raises InputError for fewer than 2 images, NaN, and anything that cannot be read.
    """
    return evaluate(images, reference, ("fid",), features, data_range=data_range, batch_size=batch_size, device=device)[
        "fid"
    ]


def feature_statistics(
    images: Images,
    features: Features = "inception",
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> FeatureStatistics:
    """Mean and covariance of the features of `images` (anything `fid` takes as images), in constant memory.

    The network runs where its parameters are, or on `device` if given. Raises InputError for no images, for NaN, and
    for anything that cannot be read.
    """
    sample = collect(images, load_features(features), data_range=data_range, batch_size=batch_size, device=device)
    return sample.statistics
