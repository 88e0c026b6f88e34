"""Loading one diffusers component (a network, an autoencoder) from its folder, and refusing what does not fit."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from ...errors import InputError, printable
from .folder import ModelFolder

# Class names as configs have them, and where diffusers keeps the class that loads them. DiT's published config calls
# itself by the name that the class had before.
NETWORKS = {
    "UNet2DModel": "diffusers.models.unets.unet_2d:UNet2DModel",
    "UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",
    "DiTTransformer2DModel": "diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel",
    "Transformer2DModel": "diffusers.models.transformers.dit_transformer_2d:DiTTransformer2DModel",
}
CODECS = {
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",
    "AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny:AutoencoderTiny",
    "VQModel": "diffusers.models.autoencoders.vq_model:VQModel",
}


def load_component(
    folder: ModelFolder,
    part: str,
    config: dict[str, Any],
    classes: dict[str, str],
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> Any:
    """The module of one part, in evaluation mode and without gradients, on the CPU.

    Raises InputError for an unsupported class, missing or damaged weights, and weights that do not fit the config.
    """
    kind = config.get("_class_name")
    if not (isinstance(kind, str) and kind in classes) or (
        kind == "Transformer2DModel" and config.get("norm_type") != "ada_norm_zero"
    ):
        raise InputError(
            f"the network in {folder.name} is a {kind}, but the supported ones are "
            f"{', '.join(name for name in classes if name != 'Transformer2DModel')}; "
            "wrap it with Denoiser(callable, schedule, …)."
        )
    module, name = classes[kind].split(":")
    return load_module(folder, part, getattr(import_module(module), name), dtype, allow_pickle)


def load_module(
    folder: ModelFolder, part: str, kind: Any, dtype: torch.dtype | None = None, allow_pickle: bool = False
) -> Any:
    """`load_component` of a class of diffusers."""
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    try:
        network, info = kind.from_pretrained(
            folder.path / part,
            # None lets diffusers fall back to the pickled .bin, which it reads with weights_only=True.
            local_files_only=True,
            use_safetensors=None if allow_pickle else True,
            variant=folder.variant,
            low_cpu_mem_usage=bool(getattr(kind, "_keep_in_fp32_modules", None)),  # diffusers demands it of these
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # what a class of diffusers makes of a config that makes no sense is not to be foreseen
        raise InputError(unloadable(folder, part, error, allow_pickle)) from error
    # diffusers only warns of these, and leaves the missing weights random.
    unlike = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if unlike:
        raise InputError(
            f"the weights of the {kind.__name__} in {folder.name} do not fit its config ({len(unlike)} are missing or "
            f"unknown, {unlike[0]} among them); save the model again."
        )
    return network.eval().requires_grad_(False)


def unloadable(folder: ModelFolder, part: str, error: Exception, allow_pickle: bool) -> str:
    """Why a part could not be loaded, in a sentence."""
    reason = printable((str(error).strip() or type(error).__name__).splitlines()[0], 200)
    path = folder.path / part
    if not allow_pickle and any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        return (
            f"{path} holds its weights as a pickle only (.bin), which is not read; convert it to safetensors, or pass "
            "allow_pickle=True if you trust it."
        )
    middle = "" if folder.variant is None else f".{folder.variant}"
    return (
        f"the network in {path} could not be loaded ({reason}); expected diffusion_pytorch_model{middle}.safetensors "
        "beside its config."
    )
