"""The command fid: scores of images against a reference, with their protocol."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ...files import regular_file
from ...metrics.networks import FeatureNetwork, load_features
from ...metrics.score import Score
from ...metrics.scores import evaluate
from ...parallel import is_first
from ..model import image_range, open_device, read
from ..options import FidOptions
from ..terminal import say

_TITLES = {"fid": "FID", "fid_infinity": "FID∞", "kid": "KID"}


def run(options: FidOptions) -> None:
    """Print scores of images against a reference, with their protocol."""
    device = open_device(options.device)
    data_range = image_range(options.data_range)
    images, reference = (_side(name, options) for name in (options.images, options.reference))
    # The default network is loaded only if there are images to put through it.
    default = options.features == "inception" and options.inception_weights is None and options.accept_weights is None
    scores = evaluate(
        images,
        reference,
        options.metrics,
        "inception" if default else _features(options),
        seed=options.seed,
        bootstrap=options.bootstrap,
        extrapolate=options.extrapolate,
        data_range=data_range,
        batch_size=options.batch_size,
        device=device,
        names=(options.images, options.reference),
        progress=not options.json,
    )
    lines = _json_lines(scores) if options.json else _text(scores)
    for line in lines if is_first() else ():
        print(line) if options.json else say(line)


def _features(options: FidOptions) -> FeatureNetwork:
    return load_features(
        options.features, inception_weights=options.inception_weights, accept_weights=options.accept_weights
    )


def _side(name: str, options: FidOptions) -> Any:
    """An npz goes to the harness by name, since it may hold statistics instead of images."""
    if Path(name).suffix.lower() != ".npz":
        return read(name, options)
    return regular_file(name, "file of images or statistics") if options.channels is None else read(name, options)


def _json_lines(scores: dict[str, Score]) -> list[str]:
    return [
        json.dumps(
            {
                "metric": metric,
                "value": score.value,
                "standard_error": None if math.isnan(score.standard_error or 0.0) else score.standard_error,
                "interval": score.interval,
                "protocol": score.protocol,
            },
        )
        for metric, score in scores.items()
    ]


def _text(scores: dict[str, Score]) -> list[str]:
    """The scores, then the protocol: once where they share it, and for each what is its own."""
    lines = []
    for metric, score in scores.items():
        own = {**score.protocol["parameters"], **score.protocol.get("interval", {})}
        remark = f"  [{', '.join(f'{key} {value}' for key, value in own.items())}]" if own else ""
        lines.append(f"{_TITLES.get(metric, metric)}: {score}{remark}")
    first = next(iter(scores.values())).protocol
    others = [score.protocol for score in scores.values()]
    for key, value in first.items():
        if key in ("metric", "parameters", "interval"):
            continue
        values = [protocol.get(key) for protocol in others]
        if all(found == value for found in values):
            lines.append(f"  {key}: {_plain(value)}")
        else:  # a file that holds statistics and images serves different metrics differently
            lines += [f"  {key} ({metric}): {found}" for metric, found in zip(scores, values, strict=True)]
    return lines


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
