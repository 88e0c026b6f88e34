"""How the cells of a comparison are scored: one feature network, one reference, groups of real images as the floor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Subset

from ... import parallel
from ...errors import DiffusionVarWarning, InputError
from ...metrics.networks import FeatureNetwork, load_features
from ...metrics.sample import FeatureSample, collect, network_origin
from ...metrics.score import Score
from ...metrics.scores import NEAREST_OF_DENSITY, evaluate
from ...metrics.sides import resolve
from ...randomness import generator
from .exact import EXACT
from .options import CompareOptions

_NEIGHBOURS = ("precision", "recall", "density", "coverage")


def open_features(options: CompareOptions) -> FeatureNetwork:
    """The feature network that the options name."""
    return load_features(
        options.features, inception_weights=options.inception_weights, accept_weights=options.accept_weights
    )


class Scoring:
    """From images to scores, the reference being seen once; `exact` is what the reference of that name is.

    Attributes:
        identity: what decides the scores, besides the images: plain data.
    """

    def __init__(
        self,
        options: CompareOptions,
        features: FeatureNetwork,
        images: Mapping[str, Any],
        device: torch.device,
        shape: tuple[int, ...],
        exact: FeatureSample | None = None,
    ) -> None:
        self._exact = exact
        self.options, self.features, self._images, self.device = options, features, images, device
        self.keep = any(metric != "fid" for metric in options.image_metrics)
        # Two images tell whether the network takes the model's samples, before an hour is spent on making them.
        trial = torch.from_numpy(generator(0, "trial images").integers(0, 256, (2, *shape)).astype("uint8"))
        with parallel.alone():
            collect(trial, self.features, device=self.device, name=f"the samples of {options.model}")
        self.reference = self._reference(options.reference)
        self.identity = {
            **network_origin(self.features),
            "reference": self.reference.origin.get("sha256", self.reference.statistics.digest),
            "reference_count": self.reference.statistics.count,
        }

    def _reference(self, name: str) -> FeatureSample:
        if name == EXACT and self._exact is not None:
            return self._exact
        if not name.lower().endswith(".npz"):
            return self.collect(self._images[name], name)
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
        with warnings.catch_warnings():
            # Said once, of the trial images.
            warnings.filterwarnings("ignore", ".*are grey and the feature network wants RGB", DiffusionVarWarning)
            warnings.filterwarnings("ignore", "there are more processes", DiffusionVarWarning)  # more cells
            return collect(
                images, self.features, keep=self.keep, batch_size=self.options.batch_size, device=self.device, name=name
            )

    def scores(self, sample: FeatureSample) -> dict[str, Score]:
        """The scores of a sample, by metric."""
        return evaluate(sample, self.reference, self.options.image_metrics, self.features)


def baseline_groups(options: CompareOptions, opened: Mapping[str, Any], shape: tuple[int, ...]) -> list[Any]:
    """Disjoint random groups of `count` real images (or one of all, if they are fewer), at most one a seed.

    Random, for a folder may hold its images class by class. Raises InputError for images that cannot be scored.
    """
    least = NEAREST_OF_DENSITY + 1 if any(metric in _NEIGHBOURS for metric in options.image_metrics) else 2
    if options.count < least:
        raise InputError(f"count is {options.count}; expected at least {least} for {', '.join(options.image_metrics)}.")
    if options.baseline is None:
        return []
    images = opened[options.baseline]
    if len(images) < least or tuple(images[0].shape[1:]) != shape[1:]:
        raise InputError(
            f"the baseline {options.baseline} holds {len(images)} images of shape {tuple(images[0].shape)}; expected "
            f"at least {least} of the model's {shape}: choose other images, or null for none."
        )
    size = min(options.count, len(images))
    groups = min(max(len(images) // size, 1), len(options.seeds))
    order = generator(0, "baseline images").permutation(len(images))
    return [Subset(images, sorted(order[g * size : (g + 1) * size].tolist())) for g in range(groups)]
