"""Fingerprints of networks: how a table or a cache knows that it belongs to one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .denoiser import Denoiser


def weights_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over a module's state dict, sorted by name; the same on every device."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        content.update(f"{name}{tuple(array.shape)}".encode())
        content.update(array.contiguous().numpy().tobytes())
    return content.hexdigest()


def conventions(denoiser: Denoiser) -> dict[str, Any]:
    """What decides a denoiser's posteriors beside its weights and schedule; JSON-serialisable."""
    null = None if denoiser.guidance is None else denoiser.guidance.unconditional.detach().cpu().double().numpy()
    return {
        "shape": list(denoiser.shape),
        "prediction": denoiser.prediction,
        "clip": None if denoiser.clip is None else list(denoiser.clip),
        "guidance_scale": denoiser.guidance_scale,
        "unconditional": None if null is None else hashlib.sha256(null.tobytes()).hexdigest(),
        "autocast": None if denoiser.autocast is None else str(denoiser.autocast),
        "sigma_data": denoiser.sigma_data if denoiser.prediction in ("edm", "edm_v") else None,
    }
