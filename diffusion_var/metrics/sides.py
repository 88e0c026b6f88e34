"""The two sides of a score: whatever is given as images or reference becomes statistics, features and their origin.

*Reference batches that hold both* statistics and images (ADM's `mu`, `sigma` and `arr_0`): the statistics are of the
whole data set under the published Inception, the images are a part of it. So published FIDs use the statistics, and so
does the FID here with Inception features; every other network and metric uses the images. The protocol says which.

*Statistics* must be of the features in use: where a file says how it was made (`origin`), that is compared; where it
does not, the protocol says "statistics of unknown origin".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from .. import checks
from ..data.arrays import ARRAY_KEYS
from ..errors import InputError
from ..files import expanded
from .networks import FeatureNetwork, load_features
from .sample import FeatureSample, Images, collect, network_origin
from .statistics import FeatureStatistics

Features = str | os.PathLike[str] | FeatureNetwork | nn.Module | Callable[[Tensor], Tensor]
Side = Images | FeatureStatistics | FeatureSample

# What two sides must have in common to be compared at all.
_COMMON = ("features_sha256", "resize", "number_format")


@dataclass(frozen=True)
class Resolved:
    """One side, ready to be scored.

    Attributes:
        statistics: what the FID is taken of; `statistics_origin` says how they were made, as far as is known.
        features: (N, D), what the other metrics are taken of, where they are needed; with `features_origin`.
        kind: "images", "features", "statistics" or "statistics of unknown origin".
    """

    statistics: FeatureStatistics
    statistics_origin: Mapping[str, Any]
    features: npt.NDArray[np.float32] | None
    features_origin: Mapping[str, Any]
    kind: str


def resolve(
    sides: Mapping[str, Side], keep: Mapping[str, bool], features: Features, names: Mapping[str, str | None], **how: Any
) -> dict[str, Resolved]:
    """Both sides by role ("images", "reference"), collected where they are images.

    `keep` says whose features are needed; `how` is passed to `collect`. Raises InputError where the two were not made
    in the same way, where features are needed and only statistics given, and for fewer than 2 images.
    """
    published = features == "inception" or getattr(features, "name", None) == "inception"
    opened = {role: _open(side, published) for role, side in sides.items()}
    for role, (given, pictures) in opened.items():
        if keep[role] and pictures is None and given is not None and given.features is None:
            raise InputError(
                f"{role} holds a mean and a covariance only, and what is asked for needs the features of every image; "
                "pass the images, or collect(..., keep=True) of them."
            )
    # Two given sides need no network, so the default one is not loaded; any other was asked for, and is compared.
    network = None
    if features != "inception" or any(_to_collect(*opened[role], keep[role]) for role in opened):
        _require_named(features, opened)
        network = load_features(features)
    resolved = {role: _resolve(role, *opened[role], keep[role], network, names[role], how) for role in sides}
    _require_common(resolved, network)
    return resolved


def _require_named(features: Features, opened: Mapping[str, tuple[FeatureSample | None, Images | None]]) -> None:
    """Refuse other features than a side's before they are loaded: Inception, the default, may be a download."""
    for role, (given, _) in opened.items():
        made = None if given is None else given.origin.get("features")
        if features == "inception" and made not in (None, "inception"):
            raise InputError(
                f"{role} was made with the features {made!r}, but those in use are 'inception'; "
                f"pass features={made!r}, or the file that holds them."
            )


def _open(side: Side, published: bool) -> tuple[FeatureSample | None, Images | None]:
    """What is there already, and the images that can be put through the network; at least one of the two."""
    if isinstance(side, FeatureSample):
        return side, None
    checks.refuse(side is None, "a score is of images and a reference, but one of them is None; give both.")
    if isinstance(side, FeatureStatistics):
        return FeatureSample(side, None, side.origin or {}), None
    keys = _keys(side)
    if not {"mu", "sigma"} <= keys:
        return None, side
    pictures = side if keys & {*ARRAY_KEYS} else None
    if pictures is not None and not published:
        return None, pictures
    assert isinstance(side, str | os.PathLike)
    statistics = FeatureStatistics.load(side)
    origin = statistics.origin or {}
    return FeatureSample(statistics, None, {**origin, "file": os.fspath(side)}), pictures


def _keys(side: Any) -> set[str]:
    """The names of the arrays in an `.npz`; none for anything else."""
    if not isinstance(side, str | os.PathLike):
        return set()
    path = expanded(side)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return set()
    try:
        with np.load(path, allow_pickle=False) as content:
            return set(content.files)
    except Exception:  # unreadable: let read_images say so
        return set()


def _to_collect(given: FeatureSample | None, pictures: Images | None, keep: bool) -> bool:
    return given is None or (keep and given.features is None)


def _resolve(
    role: str,
    given: FeatureSample | None,
    pictures: Images | None,
    keep: bool,
    network: FeatureNetwork | None,
    name: str | None,
    how: Mapping[str, Any],
) -> Resolved:
    made = given
    if _to_collect(given, pictures, keep):
        assert network is not None
        assert pictures is not None
        made = collect(pictures, network, keep=keep, name=name, **how)
    assert made is not None
    first = given or made
    count = first.statistics.count
    if count is not None and count < 2:
        raise InputError(f"a score needs at least 2 images on each side, but {role} holds {count}; pass more images.")
    kind = "images" if given is None else "features" if given.features is not None else "statistics"
    if "sha256" not in first.origin:
        kind = "statistics of unknown origin"
    named = {} if name is None else {"name": name}
    return Resolved(first.statistics, {**first.origin, **named}, made.features, {**made.origin, **named}, kind)


def _require_common(sides: Mapping[str, Resolved], network: FeatureNetwork | None) -> None:
    """Refuse origins that differ in what must be common; what an origin does not say cannot be compared."""
    known = [
        (f"the {role} {origin.get('file', origin.get('name', ''))}".rstrip(), origin)
        for role, side in sides.items()
        for origin in (side.statistics_origin, side.features_origin)
        if origin
    ]
    # A collected side has the network's origin already, and the hash of large weights takes time.
    if network is not None and all(side.kind != "images" for side in sides.values()):
        known.append((f"the feature network {network.name}", network_origin(network)))
    for field in _COMMON:
        stated = [(who, origin) for who, origin in known if field in origin]
        for who, origin in stated[1:]:
            first, reference = stated[0]
            if origin[field] != reference[field]:
                said = [f"{record.get('features')}, {field} {record[field]}" for record in (reference, origin)]
                raise InputError(
                    f"{first} (features {said[0]}) and {who} (features {said[1]}) do not belong together; make the "
                    "statistics again with the features in use."
                )
