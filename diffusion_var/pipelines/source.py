"""From a scheduler's config to its reverse covariance: the one place where `variance_type` is looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..covariance.learned_range import LearnedRange
from ..covariance.lists import VarianceLists
from ..covariance.reverse import FixedLarge, FixedSmall, ReverseCovariance
from ..errors import InputError
from ..process.schedule import NoiseSchedule

_UNMEASURED: dict[str, Callable[[], ReverseCovariance]] = {
    "fixed_small": FixedSmall,
    "fixed_large": FixedLarge,
    "learned_range": LearnedRange,
}
_BELONG_TO = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "clip_sample", "thresholding", "estimator", "structure"),
)
VARIANCE_TYPES = (*_UNMEASURED, "analytic", "head")


def chosen_covariance(config: Any, schedule: NoiseSchedule) -> ReverseCovariance | None:
    """The reverse covariance of a config; None where its table or head lies in a file and has yet to be attached.

    Raises InputError for an unknown variance_type, one that its η does not allow, and "analytic" without variances.
    """
    kind = config.variance_type
    if kind not in VARIANCE_TYPES:
        plain = kind.removesuffix("_log") if isinstance(kind, str) else ""
        hint = f" ({plain!r} is the variance of which it names the logarithm)" if plain in VARIANCE_TYPES else ""
        raise InputError(f"variance_type={kind!r} is not known; use one of {', '.join(VARIANCE_TYPES)}{hint}.")
    if kind in ("fixed_large", "learned_range") and config.eta != 1:
        raise InputError(f"variance_type={kind!r} is defined for eta=1 only, but eta={config.eta}; use eta=1.")
    if kind == "head":
        if config.head_file is None:
            raise InputError(
                "variance_type='head' needs a trained head, but there is none; make the scheduler with "
                "AnalyticScheduler.from_head(head, pipe)."
            )
        return None
    if kind != "analytic":
        return _UNMEASURED[kind]()
    if config.posterior_variance is not None:
        return _listed(config, schedule)
    if config.table_file is None:
        raise InputError(
            "variance_type='analytic' needs a variance table, but there is none; make the scheduler with "
            "AnalyticScheduler.from_table(table, pipe.scheduler.config)."
        )
    return None


def _listed(config: Any, schedule: NoiseSchedule) -> VarianceLists:
    lists = VarianceLists(config.posterior_variance, config.clipping_cross, config.clipping_shift)
    if len(lists.variances) != schedule.num_steps:
        raise InputError(
            f"posterior_variance has {len(lists.variances)} entries, but num_train_timesteps is {schedule.num_steps}; "
            "make the scheduler with AnalyticScheduler.from_table."
        )
    if config.table_digest not in (None, settings_digest(config)):
        raise InputError(
            "posterior_variance was measured under another schedule, prediction type, clipping, estimator or structure "
            "than the config has now; make the scheduler with AnalyticScheduler.from_table."
        )
    return lists


def settings_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of what the variances of a config belong to: of its own values, which no machine rounds otherwise."""
    bound = config["clip_sample_range"] if config["clip_sample"] else None
    facts = {name: config[name] for name in _BELONG_TO} | {"bound": bound}
    if facts["trained_betas"] is not None:
        facts["trained_betas"] = [float(beta) for beta in facts["trained_betas"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def split_output(
    model_output: torch.Tensor, channels: int, variance_type: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The prediction and the raw learned range; InputError where the channels do not fit the variance_type."""
    learned, found = variance_type == "learned_range", model_output.shape[1]
    expected = 2 * channels if learned else channels
    if found != expected:
        advice = "pass another variance_type" if learned else "set it to 'learned_range', or pass the first half"
        raise InputError(
            f"model_output has {found} channels for a sample with {channels}, but variance_type={variance_type!r} "
            f"expects {expected}; {advice}."
        )
    return (model_output[:, :channels], model_output[:, channels:]) if learned else (model_output, None)
