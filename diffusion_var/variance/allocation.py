"""How many draws each index gets: decided at round boundaries, from merged sums alone.

Round 0 is a pilot of 64 draws, round 1 completes the least number, 256. After that every index whose relative error is
above its tolerance is given what the error predicts it needs (error ∝ M^(−1/2)), but at most as much again as it
has, so that an unlucky first estimate cannot waste a budget [E6].

An error within its tolerance may rest on a handful of draws far out, and say little (`cross_fit`). Where it has few
degrees of freedom and is no small part of the tolerance, the index gets the draws that are expected to give it more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from ..process import steps
from ..process.schedule import NoiseSchedule
from .moments import SHARD

PILOT_DRAWS = 64
LEAST_DRAWS = 256
DEFAULT_INDICES = 64
ELEMENTWISE_FACTOR = 5.0
_MARGIN = 1.05

#: Degrees of freedom below which an error is not trusted, the share of the tolerance from which on that matters, and
#: the draws of an index after which no more are made for it.
LEAST_FREEDOM = 40.0
DOUBTED_SHARE = 0.2
MOST_FOR_DOUBT = 16 * LEAST_DRAWS

Int64Array = npt.NDArray[np.int64]


def default_indices(schedule: NoiseSchedule) -> list[int]:
    """64 indices (or all N) evenly spaced in log-SNR, 1 and N among them."""
    return steps.log_snr(schedule, min(DEFAULT_INDICES, schedule.num_steps))


def merge_indices(schedule: NoiseSchedule, indices: Sequence[int]) -> list[int]:
    """Indices asked for, checked, sorted and without repeats."""
    wrong = not isinstance(indices, Iterable) or isinstance(indices, str | bytes | Mapping)
    checks.refuse(wrong, f"indices={checks.brief(indices)} must be a list of indices from 1 to {schedule.num_steps}.")
    indices = list(indices)
    checks.refuse(len(indices) == 0, "indices is empty; give at least one index, or None for the default 64.")
    return sorted({schedule.check_index(n, "indices") for n in indices})


def doubt(
    counts: Int64Array, error: npt.NDArray[np.float64], freedom: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(I,) what errors that are not to be trusted count as, in units of the tolerance: degrees of freedom grow with the
    draws, as 1/error² does. 0 for others.

    Args:
        counts: (I,) draws so far.
        error: (I,) of the isotropic value, in units of the tolerance.
        freedom: (I,) its degrees of freedom.
    """
    matters = (error > DOUBTED_SHARE) & (counts < MOST_FOR_DOUBT)
    return np.where(matters, np.sqrt(LEAST_FREEDOM / freedom), 0.0)


def needed_draws(counts: Int64Array, error: npt.NDArray[np.float64]) -> Int64Array:
    """Draws at which each index is expected to meet its tolerance; `error` is in units of the tolerance."""
    wanted = np.where(error > 1.0, counts * np.minimum(error, 1e6) ** 2 * _MARGIN, counts)
    return _whole_shards(np.maximum(wanted, LEAST_DRAWS))


def expected_total(
    counts: Int64Array, error: npt.NDArray[np.float64], shown: int, targets: Int64Array, max_evaluations: int | None
) -> int:
    """Evaluations that a run is expected to take, for its progress bar: those that the errors so far ask for.

    At most twice what was shown before, as `next_targets` trusts errors no further, nor more than the budget; at least
    those of the next round.

    Args:
        counts, error: as for `next_targets`.
        shown: expected so far.
        targets: (I,) draws after the next round.
        max_evaluations: bound on the sum of all draws, or None.
    """
    expected = min(int(needed_draws(counts, error).sum()), 2 * shown)
    expected = expected if max_evaluations is None else min(expected, max_evaluations)
    return max(expected, int(targets.sum()))


def next_targets(
    round_number: int, counts: Int64Array, error: npt.NDArray[np.float64], max_evaluations: int | None
) -> Int64Array:
    """Total draws that each index shall have after the next round; equal to `counts` when all is done.

    Args:
        counts: (I,) draws so far.
        error: (I,) relative error in units of the tolerance, ignored in the first two rounds.
        max_evaluations: bound on the sum of all draws, or None.
    """
    if round_number < 2:
        return np.full_like(counts, PILOT_DRAWS if round_number == 0 else LEAST_DRAWS)
    targets = np.minimum(needed_draws(counts, error), 2 * counts)
    if max_evaluations is not None and targets.sum() > max_evaluations:
        # A resumed run may already have spent more than a smaller budget.
        extra, left = targets - counts, max(max_evaluations - int(counts.sum()), 0)
        # Everyone short gets the same share of what they asked for, in whole shards; the rest goes in order.
        share = (extra * left // max(int(extra.sum()), 1)) // SHARD * SHARD
        spare = (left - int(share.sum())) // SHARD
        for i in np.nonzero(share < extra)[0][:spare]:
            share[i] += SHARD
        targets = counts + share
    return np.asarray(targets, dtype=np.int64)


def check_targets(start_counts: Int64Array, targets: Int64Array) -> None:
    """Refuse a round of a checkpoint that `next_targets` would not have planned."""
    shards = not (start_counts % SHARD).any() and not (targets % SHARD).any()
    checks.refuse(not shards, f"its draws do not come in shards of {SHARD}")
    grows = (start_counts <= targets).all() and (targets <= np.maximum(2 * start_counts, LEAST_DRAWS)).all()
    checks.refuse(not grows, "its round has draws that no round is given")


def check_budget(tolerance: float, max_evaluations: int | None, indices: Sequence[int]) -> None:
    """Refuse a tolerance or a budget that no run can have."""
    checks.positive("tolerance", tolerance, "a positive number, e.g. 0.01 for one percent")
    least = LEAST_DRAWS * len(indices)
    if max_evaluations is not None and checks.whole("max_evaluations", max_evaluations) < least:
        raise InputError(
            f"max_evaluations={max_evaluations} is too small: {len(indices)} indices at {LEAST_DRAWS} draws each, the "
            f"least that gives an error bar, need {least}; raise it or ask for fewer indices."
        )


def _whole_shards(draws: npt.NDArray[np.float64]) -> Int64Array:
    return (np.ceil(draws / SHARD) * SHARD).astype(np.int64)
