"""Scores of one set of images against one reference, each image passing through the network once.

    images ────> FeatureSample ─┬─> fid (and its interval, and fid_infinity)      from means and covariances
    reference ─> FeatureSample ─┴─> kid, precision, recall, density, coverage     from the features themselves

`evaluate` gives several metrics at once, `fid` the Fréchet distance (Heusel et al. 2017, arXiv:1706.08500) alone. A
score is comparable to another only under the same protocol, which each carries (see `score.py`). What either side may
be, and which part of a file is used, is in `sides.py`; the metrics are in `frechet.py`, `kid.py`, `neighbours.py` and
`uncertainty.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InputError
from .frechet import frechet_distance
from .networks import load_features
from .sample import Images, collect
from .score import Score, versions
from .sides import Features, Resolved, Side, resolve
from .statistics import FeatureStatistics

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage")
LEVEL = 0.95
KID_BLOCKS, KID_BLOCK_SIZE = 100, 1000
NEAREST_OF_MANIFOLD, NEAREST_OF_DENSITY = 3, 5  # k, as published


def evaluate(
    images: Side,
    reference: Side,
    metrics: Sequence[str] = ("fid",),
    features: Features = "inception",
    *,
    seed: int = 0,
    bootstrap: int = 0,
    extrapolate: bool = False,
    data_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 256,
    device: str | torch.device | None = None,
    names: tuple[str | None, str | None] = (None, None),
    progress: bool = False,
) -> dict[str, Score]:
    """Scores of `images` against `reference`, by metric.

    Args:
        images, reference: anything `collect` takes; a FeatureSample; FeatureStatistics; or an `.npz` with `mu` and
            `sigma` (the last two serve the FID only).
        metrics: some of METRICS. FID and KID: lower is better; the others: higher.
        features: anything `load_features` takes. Not loaded where both sides bring their features.
        seed: of KID's blocks, the bootstrap and the extrapolation.
        bootstrap: repeats of the bootstrap that gives the FID its 95 % interval; 0 for none.
        extrapolate: also "fid_infinity", the FID extrapolated to infinitely many images.
        data_range, batch_size, device, progress: see `collect`.
        names: of the two sides in the protocol; by default their paths or types.

    Raises InputError for unknown metrics, sides that cannot be compared, fewer than 2 images, NaN, and anything that
    cannot be read.
    """
    _check(metrics, bootstrap, extrapolate)
    others = any(metric != "fid" for metric in metrics)
    sides = resolve(
        {"images": images, "reference": reference},
        {"images": others or bootstrap > 0 or extrapolate, "reference": others},
        features,
        {"images": names[0], "reference": names[1]},
        data_range=data_range,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    ours, theirs = sides["images"], sides["reference"]
    scores: dict[str, Score] = {}
    for metric in metrics:
        if metric == "fid":
            scores |= _fid(ours, theirs, seed, bootstrap, extrapolate)
        elif metric == "kid":
            scores[metric] = _kid(ours, theirs, seed)
        elif metric not in scores:
            scores |= _neighbours(ours, theirs, metric)
    order = [*metrics, *(["fid_infinity"] if extrapolate else [])]
    return {metric: scores[metric] for metric in order}


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


def _check(metrics: Sequence[str], bootstrap: int, extrapolate: bool) -> None:
    unknown = [metrics] if isinstance(metrics, str) else [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise InputError(f"metrics holds {', '.join(unknown) or 'nothing'}; expected some of {', '.join(METRICS)}.")
    if bootstrap != 0 and bootstrap < 20:
        raise InputError(f"bootstrap is {bootstrap}; expected at least 20 repeats (better 200), or 0 for no interval.")
    if (bootstrap or extrapolate) and "fid" not in metrics:
        raise InputError("bootstrap and extrapolate are of the FID; add fid to the metrics or leave them out.")


def _fid(ours: Resolved, theirs: Resolved, seed: int, bootstrap: int, extrapolate: bool) -> dict[str, Score]:
    value = frechet_distance(ours.statistics, theirs.statistics)
    record, interval = protocol("fid", ours, theirs, {}), None
    scores = {}
    if bootstrap:
        from .uncertainty import bootstrap_interval

        assert ours.features is not None
        interval = bootstrap_interval(ours.features, theirs.statistics, repeats=bootstrap, level=LEVEL, seed=seed)
        record["interval"] = {"method": "bootstrap of the images", "level": LEVEL, "repeats": bootstrap, "seed": seed}
    scores["fid"] = Score(value, record, interval=interval)
    if extrapolate:
        from .uncertainty import fid_infinity

        assert ours.features is not None
        limit = fid_infinity(ours.features, theirs.statistics, seed=seed)
        record = protocol("fid_infinity", ours, theirs, {"seed": seed})
        scores["fid_infinity"] = Score(limit.value, record, limit.standard_error)
    return scores


def _kid(ours: Resolved, theirs: Resolved, seed: int) -> Score:
    from .kid import kernel_distance

    assert ours.features is not None
    assert theirs.features is not None
    found = kernel_distance(ours.features, theirs.features, blocks=KID_BLOCKS, block_size=KID_BLOCK_SIZE, seed=seed)
    size = min(KID_BLOCK_SIZE, len(ours.features), len(theirs.features))
    # Where one block is all images of both sides, nothing is drawn.
    whole = size == len(ours.features) == len(theirs.features)
    parameters = (
        {"blocks": 1, "block_size": size} if whole else {"blocks": KID_BLOCKS, "block_size": size, "seed": seed}
    )
    record = protocol("kid", ours, theirs, parameters, of_features=True)
    return Score(found.value, record, found.standard_error)


def _neighbours(ours: Resolved, theirs: Resolved, metric: str) -> dict[str, Score]:
    """The pair that a metric belongs to, which costs no more than one of the two."""
    from .neighbours import density_coverage, precision_recall

    assert ours.features is not None
    assert theirs.features is not None
    if metric in ("precision", "recall"):
        names, k = ("precision", "recall"), NEAREST_OF_MANIFOLD
        values = precision_recall(theirs.features, ours.features, k=k)
    else:
        names, k = ("density", "coverage"), NEAREST_OF_DENSITY
        values = density_coverage(theirs.features, ours.features, k=k)
    return {
        name: Score(value, protocol(name, ours, theirs, {"neighbours": k}, of_features=True))
        for name, value in zip(names, values, strict=True)
    }


def protocol(
    metric: str, ours: Resolved, theirs: Resolved, parameters: Mapping[str, Any], *, of_features: bool = False
) -> dict[str, Any]:
    """How a score was made: the fields of `score.COMPARED`, then names, hashes and versions."""
    origins = [side.features_origin if of_features else side.statistics_origin for side in (ours, theirs)]
    counts = [
        len(side.features) if of_features and side.features is not None else side.statistics.count
        for side in (ours, theirs)
    ]
    return {
        "metric": metric,
        "parameters": dict(parameters),
        **{name: _either(name, origins) for name in ("features", "features_sha256", "resize")},
        "colour": _colour(origins),
        "number_format": _either("number_format", origins),
        "images": counts[0],
        "reference": counts[1],
        "reference_sha256": origins[1].get("sha256", theirs.statistics.digest),
        "reference_name": origins[1].get("name", origins[1].get("file")),
        "reference_from": "images" if of_features else theirs.kind,
        "images_sha256": origins[0].get("sha256", ours.statistics.digest),
        "images_name": origins[0].get("name", origins[0].get("file")),
        "images_from": "images" if of_features else ours.kind,
        **{
            f"{role}_{what}": origin[what]
            for role, origin in zip(("images", "reference"), origins, strict=True)
            for what in ("skipped", "left_out")
            if what in origin
        },
        "versions": versions(),
    }


def _either(name: str, origins: Sequence[Mapping[str, Any]]) -> Any:
    """A field that the sides have in common, from the first that states it."""
    return next((origin[name] for origin in origins if name in origin), None)


def _colour(origins: Sequence[Mapping[str, Any]]) -> str | None:
    stated = [origin["colour"] for origin in origins if "colour" in origin]
    if not stated:
        return None
    return str(stated[0]) if len({*stated}) == 1 else f"images {stated[0]}, reference {stated[1]}"
