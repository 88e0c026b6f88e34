"""Which weights a feature network has: a score means something only together with them.

Two hashes, both SHA-256. `fingerprint` is taken over the tensors, so it is the same whatever file they came in, and it
stands in the protocol of every score. `file_hash` is taken over the bytes of a file, before anything in it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..files import regular_file


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over the names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(content: bytes) -> str:
    """SHA-256, in hex, of a file's bytes."""
    return hashlib.sha256(content).hexdigest()


def read_weights(path: Path, largest: int, what: str) -> bytes:
    """The bytes of a weights file of at most `largest` bytes; InputError, naming `what` it is, where there is none.

    The bytes that are checked are the bytes that are then loaded: the file is read once.
    """
    if path.exists():
        regular_file(path, what)
    try:
        size = path.stat().st_size
        if size > largest:
            raise InputError(
                f"the {what} {path} has {size} bytes; expected at most {largest} bytes: this is another file."
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read ({error.strerror or error}); check the path.") from error
