"""Loading diffusers models: a folder (or hub id) becomes a `Denoiser`.

A pipeline folder has `model_index.json` and the sub-folders `unet` and `scheduler`; a bare UNet folder (and the first
DDPM pipelines on the hub) has its `config.json` with `scheduler_config.json` beside it or in `scheduler/`. What the
network predicts, whether its mean is clipped, and the schedule are read from the scheduler's config. Only safetensors
weights are read, never pickles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..process.schedule import NoiseSchedule
from .denoiser import Denoiser, Prediction

_SUPPORTED_UNETS = ("UNet2DModel",)
# Where to look, in this order; None is the folder itself (bare UNet folders, and the first DDPM repositories).
_UNET_FOLDERS: tuple[str | None, ...] = ("unet", None)
_SCHEDULER_FOLDERS: tuple[str | None, ...] = ("scheduler", None)
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v_prediction"}


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
) -> Denoiser:
    """A `Denoiser` from an unconditional diffusers pipeline or UNet.

    Args:
        path: a local folder as `save_pretrained` writes it, or a hub id.
        device: where to run; None: the GPU if there is one, else the CPU.
        autocast: see `Denoiser`.

    Raises InputError for a missing folder or file, an unsupported network or scheduler.
    """
    folder = Path(path)
    local = folder.is_dir()
    if not local and (folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") != 1):
        raise InputError(
            f"there is no model folder at {path}; expected one that diffusers' save_pretrained wrote, or a hub id."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unet_at, scheduler_config = _locate(folder) if local else _locate_on_hub(str(path))
    network = _load_unet(*unet_at)
    network.eval().requires_grad_(False).to(device)
    config = network.config
    clip = _clipping(scheduler_config)
    return Denoiser(
        network,
        NoiseSchedule.from_diffusers(scheduler_config),
        _prediction(scheduler_config),
        (config.in_channels, *_height_and_width(config.sample_size, path)),
        clip=clip,
        data_range=clip or (-1.0, 1.0),
        device=device,
        autocast=autocast,
    )


def _locate(folder: Path) -> tuple[tuple[str, str | None], dict[str, Any]]:
    """Where the UNet is, as (folder, sub-folder or None), and the scheduler's config."""
    subfolder = next((sub for sub in _UNET_FOLDERS if Path(folder, sub or "", "config.json").is_file()), "missing")
    if subfolder == "missing":
        where = folder / ("unet" if (folder / "model_index.json").is_file() else "") / "config.json"
        raise InputError(f"{folder} holds no UNet: {where} is missing; expected a diffusers pipeline or UNet folder.")
    candidates = [Path(folder, sub or "", "scheduler_config.json") for sub in _SCHEDULER_FOLDERS]
    for candidate in candidates:
        if candidate.is_file():
            return (str(folder), subfolder), _read_json(candidate)
    raise InputError(
        f"{folder} holds no scheduler config ({candidates[0]} is missing), so its noise schedule is unknown; "
        "save the scheduler there."
    )


def _locate_on_hub(name: str) -> tuple[tuple[str, str | None], dict[str, Any]]:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    _, scheduler_config = _hub_config(DDPMScheduler, name, _SCHEDULER_FOLDERS)
    subfolder, unet_config = _hub_config(UNet2DModel, name, _UNET_FOLDERS)
    _check_kind(name, unet_config)
    return (name, subfolder), scheduler_config


def _hub_config(kind: Any, name: str, subfolders: tuple[str | None, ...]) -> tuple[str | None, dict[str, Any]]:
    """The first of the sub-folders of a hub repository that has a config for `kind`, and that config."""
    for subfolder in subfolders:
        try:
            found = kind.load_config(name, subfolder=subfolder)
        except OSError as error:
            reason = type(error.__cause__ or error.__context__ or error).__name__
        else:
            return subfolder, dict(found[0] if isinstance(found, tuple) else found)
    raise InputError(
        f"there is no local folder {name}, and {name}/{subfolders[0]}/{kind.config_name} could not be had from the "
        f"hub ({reason}); download the pipeline and give its folder."
    )


def _check_kind(path: str, config: dict[str, Any]) -> None:
    kind = config.get("_class_name")
    if kind not in _SUPPORTED_UNETS:
        raise InputError(
            f"the network in {path} is a {kind}, but the supported ones are {', '.join(_SUPPORTED_UNETS)}; "
            "wrap it with Denoiser(callable, schedule, …)."
        )


def _load_unet(path: str, subfolder: str | None) -> Any:
    from diffusers.models.unets.unet_2d import UNet2DModel

    if Path(path).is_dir():
        _check_kind(path, _read_json(Path(path, subfolder or "", "config.json")))
    try:
        network, info = UNet2DModel.from_pretrained(
            path, subfolder=subfolder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the UNet in {path} could not be loaded ({reason}); expected diffusion_pytorch_model.safetensors "
            "beside its config."
        ) from error
    # diffusers only warns of these, and leaves the missing weights random.
    unlike = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if unlike:
        raise InputError(
            f"the weights of the UNet in {path} do not fit its config ({len(unlike)} are missing or unknown, "
            f"{unlike[0]} among them); save the model again."
        )
    return network


def _prediction(config: dict[str, Any]) -> Prediction:
    name = config.get("prediction_type", "epsilon")
    if name not in _PREDICTIONS:
        raise InputError(
            f"the scheduler's prediction_type is {name!r}, but the supported ones are {', '.join(_PREDICTIONS)}."
        )
    return _PREDICTIONS[name]


def _clipping(config: dict[str, Any]) -> tuple[float, float] | None:
    if config.get("thresholding"):
        raise InputError(
            "the scheduler has thresholding=true (dynamic clipping), which is not supported; set it to false in "
            "scheduler_config.json."
        )
    # A config that does not say means its class's default, which is to clip for these two.
    if not config.get("clip_sample", config.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")):
        return None
    bound = float(config.get("clip_sample_range", 1.0))
    return -bound, bound


def _height_and_width(sample_size: Any, path: str | Path) -> tuple[int, int]:
    if isinstance(sample_size, int):
        return sample_size, sample_size
    if isinstance(sample_size, (list, tuple)) and len(sample_size) == 2:
        return int(sample_size[0]), int(sample_size[1])
    raise InputError(
        f"the UNet in {path} has sample_size={sample_size!r} in its config, so the image shape is unknown; "
        "set it there."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read as JSON ({error}); save the model again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, but it holds {type(content).__name__}.")
    return content
