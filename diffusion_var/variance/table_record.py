"""What a table's file must hold to make sense: its metadata as a model, its arrays as a table of rules, and what ties
them together.

The draws add up to the evaluations, the variances of the data are as large in one orthonormal basis as in another, and
the moments are such as draws can give (`plausibility`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator, with_config
from typing_extensions import TypedDict

from ..array_rules import ArrayRule, Rules, require_arrays
from ..checks import refuse
from ..documents import Arrays, Record
from ..measured import is_measured
from ..models.prediction import Prediction
from ..process.schedule import NoiseSchedule
from ..process.structure import STRUCTURE_NAMES, make_structure
from .estimators import ESTIMATORS
from .moments import FOLDS, NUM_MOMENTS, SHARD, fold_shards
from .plausibility import check_agreement, check_folds, check_moments, check_noise

_ROUNDING: Final = 1e-4

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Pair = tuple[float, float]
Numbers = Annotated[tuple[float, ...], Field(min_length=1)]


class ScheduleRecord(Record):
    """Of the schedule, beside its arrays."""

    digest: Text
    prior_std: Annotated[float, Field(gt=0)]


class DataRecord(Record):
    """Of the data, beside their statistics."""

    count: Size
    fingerprint: Text


def _measured(value: dict[str, Any]) -> dict[str, Any]:
    refuse(not is_measured(value), "what was measured of the network is no list of numbers")
    return value


@with_config(ConfigDict(strict=True, extra="forbid"))
class NetworkFacts(TypedDict, total=False):
    """What tells the network besides its weights; see `models.identity.network_facts`."""

    precision: Text
    classifier_scale: float
    embedded_guidance: float
    evaluations_an_image: Count
    beside: Text
    steered: dict[Text, JsonValue]
    rounded: dict[Text, Text]
    probe: Annotated[dict[str, JsonValue], AfterValidator(_measured)]


class TableRecord(Record):
    """A table's metadata; see `VarianceTable`. What version 1 did not know has a default."""

    schedule: ScheduleRecord
    structures: tuple[Text, ...]
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)] | None
    prediction: Prediction | None
    clip: Pair | None
    data_range: Pair | None
    network: Text | None
    guidance_scale: float = 1.0
    latent_scaling: Pair | tuple[Numbers, Numbers] | None = None
    data: DataRecord | None
    seed: int | None
    tolerance: Annotated[float, Field(gt=0)] | None
    evaluations: Count
    details: dict[str, JsonValue]
    network_facts: NetworkFacts | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> TableRecord:
        names = self.structures
        if "isotropic" not in names or len({*names}) < len(names) or not {*names} <= {*STRUCTURE_NAMES}:
            raise ValueError(f"structures are isotropic and others of {', '.join(STRUCTURE_NAMES)}, each once")
        if any(pair is not None and not pair[0] < pair[1] for pair in (self.clip, self.data_range)):
            raise ValueError("a range has its lower end first")
        scale, shift = self.latent_scaling or (1.0, 0.0)
        scales, shifts = (part if isinstance(part, tuple) else (part,) for part in (scale, shift))
        if 0.0 in scales or len(scales) != len(shifts):
            raise ValueError("the scale of latents is not 0, and by channel where the shift is")
        if (self.data is None) != (self.shape is None):
            raise ValueError("data and shape are known together, or neither is")
        return self


def table_rules(record: TableRecord) -> Rules:
    """What each array of a table's file must be like."""
    levels, measured = "number of noise levels", "number of measured indices"
    drawn, known = 1 if record.data is not None else 0, record.data is not None
    rules = {
        "schedule.alpha": ArrayRule("float64", (levels,)),
        "schedule.sigma": ArrayRule("float64", (levels,)),
        "schedule.timestep": ArrayRule("float64", (levels,), finite=False),
        "indices": ArrayRule("int64", (measured,), least=1, rising=True),
        "counts": ArrayRule("int64", (measured,), least=drawn),
    }
    shape = record.shape or (1, 1, 1)
    for name in record.structures:
        elements = make_structure("pixel" if name == "dct" else name, shape).variance_shape  # needs no rotation
        kind = "float64" if name == "isotropic" else "float32"
        rules[f"{name}.means"] = ArrayRule(kind, (measured, NUM_MOMENTS, *elements), finite=known)
        rules[f"{name}.covariances"] = ArrayRule("float64", (measured, NUM_MOMENTS, NUM_MOMENTS), finite=known)
    # nan where there were too few draws, and never infinite
    rules["image_variance"] = ArrayRule(
        "float64", (measured, len(ESTIMATORS)), least=0.0, most=np.finfo(np.float64).max, finite=False, optional=True
    )
    if known:
        folds = (measured, FOLDS, NUM_MOMENTS + 1, NUM_MOMENTS)
        rules["isotropic.folds"] = ArrayRule("float64", folds, optional=True)
        rules["data.mean"] = ArrayRule("float64", shape)
        rules["data.pixel_variance"] = ArrayRule("float64", shape, least=0.0)
        rules["data.spectrum"] = ArrayRule("float64", shape, least=0.0)
        rules["data.rotation"] = ArrayRule("float64", (shape[0], shape[0]))
    return rules


def check_table_file(arrays: Arrays, record: TableRecord) -> None:
    """Refuse arrays and metadata that are no table's."""
    require_arrays(arrays, table_rules(record))
    schedule = NoiseSchedule(
        arrays["schedule.alpha"], arrays["schedule.sigma"], arrays["schedule.timestep"], record.schedule.prior_std
    )
    refuse(schedule.digest != record.schedule.digest, "its schedule is not the one of its digest")
    last, N = int(arrays["indices"][-1]) if arrays["indices"].size else 0, schedule.num_steps
    refuse(not 1 <= last <= N, f"its indices end at {last}, but its schedule has those from 1 to {N}")
    spent, said = int(arrays["counts"].sum()), record.evaluations
    refuse(spent != said, f"it says that {said} evaluations were spent, but its draws are {spent}")
    for name in record.structures:
        check_moments(name, arrays[f"{name}.means"], arrays[f"{name}.covariances"])
    if record.data is not None and record.shape is not None:
        _check_data(arrays, record)
        check_noise(arrays["isotropic.means"], arrays["counts"], math.prod(record.shape))
        for name in record.structures:
            check_agreement(name, arrays[f"{name}.means"], arrays["isotropic.means"])
    if "isotropic.folds" in arrays:
        _check_folds(arrays)


def _check_folds(arrays: Arrays) -> None:
    counts, folds = arrays["counts"], arrays["isotropic.folds"]
    refuse(bool((counts < FOLDS * SHARD).any()), f"its isotropic.folds are {FOLDS}, of fewer shards of draws")
    for fold in np.moveaxis(folds, 1, 0):
        check_moments("isotropic.folds", fold[:, 0], fold[:, 1:])
    shares = np.stack([fold_shards(int(count)) * SHARD / count for count in counts])
    check_folds(
        "isotropic", folds * shares[..., None, None], arrays["isotropic.means"], arrays["isotropic.covariances"]
    )


def _check_data(arrays: Arrays, record: TableRecord) -> None:
    rotation = arrays["data.rotation"]
    off = float(np.abs(rotation @ rotation.T - np.eye(len(rotation))).max())
    refuse(off > 1e-6, f"its data.rotation is no rotation (off by {off:.3g})")
    pixel, spectrum = float(arrays["data.pixel_variance"].sum()), float(arrays["data.spectrum"].sum())
    refuse(
        not math.isclose(pixel, spectrum, rel_tol=_ROUNDING),
        f"its data have the variance {spectrum:.6g} in the dct basis, but {pixel:.6g} in pixels",
    )
    if record.data_range is not None:
        (low, high), mean = record.data_range, arrays["data.mean"]
        slack = _ROUNDING * (high - low)
        inside = bool((mean >= low - slack).all() and (mean <= high + slack).all())
        refuse(not inside, f"its data.mean goes beyond the data range {record.data_range}")
