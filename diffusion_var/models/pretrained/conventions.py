"""What a diffusers scheduler's config says of a network besides its schedule: prediction type, clipping, range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...process.diffusers_configs import family_of, number, switch
from ..prediction import Prediction

_PREDICTIONS: dict[str, dict[str, Prediction]] = {
    "betas": {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"},
    "flow": {"flow_prediction": "flow"},
    "inverted flow": {"flow_prediction": "flow_to_data"},
    "trigflow": {"trigflow": "trigflow"},
    "edm": {"epsilon": "edm", "v_prediction": "edm_v"},
    "ve": {"score": "score"},
}
_DEFAULT_PREDICTION = {
    "betas": "epsilon",
    "flow": "flow_prediction",
    "inverted flow": "flow_prediction",
    "trigflow": "trigflow",
    "edm": "epsilon",
    "ve": "score",
}
# A config that does not say means its class's default, which is to clip for these.
_CLIPPING_CLASSES = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")


def prediction_of(config: Mapping[str, Any]) -> Prediction:
    """What the network predicts; InputError for a name that its kind of scheduler does not have."""
    family = family_of(config)
    known = _PREDICTIONS[family]
    name = config.get("prediction_type", _DEFAULT_PREDICTION[family])
    if not isinstance(name, str) or name not in known:
        raise InputError(f"the scheduler's prediction_type is {name!r}, but the supported ones are {', '.join(known)}.")
    return known[name]


def clip_of(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """The bounds of x̂_0, or None."""
    if not switch(config, "clip_sample", config.get("_class_name") in (*_CLIPPING_CLASSES, "AnalyticScheduler")):
        return None
    bound = number(config, "clip_sample_range", 1.0)
    return -bound, bound


def data_range_of(config: Mapping[str, Any]) -> tuple[float, float]:
    """The range of the images (not of latents): [0, 1] for score-SDE's networks, else the clipping or [-1, 1]."""
    return (0.0, 1.0) if family_of(config) == "ve" else clip_of(config) or (-1.0, 1.0)
