"""Which tables, configs and pipelines belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..files import expanded
from ..hub import fetch_file
from ..models.identity import ModelIdentity, network_facts
from ..models.pretrained.conventions import clip_of, prediction_of
from ..models.pretrained.latent_form import LatentForm
from ..process.diffusers_configs import SUPPORTED, config_of, family_of, number, schedule_of
from ..unwrapping import unwrapped
from ..variance.table import VarianceTable

# What solvers by betas and flow-matching schedulers have in common, apart from the shift's name.
_FLOW_OPTIONS = (
    *("num_train_timesteps", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    *("use_dynamic_shifting", "time_shift_type", "shift_terminal"),
)
# What AnalyticFlowScheduler has beside them, which other schedulers keep of its config.
_OWN_OPTIONS = ("variance", "variance_type", "eta", "tau", "layout")
_HUB_OPTIONS = ("cache_dir", "force_download", "token", "local_files_only", "revision")


def identity_of_config(config: Mapping[str, Any]) -> ModelIdentity:
    """What a scheduler's config says of the model."""
    return ModelIdentity(schedule_of(config), {"prediction": prediction_of(config), "clip": clip_of(config)})


def check_table(table: VarianceTable, config: Mapping[str, Any]) -> None:
    """Refuse a table that was measured under another schedule, prediction type or clipping than the config's."""
    checks.refuse(
        bool(config.get("thresholding")),
        "the scheduler has thresholding=true, which no table is measured with; pass thresholding=False.",
    )
    if unlike := table.identity().mismatch(identity_of_config(config), "the table", "the scheduler"):
        raise InputError(
            f"this variance table does not fit the scheduler ({unlike}); give the config of the scheduler that the "
            "model was measured with."
        )


def check_flow_table(table: VarianceTable, config: Mapping[str, Any]) -> None:
    """Refuse a table of another prediction type than a flow's, or with clipping; its levels are compared when they are
    visited, by log SNR [E14]."""
    signs = "flow", "flow_to_data"  # one flow, whichever way it is told
    prediction: str = prediction_of(config)
    if prediction in signs and table.prediction in signs:
        prediction = table.prediction
    found = ModelIdentity(table.schedule, {"prediction": prediction, "clip": clip_of(config)})
    if unlike := table.identity().mismatch(found, "the table", "the scheduler"):
        raise InputError(
            f"this variance table does not fit the scheduler ({unlike}); give a table of this flow model, or, for "
            "networks of other predictions and for clipped ones, use AnalyticScheduler or dv.Sampler."
        )


def check_pipeline(table: VarianceTable, pipe: Any, network: torch.nn.Module | None) -> None:
    """Refuse a table of another network or latent scaling than a pipeline's, and pipelines that would not keep the
    scheduler as it is."""
    checks.refuse(
        type(pipe).__name__ == "DDIMPipeline",
        "DDIMPipeline hands its own eta to every scheduler and makes a DDIMScheduler of it when loaded; use "
        "DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler), with eta in from_table.",
    )
    channels = getattr(unwrapped(getattr(pipe, "unet", None)), "config", {})
    checks.refuse(
        len(channels) > 0 and channels.get("out_channels") == 2 * channels.get("in_channels", 0),
        "the pipeline's UNet returns a learned range, whose second half the pipeline would hand to the scheduler; use "
        "dv.Sampler with dv.Analytic(table), which leaves it out.",
    )
    mine, facts = table.identity(), dict[str, Any]()
    if network is not None and table.network is not None:
        facts = network_facts(network, table.schedule, table.shape or (), beside=mine)
    codecs = (getattr(pipe, name, None) for name in ("vae", "vqvae"))
    if (codec := next((codec for codec in codecs if codec is not None), None)) is not None:
        scaling = LatentForm.of(codec).common_scaling
        facts |= {} if scaling is None else {"latent_scaling": scaling}
    if unlike := mine.mismatch(ModelIdentity(table.schedule, facts), "the table", "the pipeline"):
        raise InputError(
            f"this variance table was made for another model ({unlike}); estimate one for this model, or, where the "
            "weights differ in precision only, give pipe.scheduler.config instead of the pipeline."
        )


def check_sound(pipe: Any) -> None:
    """Refuse pipelines that denoise two things by copies of one scheduler."""
    checks.refuse(
        getattr(pipe, "audio_vae", None) is not None or type(pipe).__name__.startswith("Cosmos3Omni"),
        f"{type(pipe).__name__} denoises its sound with a copy of its scheduler, but the variances of a table are of "
        "one of the two; use AnalyticFlowScheduler.from_config(pipe.scheduler.config, eta=1), whose noise is λ² alone.",
    )


def config_to_fit(table: VarianceTable, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config (with options in its place) without what it had of another table; see `check_table`."""
    given = {**config_of(config), **options}
    require_betas(given)
    check_table(table, given)
    # The given class's defaults need not be AnalyticScheduler's, so they count as given; None is no value.
    kept = {k: v for k, v in given.items() if v is not None and k not in ("_use_default_values", "variance")}
    return {**kept, "clip_sample": clip_of(given) is not None}


def flow_config_to_fit(table: VarianceTable, config: Any) -> dict[str, Any]:
    """The config of a flow's scheduler, as FlowMatchEulerDiscreteScheduler has it, without what it had of another
    table; see `check_flow_table`."""
    given = config_of(config)
    require_flow(given)
    check_flow_table(table, given)
    own = ("_use_default_values", "_class_name", *_OWN_OPTIONS)
    return {name: value for name, value in with_shift(given).items() if value is not None and name not in own}


def with_shift(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A flow's config; of a solver by betas that is told to take a flow's levels, with `shift` for its `flow_shift` and
    without what is its own."""
    if config.get("flow_shift") is None or "num_train_timesteps" not in config:
        return config
    if family_of({**_known(config), "use_flow_sigmas": False}) != "betas":
        return config  # a flow's scheduler that was made of such a solver's config, and has a shift
    kept = (name for name in (*_FLOW_OPTIONS, *_OWN_OPTIONS) if config.get(name) is not None)
    return {**{name: config[name] for name in kept}, "shift": config["flow_shift"]}


def require_flow(config: Mapping[str, Any]) -> None:
    """Refuse configs of schedulers whose noise levels are not a flow's: their keys would be left out in silence."""
    if "num_train_timesteps" not in config:
        return
    named = config.get("_class_name")
    checks.refuse(
        family_of(_known(config)) not in ("flow", "inverted flow"),
        f"AnalyticFlowScheduler knows the schedules of flow matching, but the config is {_article(named)}'s; use "
        "dv.analytic_scheduler(table, pipe), which takes the one that fits the pipeline, or AnalyticScheduler.",
    )


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose class is one that is known, or none: a subclass of one's own goes by the keys."""
    named = config.get("_class_name")
    return {**config, "_class_name": named if named in SUPPORTED else None}


def _article(name: Any) -> str:
    return f"{'an' if str(name)[:1] in 'AEIOU' else 'a'} {name}" if name else "another kind of scheduler"


def require_betas(config: Mapping[str, Any]) -> None:
    """Refuse configs of schedulers whose noise levels are not DDPM's: their keys would be left out in silence."""
    if "num_train_timesteps" not in config:
        return
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    shifted = number(config, "snr_shift_scale", 1.0) != 1.0
    known = _known(config)
    checks.refuse(
        continuous
        or shifted
        or family_of(known) in ("flow", "inverted flow", "trigflow")
        or ("beta_schedule" not in config and family_of(known) != "betas"),
        "AnalyticScheduler knows schedules that are given by betas, with timesteps 0 to N - 1, but the config's is "
        "another (flow, EDM, VE, continuous timesteps or a shifted SNR); use AnalyticFlowScheduler for flows (or "
        "dv.analytic_scheduler(table, pipe), which takes the one that fits), and dv.Sampler for the others.",
    )


def require_schedule(scheduler: Any, table: VarianceTable) -> None:
    """Refuse a table of a schedule that a scheduler by betas cannot have."""
    checks.refuse(
        not scheduler.schedule.matches(table.schedule),
        "AnalyticScheduler knows schedules that are given by betas, with timesteps 0 to N - 1, but this table has "
        "another (flow, EDM, VE, continuous timesteps); use Sampler(denoiser, Analytic(table), steps).",
    )


def find_beside(noun: str, name: str, where: str, subfolder: str | None, options: Mapping[str, Any]) -> Path:
    """The file called `name`, a table or head, beside the config, in a local folder or a hub repository; InputError
    where it cannot be had."""
    folder = expanded(where) / (subfolder or "")
    if folder.is_dir():
        return folder / name

    def failed(reason: str) -> str:
        return (
            f"the scheduler in {where} needs its {noun} {name} beside its config, but it could not be had ({reason}); "
            "save the scheduler again."
        )

    chosen = {key: options[key] for key in _HUB_OPTIONS if key in options}
    return fetch_file(where, name, failed, subfolder=subfolder, **chosen)
