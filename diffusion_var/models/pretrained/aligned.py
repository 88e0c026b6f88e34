"""Weights at addresses that kernels expect: a network that is read computes what the one that was saved did.

Files of weights are mapped into memory, where tensors begin wherever the file has them. On some processors PyTorch's
kernels round otherwise there than at the multiples of 64 bytes where it puts tensors itself, so that samples and caches
of the same network would differ in their last bits by whether it was saved and read in between.
"""

from __future__ import annotations

from typing import Any

import torch

_BYTES = 64


def aligned(module: Any, device: torch.device | str = "cpu") -> Any:
    """A module, whose tensors are moved in memory where they begin at no multiple of 64 bytes; for a device that is not
    the CPU, to which they are copied anyway, as it is."""
    for tensor in (*module.parameters(), *module.buffers()) if torch.device(device).type == "cpu" else ():
        plain = type(tensor.data) is torch.Tensor and tensor.device.type == "cpu"
        if plain and tensor.layout == torch.strided and tensor.data_ptr() % _BYTES:
            tensor.data = tensor.data.clone()
    return module
