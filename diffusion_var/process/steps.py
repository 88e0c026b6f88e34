"""Step lists: which noise levels a sampler visits.

K of the N indices, ascending: `linspace` is even from 1 to N, `leading` and `trailing` are diffusers' two other
spacings, `respaced` is improved-diffusion's (sections and "ddimK" among it), `quadratic` is DDIM's (arXiv:2010.02502,
appendix D.2), `power` Analytic-DPM's, and `log_snr` is even in log SNR. A diffusers timestep is an index less one.

*Even spacing* is rounded in three ways. `linspace` rounds 1 + k (N − 1)/(K − 1), a half to the even index; diffusers a
half to the even timestep (`spaced(…, "linspace")`); improved-diffusion adds the stride (N − 1)/(K − 1) up, so that the
errors of its sums decide halves (`respaced`). Of N = 1000 a third of all K differ, in indices that are off by one.

Or K levels off the grid, from the noisiest down: `karras` (EDM, arXiv:2206.00364, eq. 5), `log_snr_levels` (even in log
SNR), `sigmas` (any list of σ/α, such as those of Align Your Steps, arXiv:2404.14507) and `shifted` (a flow's,
arXiv:2403.03206, eq. 23).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from .kernel import check_levels
from .level import NoiseLevel
from .schedule import NoiseSchedule, as_schedule


class HasSchedule(Protocol):
    """A denoiser or a variance table, say."""

    @property
    def schedule(self) -> NoiseSchedule: ...


#: What steps are counted in: a schedule, something that has one, or N.
Grid = NoiseSchedule | HasSchedule | int
_MOST_LEVELS = 1_000_000  # of a list that no schedule bounds
#: Indices, ascending; or levels, the noisiest first.
StepList = list[int] | list[NoiseLevel]


def linspace(schedule: Grid, steps: int) -> list[int]:
    """K indices evenly spaced from 1 to N, both included; K = 1 is [N]. `schedule`: one, what holds one, or N."""
    N, steps = _counted(schedule, steps)
    return [N] if steps == 1 else [int(n) for n in np.linspace(1, N, steps).round()]


def leading(schedule: Grid, steps: int) -> list[int]:
    """1, 1 + N//K, 1 + 2 (N//K), …: diffusers' "leading" spacing (with steps_offset 0). Does not reach N."""
    N, steps = _counted(schedule, steps)
    return [1 + k * (N // steps) for k in range(steps)]


def trailing(schedule: Grid, steps: int) -> list[int]:
    """N, N − N/K, N − 2N/K, …, rounded: diffusers' "trailing" spacing. Does not reach 1."""
    N, steps = _counted(schedule, steps)
    return sorted(int(n) for n in np.arange(N, 0, -N / steps).round()[:steps])


def quadratic(schedule: Grid, steps: int) -> list[int]:
    """DDIM's quadratic spacing: 1 + ⌊(k √(0.8 N)/(K−1))²⌋, dense near the data; K = 1 is [⌊0.8 N⌋ + 1].

    Where DDIM's list repeats small indices, each repetition is moved up to the next free index.
    """
    N, steps = _counted(schedule, steps)
    grid = np.linspace(0, np.sqrt(0.8 * N), steps) if steps > 1 else np.sqrt([0.8 * N])
    # The tolerance keeps the end point, the square of a rounded root, from falling just short of its integer.
    return _without_repeats(np.floor(grid**2 + 1e-9) + 1, N)


def respaced(schedule: Grid, steps: Any) -> list[int]:
    """The indices that improved-diffusion (and guided-diffusion) keeps of N for its `timestep_respacing`.

    Args:
        steps: K, even from 1 to N; K = 1 is [1]. The numbers of steps of equal parts of the indices, the least noisy
            part first, as a list or as "10,10,15". Or "ddimK": every R-th index from 1 on, R the least that gives K.

    Raises InputError for a part that holds fewer indices than are wanted of it, and where no R gives K of them.
    """
    N, _ = _counted(schedule, 1)
    if isinstance(steps, str) and steps.startswith("ddim"):
        return _strided(N, _whole_of(steps.removeprefix("ddim"), steps))
    counts = [_whole_of(part, steps) for part in _parts(steps)]
    checks.refuse(sum(counts) == 0, f"steps={checks.brief(steps)} keeps no step; give at least one.")
    out, first = [], 1
    for part, count in enumerate(counts):
        size = N // len(counts) + (part < N % len(counts))
        checks.refuse(
            size < count,
            f"steps={checks.brief(steps)} wants {count} steps of part {part + 1} of {len(counts)}, which has {size} of "
            f"the {N} indices; take fewer.",
        )
        stride, place = (1.0 if count <= 1 else (size - 1) / (count - 1)), 0.0
        for _ in range(count):
            out.append(first + round(place))
            place += stride  # added up, as they do: it is what decides halves
        first += size
    return out


def _strided(N: int, steps: int) -> list[int]:
    """1, 1 + R, 1 + 2 R, … with the least R that gives K indices."""
    found = {len(range(0, N, stride)): stride for stride in range(N - 1, 0, -1)}
    if steps not in found:
        near = [*(k for k in sorted(found) if k < steps)][-1:] + [*(k for k in sorted(found) if k > steps)][:1]
        instead = "".join(f"{k} steps or " for k in near)
        raise InputError(f"no whole stride takes exactly {steps} of {N} indices; take {instead}another spacing.")
    return list(range(1, N + 1, found[steps]))


def _parts(steps: Any) -> list[Any]:
    return steps.split(",") if isinstance(steps, str) else list(steps) if _is_list(steps) else [steps]


def _whole_of(count: Any, steps: Any) -> int:
    """A number of steps of `respaced`, from a number or its text."""
    text = isinstance(count, str) and count.strip().isascii() and count.strip().isdigit()
    wrong = not text and not (checks.is_whole(count) and count >= 0)
    checks.refuse(
        wrong,
        f"steps={checks.brief(steps)} must be a number of steps, a list of one for each part (such as [10, 10, 15] or "
        "'10,10,15'), or 'ddim' and a number.",
    )
    return int(count)


def power(schedule: Grid, steps: int, power: float = 2.0) -> list[int]:
    """Analytic-DPM's power-k spacing: 1 + (N − 1) (1 − (1 − u)^(1/k)) for K even u from 0 to 1, dense near the data for
    k > 1; k = 1 is even. K = 1 is [N]. Where it repeats an index, the repetition is moved up to the next free one."""
    N, steps = _counted(schedule, steps)
    root = 1.0 / checks.positive("power", power)
    if steps == 1:
        return [N]
    falling = [k / (steps - 1) for k in range(steps)][::-1]
    return _without_repeats([round((N - 1) * (1.0 - y**root) + 1) for y in falling], N)


def spaced(schedule: Grid, steps: int, spacing: str) -> list[int]:
    """K indices by one of diffusers' spacings: "linspace", "leading" or "trailing"."""
    check_spacing(spacing)
    return SPACINGS[spacing](schedule, steps)


def _even_timesteps(schedule: Grid, steps: int) -> list[int]:
    """`linspace` as diffusers rounds it: a half to the even timestep, not to the even index."""
    N, steps = _counted(schedule, steps)
    return [N] if steps == 1 else [int(t) + 1 for t in np.linspace(0, N - 1, steps).round()]


SPACINGS: dict[str, Callable[[Grid, int], list[int]]] = {
    "leading": leading,
    "linspace": _even_timesteps,
    "trailing": trailing,
}


def log_snr(schedule: NoiseSchedule | HasSchedule, steps: int) -> list[int]:
    """K indices evenly spaced in log-SNR, 1 and N included; K = 1 is [N]. Where indices are scarcer than the spacing
    (near n = 1), repetitions are moved up to the next free index."""
    N, steps = _counted(schedule, steps)
    held = _schedule_of(schedule, "log_snr")
    if steps == 1:
        return [N]
    levels = held.log_snr[1:]
    finite = int(np.isfinite(levels).sum())  # zero terminal SNR: space evenly up to N - 1, then N
    wanted = np.linspace(levels[0], levels[finite - 1], steps - (N - finite))
    indices = np.interp(-wanted, -levels[:finite], np.arange(1, finite + 1)).round()
    return _without_repeats(np.append(indices, np.arange(finite, N) + 1), N)


def _without_repeats(wanted: npt.NDArray[np.float64] | list[int], N: int) -> list[int]:
    """The nearest strictly ascending list at or above `wanted` that stays within 1…N."""
    out: list[int] = []
    for k, n in enumerate(wanted):
        lowest = out[-1] + 1 if out else 1
        out.append(min(max(int(n), lowest), N - (len(wanted) - 1 - k)))
    return out


# ---- levels off the grid --------------------------------------------------------------------------------------


def karras(schedule: NoiseSchedule | HasSchedule, steps: int, rho: float = 7.0) -> list[NoiseLevel]:
    """K levels whose (σ/α)^(1/ρ) falls evenly from that of N to that of 1; where x_N holds no signal, N comes first."""
    _, steps = _counted(schedule, steps)
    held = _schedule_of(schedule, "karras")
    first = [held.level(held.num_steps)] if held.zero_terminal_snr or steps == 1 else []
    if len(first) == steps:
        return first
    power = 1.0 / checks.positive("rho", rho)
    ends = [-1 - len(first), 1]
    most, least = (float(np.exp(-0.5 * held.log_snr[n] * power)) for n in ends)
    ramp = np.linspace(most, least, steps - len(first)) ** rho
    ramp[-1], ramp[0] = (float(np.exp(-0.5 * held.log_snr[n])) for n in ends[::-1])  # to the bit, whatever ρ
    return [*first, *sigmas(held, [float(sigma) for sigma in ramp])]


def log_snr_levels(schedule: NoiseSchedule | HasSchedule, steps: int) -> list[NoiseLevel]:
    """K levels whose log SNR rises evenly from that of N to that of 1, off the grid; where x_N holds no signal, N comes
    first, and they begin at N − 1. K = 1 is [N]."""
    _, steps = _counted(schedule, steps)
    held = _schedule_of(schedule, "log_snr_levels")
    first = [held.level(held.num_steps)] if held.zero_terminal_snr or steps == 1 else []
    least, most = float(held.log_snr[-1 - len(first)]), float(held.log_snr[1])
    return [*first, *(held.level_at(float(place)) for place in np.linspace(least, most, steps - len(first)))]


def sigmas(schedule: NoiseSchedule | HasSchedule, values: Sequence[float]) -> list[NoiseLevel]:
    """The schedule's levels with these σ/α, which must fall; a 0 at the end, clean data, may be given or left out."""
    held = _schedule_of(schedule, "sigmas")
    wrong = not _is_list(values)
    checks.refuse(wrong, f"values={checks.brief(values)} must be a list of numbers, the sigmas.")
    falling = [checks.number("a sigma", value, "a finite number of at least 0", least=0.0) for value in values]
    falling = falling[:-1] if falling[-1:] == [0.0] else falling
    checks.refuse(not falling, "the list of sigmas is empty; give at least one that is positive.")
    levels = [held.level_at(-2.0 * math.log(sigma) if sigma > 0 else math.inf) for sigma in falling]
    check_levels(levels)
    return levels


def shifted(steps: int, shift: float = 3.0, timestep_scale: float = 1000.0) -> list[NoiseLevel]:
    """K levels of a flow: t = shift·u/(1 + (shift − 1) u) for u = 1, 1 − 1/K, … 1/K, as flow pipelines take them."""
    steps, shift = checks.whole("steps", steps, least=1), checks.positive("shift", shift)
    checks.refuse(steps > _MOST_LEVELS, f"steps={steps} are too many; take at most {_MOST_LEVELS}.")
    timestep_scale = checks.number("timestep_scale", timestep_scale)
    times = [1.0 - k / steps for k in range(steps)]
    return [NoiseLevel.flow(shift * u / (1.0 + (shift - 1.0) * u), timestep_scale) for u in times]


# ---- from what users give -------------------------------------------------------------------------------------


def resolve(schedule: Grid, steps: Any) -> StepList:
    """A step list from a number of steps (even spacing), from explicit indices, or from levels (see `check_levels`)."""
    if isinstance(steps, int | np.integer) or (getattr(steps, "ndim", 1) == 0 and checks.is_whole(steps)):
        return linspace(schedule, steps if isinstance(steps, bool) else int(steps))
    wrong = not (_is_list(steps) or isinstance(steps, str))
    checks.refuse(
        wrong, f"steps={checks.brief(steps)} is neither a number of steps nor a list of indices or of noise levels."
    )
    members = sorted(steps) if isinstance(steps, set | frozenset) else list(steps)
    if not any(isinstance(n, NoiseLevel) for n in members):
        return explicit(schedule, members)
    if len(members) > 1 and isinstance(members[-1], NoiseLevel) and members[-1].is_clean:
        members.pop()  # as lists of σ end: the step to clean data is always taken
    check_levels(members)
    checks.refuse(members[0].is_clean, "the step list begins with clean data; give the levels from the noisiest down.")
    return members


def explicit(schedule: Grid, indices: Sequence[Any]) -> list[int]:
    """The given indices, checked: integers, strictly ascending, all in 1…N."""
    N, _ = _counted(schedule, 1)
    wrong = not _is_list(indices)
    checks.refuse(wrong, f"indices={checks.brief(indices)} must be a list of whole numbers from 1 to {N}.")
    checks.refuse(len(indices) == 0, "the step list is empty; give at least one index.")
    shown = checks.brief(list(indices))
    if not all(checks.is_whole(n) and 1 <= n <= N for n in indices):
        raise InputError(f"the step list {shown} holds something other than integers from 1 to {N}.")
    out = [int(n) for n in indices]
    rises = all(a < b for a, b in pairwise(out))
    checks.refuse(not rises, f"the step list {shown} must rise strictly (no repeats); sort it and drop repeats.")
    return out


def describe(steps: StepList) -> list[Any]:
    """A step list as plain data: indices, or (α, σ, timestep) of levels."""
    return [[n.alpha, n.sigma, n.timestep] if isinstance(n, NoiseLevel) else n for n in steps]


# ---- what is refused ------------------------------------------------------------------------------------------


def check_spacing(spacing: str) -> None:
    """Refuse a name that is none of diffusers' spacings."""
    wrong = spacing not in SPACINGS
    checks.refuse(wrong, f"timestep_spacing={spacing!r} is not known; use one of {', '.join(SPACINGS)}.")


def _counted(schedule: Any, steps: Any) -> tuple[int, int]:
    """N and K, checked."""
    held = getattr(schedule, "schedule", schedule)
    N = int(held) if checks.is_whole(held) else as_schedule(held).num_steps
    wrong = not checks.is_whole(steps) or not 1 <= steps <= N
    checks.refuse(wrong, f"steps={steps} is not a usable number of steps; expected an integer from 1 to {N}.")
    return N, int(steps)


def _schedule_of(schedule: Any, name: str) -> NoiseSchedule:
    held = getattr(schedule, "schedule", schedule)
    number = checks.is_whole(held)
    checks.refuse(number, f"{name} needs a schedule, or what holds one, but got {schedule!r}; a number N has no SNR.")
    return as_schedule(held)


def _is_list(value: Any) -> bool:
    return (
        isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) and getattr(value, "ndim", 1) == 1
    )
