"""Which step follows which timestep: a list of indices, and the reverse kernels between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from .. import checks
from ..process import steps as step_lists
from ..process.kernel import ClippedEps, ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule


class StepPlan:
    """Indices, ascending, and from each timestep (index − 1) the step to the next lower one."""

    def __init__(self, schedule: NoiseSchedule, indices: Sequence[int]) -> None:
        self.schedule = schedule
        self.indices = step_lists.explicit(schedule, indices)
        self._kernels: dict[Any, ReverseKernel] = {}

    def last_levels(self, count: int) -> list[NoiseLevel]:
        """The least noisy levels that are visited, so many of them."""
        return [self.schedule.level(n) for n in self.indices[:count]]

    def timesteps(self, device: torch.device | str | None) -> torch.Tensor:
        """(K,) int64, descending."""
        return torch.tensor([n - 1 for n in reversed(self.indices)], dtype=torch.int64, device=device)

    def index_after(self, t: int) -> int:
        """The next lower index of the list, or 0, clean data, if there is none."""
        below = bisect_left(self.indices, t)
        return self.indices[below - 1] if below > 0 else 0

    def kernel(
        self, timestep: Any, eta: float | None, tau: float | None, clipped_eps: ClippedEps | None
    ) -> ReverseKernel:
        """The step from a timestep to the next lower one of the list, or to clean data if there is none."""
        t = timestep_of(timestep) + 1
        key = (t, eta, tau, clipped_eps)
        if key not in self._kernels:
            self._kernels[key] = ReverseKernel(self.schedule, t, self.index_after(t), eta, clipped_eps, tau=tau)
        return self._kernels[key]


def timestep_of(timestep: Any) -> int:
    """One timestep, a whole number of any type; a tensor of several that are equal stands for one."""
    if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
        found = timestep.flatten().tolist()
        differ = len({*found}) > 1
        checks.refuse(
            differ, f"timestep={checks.brief(found)} must be one for all images; take a step for each in turn."
        )
        timestep = found[0]
    elif isinstance(timestep, torch.Tensor) and timestep.numel() == 1:
        timestep = timestep.item()
    return checks.whole("timestep", timestep)  # which of them there are, a kernel says


def spaced_indices(schedule: NoiseSchedule, steps: Any, spacing: str, offset: int) -> list[int]:
    """K indices in one of diffusers' spacings; the offset moves those of "leading"."""
    offset = offset if spacing == "leading" else 0
    indices = [n + offset for n in step_lists.spaced(schedule, steps, spacing)]
    last = schedule.num_steps - 1
    checks.refuse(
        not 1 <= indices[0] <= indices[-1] <= schedule.num_steps,
        f"steps_offset={offset} moves {steps} steps to timesteps {indices[0] - 1} to {indices[-1] - 1}, outside 0 to "
        f"{last}; take fewer steps, or steps_offset=0.",
    )
    return indices


def indices_of(timesteps: Any, N: int) -> list[int]:
    """The indices, ascending, of timesteps of one's own; InputError unless they fall strictly, within 0…N − 1."""
    try:
        given: list[Any] = list(timesteps)
    except TypeError:
        given = [None]
    wrong = not all(checks.is_whole(t) for t in given)
    checks.refuse(wrong, f"timesteps={timesteps!r} must be a list of whole numbers from 0 to {N - 1}.")
    found = [int(t) for t in given]
    wrong, shown = sorted({*found} & {*range(N)}, reverse=True) != found, checks.brief(found).strip("[]")
    checks.refuse(wrong, f"timesteps must fall strictly, from at most {N - 1} to at least 0, but they are {shown}.")
    return [t + 1 for t in reversed(found)]
