"""Where every random number comes from: (seed, what it is for, index), and nothing else.

A counter-based generator (Philox) is keyed by a 128-bit hash of the three, so that streams never collide and none
depends on the order in which work is done. No global generator is read or written. Numbers are drawn on the CPU on
every device, so that image i of a run is the same image everywhere (to float tolerance).
"""

from __future__ import annotations

import hashlib
import operator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The random stream for one purpose and index, e.g. `generator(0, "estimate", n, shard)`."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, *index)))


class Streams:
    """One generator that is moved from stream to stream: the numbers of `generator`, at a tenth of its cost.

    For short draws from many streams, one after the other; the last `at` decides where it stands.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._start: Any = self._bits.state

    def at(self, seed: int, purpose: str, *index: int) -> np.random.Generator:
        """The beginning of the stream that `generator` gives for the same arguments."""
        self._start["state"]["key"] = _key(seed, purpose, *index)
        self._bits.state = self._start
        return self._generator


def _key(seed: int, purpose: str, *index: int) -> npt.NDArray[np.uint64]:
    name = "/".join([str(int(seed)), purpose, *(str(operator.index(i)) for i in index)])
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype=np.uint64)


def normal(stream: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers of the given shape, on the CPU."""
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32))
