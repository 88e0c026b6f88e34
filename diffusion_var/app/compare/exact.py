"""What a model whose data are known brings along: images of its own, and their exact moments.

By the name `exact` they stand for images of a table, for the reference (mean and covariance of pixels, in closed form)
and for the floor of scores. Samples of such a model are not rounded and not clamped, which would change their moments.
"""

from __future__ import annotations

from typing import Any

import torch

from ... import checks
from ...errors import InputError
from ...metrics.networks import FeatureNetwork
from ...metrics.sample import FeatureSample, network_origin
from ...metrics.statistics import FeatureStatistics
from ...models.denoiser import Denoiser
from ...models.mixture import MixtureDenoiser
from .options import CompareOptions

EXACT = "exact"
TABLE_IMAGES = 4000
_TABLE_SEED, _FLOOR_SEED = 1_000_001, 1_000_002  # none that a comparison is likely to have


def mixture_of(denoiser: Denoiser, name: str) -> MixtureDenoiser:
    """The model, as one whose data are known; InputError for any other."""
    if not isinstance(denoiser, MixtureDenoiser):
        raise InputError(
            f"the images {name!r} are those of a model whose data are known, such as photographs:mixture; of this "
            "model give others by their name."
        )
    return denoiser


def table_images(denoiser: Denoiser) -> torch.Tensor:
    """Images of the model's own data, for a table, (M, C, H, W) floats."""
    return mixture_of(denoiser, EXACT).sample(TABLE_IMAGES, _TABLE_SEED)


def floor_images(denoiser: Denoiser, options: CompareOptions) -> torch.Tensor:
    """Images of the model's own data, as many as a method is scored by."""
    return mixture_of(denoiser, EXACT).sample(options.count * len(options.seeds), _FLOOR_SEED)


def moments(denoiser: Denoiser, features: FeatureNetwork) -> FeatureSample:
    """The exact mean and covariance of the data's pixels, as a reference."""
    mixture = mixture_of(denoiser, EXACT)
    checks.refuse(
        features.name != "pixels",
        f"the reference {EXACT!r} is the data's moments in pixels, but features={features.name}; take features=pixels.",
    )
    statistics = FeatureStatistics.from_moments(*mixture.moments(), source="the model's moments")
    origin: dict[str, Any] = {
        "name": "the data's exact moments",
        "sha256": statistics.digest,
        "count": None,
        "shape": list(mixture.shape),
        **network_origin(features),
    }
    return FeatureSample(statistics, None, origin)
