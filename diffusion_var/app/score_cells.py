"""How the cells of a comparison are scored: one feature network, one reference, groups of real images as the floor."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Subset

from ..metrics.collect import FeatureSample, collect
from ..metrics.evaluate import evaluate
from ..metrics.features import FeatureNetwork
from ..metrics.score import Score
from ..metrics.sides import resolve
from .data import open_images
from .options import CompareOptions


class Scoring:
    """From images to scores, the reference being seen once.

    Attributes:
        identity: what decides the scores, besides the images: plain data.
    """

    def __init__(self, options: CompareOptions, features: FeatureNetwork, device: torch.device) -> None:
        self.options, self.features, self.device = options, features, device
        self.keep = any(metric != "fid" for metric in options.metrics)
        self.reference = self._reference(options.reference)
        self.identity = {
            "features": features.fingerprint,
            "reference": self.reference.origin.get("sha256", self.reference.statistics.digest),
        }

    def _reference(self, name: str) -> FeatureSample:
        if not name.lower().endswith(".npz"):
            return self.collect(open_images(name, self.options.download), name)
        # An npz may hold statistics instead of images, or both: the harness knows which to take.
        found = resolve(
            {"reference": name},
            {"reference": self.keep},
            self.features,
            {"reference": name},
            batch_size=self.options.batch_size,
            device=self.device,
        )["reference"]
        return FeatureSample(found.statistics, found.features, dict(found.statistics_origin))

    def collect(self, images: Any, name: str) -> FeatureSample:
        """The features of images: in constant memory, unless a metric needs them all."""
        return collect(
            images, self.features, keep=self.keep, batch_size=self.options.batch_size, device=self.device, name=name
        )

    def scores(self, sample: FeatureSample) -> dict[str, Score]:
        """The scores of a sample, by metric."""
        return evaluate(sample, self.reference, self.options.metrics, self.features)


def baseline_groups(options: CompareOptions) -> list[Any]:
    """Disjoint groups of `count` real images (or of all of them, if they are fewer), at most one a seed."""
    if options.baseline is None:
        return []
    images = open_images(options.baseline, options.download)
    size = min(options.count, len(images))
    groups = min(max(len(images) // size, 1), len(options.seeds))
    return [Subset(images, range(g * size, (g + 1) * size)) for g in range(groups)]
