"""Where every random number comes from: (seed, what it is for, index), and nothing else.

A counter-based generator (Philox) is keyed by a 128-bit hash of the three, so that streams never collide and none
depends on the order in which work is done. No global generator is read or written. Numbers are drawn on the CPU on
every device, so that image i of a run is the same image everywhere (to float tolerance).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The random stream for one purpose and index, e.g. `generator(0, "estimate", n, shard)`."""
    name = "/".join([str(int(seed)), purpose, *map(str, index)])
    key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def normal(stream: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers of the given shape, on the CPU."""
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))
