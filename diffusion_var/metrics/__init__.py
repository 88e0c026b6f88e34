"""The FID harness: images, features, their statistics and the distance. It uses the ground and `data` alone.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from ..data.images import read_images as read_images
    from ..data.images import save_images as save_images
    from ..data.images import to_float as to_float
    from ..data.images import to_uint8 as to_uint8
    from .classifier import ClassifierFeatures as ClassifierFeatures
    from .frechet import frechet_distance as frechet_distance
    from .networks import load_features as load_features
    from .paired import lpips as lpips
    from .paired import psnr as psnr
    from .paired import ssim as ssim
    from .sample import FeatureSample as FeatureSample
    from .sample import collect as collect
    from .score import Score as Score
    from .score import require_same_protocol as require_same_protocol
    from .score import score_table as score_table
    from .scores import evaluate as evaluate
    from .scores import feature_statistics as feature_statistics
    from .scores import fid as fid
    from .statistics import FeatureStatistics as FeatureStatistics

_HOMES = {
    "ClassifierFeatures": ".classifier",
    "FeatureSample": ".sample",
    "FeatureStatistics": ".statistics",
    "Score": ".score",
    "collect": ".sample",
    "evaluate": ".scores",
    "feature_statistics": ".scores",
    "fid": ".scores",
    "frechet_distance": ".frechet",
    "load_features": ".networks",
    "lpips": ".paired",
    "psnr": ".paired",
    "read_images": "..data.images",
    "require_same_protocol": ".score",
    "save_images": "..data.images",
    "score_table": ".score",
    "ssim": ".paired",
    "to_float": "..data.images",
    "to_uint8": "..data.images",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = names_of(__name__, _HOMES)
