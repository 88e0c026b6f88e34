"""Bytes that a thing holds on to."""

import dataclasses
import sys

import numpy as np
import torch


def bytes_held(thing, seen=None):
    """Bytes of all arrays and tensors reachable from an object."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, str, bytes, int, float, type(sys))):
        return 0
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, torch.Tensor):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(bytes_held(value, seen) for value in thing.values())
    if isinstance(thing, (list, tuple, set)):
        return sum(bytes_held(value, seen) for value in thing)
    if dataclasses.is_dataclass(thing) or type(thing).__module__.startswith("diffusion_var"):
        return bytes_held(vars(thing), seen)
    return 0
