"""What a scheduler's config may hold: its settings one by one, and what it keeps of a table or head as a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .. import checks
from ..documents import Record
from ..errors import InputError
from ..variance.estimators import Estimator

Text = Annotated[str, Field(min_length=1, max_length=256)]
Numbers = list[float] | list[list[float]]
_MOST_TIMESTEPS = 1_000_000
_SWITCHES = ("clip_sample", "thresholding", "rescale_betas_zero_snr")
_POSITIVE = ("dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value")
_NUMBERS = ("beta_start", "beta_end")


class VarianceRecord(Record):
    """The entry `variance`: of which structure and images, and lists of numbers or the name of a file."""

    structure: Literal["isotropic", "channel", "pixel", "dct"] | None = None
    estimator: Estimator | None = None
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=4)] | None = None
    posterior_variance: Numbers | None = None
    log_snr: list[float] | None = None
    ratio: Numbers | None = None
    data_variance: float | list[float] | None = None
    without_signal: float | list[float] | None = None
    clipping_cross: Numbers | None = None
    clipping_shift: Numbers | None = None
    file: Text | None = None
    digest: Text | None = None

    @model_validator(mode="after")
    def _either(self) -> VarianceRecord:
        kept = (self.posterior_variance, self.ratio, self.file)
        if sum(one is not None for one in kept) != 1:
            raise ValueError("either numbers or the name of a file are kept, and one of them is")
        return self


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings of another kind than theirs; which of them go together is the schedule's business."""
    checks.whole("num_train_timesteps", config["num_train_timesteps"], least=1, most=_MOST_TIMESTEPS)
    checks.whole("steps_offset", config["steps_offset"], least=-_MOST_TIMESTEPS, most=_MOST_TIMESTEPS)
    for name in _SWITCHES:
        refused = f"{name}={checks.brief(config[name])} must be true or false."
        checks.refuse(not checks.is_bool(config[name]), refused)
    for name in _POSITIVE:
        checks.positive(name, config[name])
    for name in _NUMBERS:
        checks.number(name, config[name])


def check_entry(entry: Any, scheduler: str) -> None:
    """Refuse what is no entry of the config of the scheduler of this name, in one sentence."""
    try:
        text = json.dumps(dict(entry) if isinstance(entry, Mapping) else entry)
        VarianceRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("variance", *first["loc"]))
        raise InputError(
            f"the scheduler's config has {where}={checks.brief(first['input'])} ({first['msg'][:200]}); make the "
            f"scheduler with {scheduler}.from_table or from_head."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the scheduler's config has variance={checks.brief(entry)}, which is no plain data; make the "
            f"scheduler with {scheduler}.from_table or from_head."
        ) from error
