"""Step lists: which K of the N indices a sampler visits, ascending.

`linspace` is even from 1 to N (Improved DDPM), `leading` and `trailing` are diffusers' two other spacings, and
`quadratic` is DDIM's (arXiv:2010.02502, appendix D.2). A diffusers timestep is an index less one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .schedule import NoiseSchedule, is_whole


class HasSchedule(Protocol):
    """A denoiser or a variance table, say."""

    @property
    def schedule(self) -> NoiseSchedule: ...


#: What steps are counted in: a schedule, something that has one, or N.
Grid = NoiseSchedule | HasSchedule | int


def _check(schedule: Grid, steps: Any) -> tuple[int, int]:
    """N and K, checked."""
    held: Any = getattr(schedule, "schedule", schedule)
    N: int = held.num_steps if isinstance(held, NoiseSchedule) else int(held)
    if isinstance(steps, bool) or not is_whole(steps) or not 1 <= steps <= N:
        raise InputError(f"steps={steps} is not a usable number of steps; expected an integer from 1 to {N}.")
    return N, int(steps)


def linspace(schedule: Grid, steps: int) -> list[int]:
    """K indices evenly spaced from 1 to N, both included; K = 1 is [N]. `schedule`: one, what holds one, or N."""
    N, steps = _check(schedule, steps)
    return [N] if steps == 1 else [int(n) for n in np.linspace(1, N, steps).round()]


def leading(schedule: Grid, steps: int) -> list[int]:
    """1, 1 + N//K, 1 + 2 (N//K), …: diffusers' "leading" spacing (with steps_offset 0). Does not reach N."""
    N, steps = _check(schedule, steps)
    return [1 + k * (N // steps) for k in range(steps)]


def trailing(schedule: Grid, steps: int) -> list[int]:
    """N, N − N/K, N − 2N/K, …, rounded: diffusers' "trailing" spacing. Does not reach 1."""
    N, steps = _check(schedule, steps)
    return sorted(int(n) for n in np.arange(N, 0, -N / steps).round()[:steps])


def quadratic(schedule: Grid, steps: int) -> list[int]:
    """DDIM's quadratic spacing: 1 + ⌊(k √(0.8 N)/(K−1))²⌋, dense near the data; K = 1 is [⌊0.8 N⌋ + 1].

    Where DDIM's list repeats small indices, each repetition is moved up to the next free index.
    """
    N, steps = _check(schedule, steps)
    grid = np.linspace(0, np.sqrt(0.8 * N), steps) if steps > 1 else np.sqrt([0.8 * N])
    # The tolerance keeps the end point, the square of a rounded root, from falling just short of its integer.
    return _without_repeats(np.floor(grid**2 + 1e-9) + 1, N)


def spaced(schedule: Grid, steps: int, spacing: str) -> list[int]:
    """K indices by one of diffusers' spacings: "linspace", "leading" or "trailing"."""
    check_spacing(spacing)
    return SPACINGS[spacing](schedule, steps)


def check_spacing(spacing: str) -> None:
    """Refuse a name that is none of diffusers' spacings."""
    if spacing not in SPACINGS:
        raise InputError(f"timestep_spacing={spacing!r} is not known; use one of {', '.join(SPACINGS)}.")


def _even_timesteps(schedule: Grid, steps: int) -> list[int]:
    """`linspace` as diffusers rounds it: a half to the even timestep, not to the even index."""
    N, steps = _check(schedule, steps)
    return [N] if steps == 1 else [int(t) + 1 for t in np.linspace(0, N - 1, steps).round()]


SPACINGS: dict[str, Callable[[Grid, int], list[int]]] = {
    "leading": leading,
    "linspace": _even_timesteps,
    "trailing": trailing,
}


def log_snr(schedule: NoiseSchedule | HasSchedule, steps: int) -> list[int]:
    """K indices evenly spaced in log-SNR, 1 and N included; K = 1 is [N]. Where indices are scarcer than the spacing
    (near n = 1), repetitions are moved up to the next free index."""
    N, steps = _check(schedule, steps)
    held = schedule if isinstance(schedule, NoiseSchedule) else getattr(schedule, "schedule", None)
    if not isinstance(held, NoiseSchedule):
        raise InputError(f"log_snr needs a schedule, or what holds one, but got {schedule!r}; a number N has no SNR.")
    if steps == 1:
        return [N]
    levels = held.log_snr[1:]
    finite = int(np.isfinite(levels).sum())  # zero terminal SNR: space evenly up to N - 1, then N
    wanted = np.linspace(levels[0], levels[finite - 1], steps - (N - finite))
    indices = np.interp(-wanted, -levels[:finite], np.arange(1, finite + 1)).round()
    return _without_repeats(np.append(indices, np.arange(finite, N) + 1), N)


def _without_repeats(wanted: npt.NDArray[np.float64], N: int) -> list[int]:
    """The nearest strictly ascending list at or above `wanted` that stays within 1…N."""
    out: list[int] = []
    for k, n in enumerate(wanted):
        lowest = out[-1] + 1 if out else 1
        out.append(min(max(int(n), lowest), N - (len(wanted) - 1 - k)))
    return out


def explicit(schedule: Grid, indices: Sequence[int]) -> list[int]:
    """The given indices, checked: integers, strictly ascending, all in 1…N."""
    N, _ = _check(schedule, 1)
    if len(indices) == 0:
        raise InputError("the step list is empty; give at least one index.")
    if not all(is_whole(n) and 1 <= n <= N for n in indices):
        raise InputError(f"the step list {_brief(indices)} holds something other than integers from 1 to {N}.")
    out = [int(n) for n in indices]
    if any(b <= a for a, b in pairwise(out)):
        raise InputError(f"the step list {_brief(indices)} must rise strictly (no repeats); sort it and drop repeats.")
    return out


def resolve(schedule: Grid, steps: int | Iterable[int]) -> list[int]:
    """A step list from a number of steps (even spacing) or from explicit indices."""
    if isinstance(steps, int | np.integer):
        return linspace(schedule, steps)
    if not isinstance(steps, Iterable):
        raise InputError(f"steps={steps!r} is neither a number of steps nor a list of indices.")
    return explicit(schedule, list(steps))


def _brief(indices: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in indices[:8])
    return f"[{shown}{', …' if len(indices) > 8 else ''}]"
