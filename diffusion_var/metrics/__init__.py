"""The FID harness: images, features, their statistics and the distance. It uses nothing of the rest of the package."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.images import read_images
    from .fid import feature_statistics, fid
    from .frechet import frechet_distance
    from .networks import load_features
    from .sample import FeatureSample, collect
    from .score import Score, require_same_protocol, score_table
    from .scores import evaluate
    from .statistics import FeatureStatistics

__all__ = [
    "FeatureSample",
    "FeatureStatistics",
    "Score",
    "collect",
    "evaluate",
    "feature_statistics",
    "fid",
    "frechet_distance",
    "load_features",
    "read_images",
    "require_same_protocol",
    "score_table",
]

_HOME = {
    "FeatureSample": "sample",
    "FeatureStatistics": "statistics",
    "Score": "score",
    "collect": "sample",
    "evaluate": "scores",
    "feature_statistics": "fid",
    "fid": "fid",
    "frechet_distance": "frechet",
    "load_features": "networks",
    "read_images": ".data.images",
    "require_same_protocol": "score",
    "score_table": "score",
}


class _Metrics(ModuleType):
    """This module: names are imported when first used (PEP 562), and `fid` is always the function, as are its like."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the file fid.py would bind `fid` here to that file, over the function of the same name.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Metrics
