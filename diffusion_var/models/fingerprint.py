"""Fingerprints of networks: how a table or a cache knows that it belongs to one."""

from __future__ import annotations

import hashlib

import torch


def weights_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over a module's state dict, sorted by name; the same on every device."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        content.update(f"{name}{tuple(array.shape)}".encode())
        content.update(array.contiguous().numpy().tobytes())
    return content.hexdigest()
