"""Which step follows which timestep: a list of indices, and the reverse kernels between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..process import steps as step_lists
from ..process.kernel import ClippedEps, ReverseKernel
from ..process.schedule import NoiseSchedule, is_whole


def indices_of(timesteps: Sequence[int], N: int) -> list[int]:
    """The indices, ascending, of timesteps of one's own; InputError unless they fall strictly, within 0…N − 1."""
    try:
        given: list[Any] = list(timesteps)
    except TypeError:
        given = [None]
    if not all(is_whole(t) for t in given):
        raise InputError(f"timesteps={timesteps!r} must be a list of whole numbers from 0 to {N - 1}.")
    found = [int(t) for t in given]
    if sorted({*found} & {*range(N)}, reverse=True) != found:
        shown = ", ".join(str(t) for t in found[:8]) + (", …" if len(found) > 8 else "")
        raise InputError(f"timesteps must fall strictly, from at most {N - 1} to at least 0, but they are {shown}.")
    return [t + 1 for t in reversed(found)]


class StepPlan:
    """Indices, ascending, and from each timestep (index − 1) the step to the next lower one."""

    def __init__(self, schedule: NoiseSchedule, indices: Sequence[int]) -> None:
        self.schedule = schedule
        self.indices = step_lists.explicit(schedule, indices)
        self._kernels: dict[tuple[int, float, str | None], ReverseKernel] = {}

    def timesteps(self, device: torch.device | str | None) -> torch.Tensor:
        """(K,) int64, descending."""
        return torch.tensor([n - 1 for n in reversed(self.indices)], dtype=torch.int64, device=device)

    def kernel(self, timestep: Any, eta: float, clipped_eps: ClippedEps | None) -> ReverseKernel:
        """The step from a timestep to the next lower one of the list, or to clean data if there is none."""
        t = int(timestep) + 1
        key = (t, eta, clipped_eps)
        if key not in self._kernels:
            below = bisect_left(self.indices, t)
            s = self.indices[below - 1] if below > 0 else 0
            self._kernels[key] = ReverseKernel(self.schedule, t, s, eta, clipped_eps)
        return self._kernels[key]
