"""The variance table that lies beside a scheduler's config, and whether a table and a config belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..models.identity import weights_fingerprint
from ..models.pretrained.conventions import clip_of, prediction_of
from ..models.pretrained.latents import latent_scaling
from ..process.diffusers_configs import SUPPORTED, config_of, family_of, schedule_of
from ..variance.table import VarianceTable

TABLE_FILE = "variance_table.safetensors"
HEAD_FILE = "variance_head.safetensors"
_OF_A_TABLE = ("posterior_variance", "clipping_cross", "clipping_shift", "table_shape", "table_file", "table_digest")
_OF_A_HEAD = ("head_file", "head_digest")
_HUB_OPTIONS = ("cache_dir", "force_download", "token", "local_files_only", "revision")


def find_beside(kind: str, where: str, subfolder: str | None, name: str, options: Mapping[str, Any]) -> Path:
    """The file called `name`, a table or head (its `kind`), beside the config, in a local folder or a hub repository;
    InputError where it cannot be had."""
    if Path(name).name != name:
        raise InputError(
            f"the scheduler's config names the file {name!r}, but a plain file name beside the config is expected."
        )
    folder = Path(where) / (subfolder or "")
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    chosen = {key: options[key] for key in _HUB_OPTIONS if key in options}
    try:
        return Path(hf_hub_download(where, name, subfolder=subfolder, **chosen))
    except Exception as error:  # the transport's own errors are no OSErrors, and differ from version to version
        raise InputError(
            f"the scheduler in {where} needs its {kind} {name} beside its config, but it could not be had "
            f"({type(error).__name__}); save the scheduler again."
        ) from error


def check_pipeline(table: VarianceTable, pipe: Any) -> None:
    """Refuse a table of another network or latent scaling than a pipeline's, and pipelines that would not keep the
    scheduler as it is."""
    if type(pipe).__name__ == "DDIMPipeline":
        raise InputError(
            "DDIMPipeline hands its own eta to every scheduler and makes a DDIMScheduler of it when loaded; use "
            "DDPMPipeline(unet=pipe.unet, scheduler=pipe.scheduler), with eta in from_table."
        )
    channels = getattr(getattr(pipe, "unet", None), "config", {})
    if channels and channels.get("out_channels") == 2 * channels.get("in_channels", 0):
        raise InputError(
            "the pipeline's UNet returns a learned range, whose second half the pipeline would hand to the scheduler; "
            "use dv.Sampler with dv.Analytic(table), which leaves it out."
        )
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    facts: list[tuple[str, Any, Any]] = []
    if table.network is not None and isinstance(network, torch.nn.Module):
        facts.append(("network fingerprint", table.network[:12], weights_fingerprint(network)[:12]))
    codec = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    if codec is not None and table.latent_scaling is not None:
        facts.append(("latent scaling", table.latent_scaling, latent_scaling(codec.config)))
    unlike = [f"{name}: the table has {mine}, the pipeline {theirs}" for name, mine, theirs in facts if mine != theirs]
    if unlike:
        raise InputError(
            f"this variance table was made for another model ({'; '.join(unlike)}); estimate one for this model, or, "
            "where the weights differ in precision only, give pipe.scheduler.config instead of the pipeline."
        )


def check_sample(shape: tuple[int, ...], measured: Sequence[int] | None, structure: str) -> None:
    """Refuse samples that the table's variances have no meaning for: other channels, or with a variance per element
    another size."""
    if measured is None:
        return
    elementwise = structure in ("pixel", "dct")
    if tuple(measured) != shape and (elementwise or measured[0] != shape[0]):
        raise InputError(
            f"the sample has shape {shape}, but the table was measured on {tuple(measured)} with structure "
            f"{structure!r}; use the table of this model and size (isotropic and channel serve every size)."
        )


def require_betas(config: Mapping[str, Any]) -> None:
    """Refuse configs of schedulers whose noise levels are not DDPM's: their keys would be left out in silence."""
    if "num_train_timesteps" not in config:
        return
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    named = config.get("_class_name")
    known = {**config, "_class_name": named if named in SUPPORTED else None}
    if continuous or ("beta_schedule" not in config and family_of(known) != "betas"):
        raise InputError(
            "AnalyticScheduler knows schedules that are given by betas, with timesteps 0 to N - 1, but the config's is "
            "another (flow, EDM, VE or continuous timesteps); use dv.Sampler for them."
        )


def config_to_fit(table: VarianceTable, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config (with options in its place) without what it had of another table; see `check_table`."""
    given = {**config_of(config), **options}
    check_table(table, given)
    # The given class's defaults need not be AnalyticScheduler's, so they count as given; None is no value.
    dropped = ("_use_default_values", *_OF_A_TABLE, *_OF_A_HEAD)
    kept = {key: value for key, value in given.items() if value is not None and key not in dropped}
    return {**kept, "clip_sample": clip_of(given) is not None}


def check_table(table: VarianceTable, config: Mapping[str, Any]) -> None:
    """Refuse a table that was measured under another schedule, prediction type or clipping than the config's."""
    if config.get("thresholding"):
        raise InputError(
            "the scheduler has thresholding=true, which no table is measured with; pass thresholding=False."
        )
    facts: list[tuple[str, Any, Any]] = []
    if not table.schedule.matches(theirs := schedule_of(config)):
        facts.append(("schedule", table.schedule, theirs))
    if table.prediction is not None:  # published arrays know their schedule only
        facts += [
            ("prediction type", table.prediction, prediction_of(config)),
            ("clipping", table.clip, clip_of(config)),
        ]
    unlike = [f"{name}: the table has {mine}, the scheduler {theirs}" for name, mine, theirs in facts if mine != theirs]
    if unlike:
        raise InputError(
            f"this variance table does not fit the scheduler ({'; '.join(unlike)}); give the config of the scheduler "
            "that the model was measured with."
        )
