"""Optimal trajectories: which K of the N indices make the likelihood bound least (Analytic-DPM, arXiv:2201.06503, §4).

With the optimal covariance at η = 1, a step t → s adds to the bound, per dimension, half of

    cost(s, t) = log((λ² + γ² v_t)/λ²) = log(1 + (SNR_s − SNR_t) v_t),            γ²/λ² = SNR_s − SNR_t at η = 1,

averaged over the elements where v_t has a structure. The path of K indices from 1 to N with the least sum is found by
dynamic programming, for all K at once:

    F_1(1) = 0,      F_k(t) = min over s < t of F_{k−1}(s) + cost(s, t).

For data that are i.i.d. Gaussian with variance l, v_t = l/(1 + l SNR_t) and the cost telescopes: every path costs the
same. With measured costs (`step_costs`) the same programme minimises the bound of any covariance (Watson et al.,
arXiv:2106.03802).

A minimum over noisy estimates seeks out those that err downwards. So an index whose estimate is poor is not visited:
the relative standard error of its isotropic variance is above `max_relative_error`, or that variance is not positive.
The rule is the same for every structure, since a cost is a mean over elements, in which their own errors average out.
At N, where a path must begin, the nearest good variance below stands for a poor one. Published arrays know no errors;
theirs are made non-decreasing in n, as exact variances are, by isotonic regression (weights SNR²: the noise of
1 − E ε̂² is about the same everywhere).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from .. import checks
from ..errors import InputError, warn
from ..process.divergence import step_cost
from ..process.schedule import NoiseSchedule, as_schedule
from ..process.steps import explicit
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .paths import OptimalPaths, least_costs
from .step_costs import StepCosts

Float64Array = npt.NDArray[np.float64]
Objective = Literal["kl", "bound"]

#: Elements of a structure that are summed exactly; of more, groups of nearly equal variance count as one.
MAX_ELEMENTS = 4096


def optimal(
    costs: VarianceTable | StepCosts,
    steps: int,
    objective: Objective = "kl",
    structure: str = "isotropic",
    estimator: Estimator | None = None,
    max_relative_error: float = 0.1,
) -> list[int]:
    """The K indices, 1 and N among them, of the least expected bound; K = 1 is [N]. Best for likelihoods; for sample
    quality rather use `log_snr` or `quadratic` steps: the KL-optimal path is known to harm the FID.

    Args:
        costs: a variance table (objective "kl"), or what `step_costs` measured (objective "bound").
        steps: K.
        objective: "kl": the expected KL with the optimal covariance of that structure; "bound": the measured bound.
        structure, estimator, max_relative_error: of the table; see `optimal_paths`.

    Raises InputError for K outside 1…N (less the indices left out) and for costs that do not fit the objective.
    """
    count = checks.whole("steps", steps, least=1)
    return optimal_paths(costs, count, objective, structure, estimator, max_relative_error).steps(count)


def optimal_paths(
    costs: VarianceTable | StepCosts,
    most: int | None = None,
    objective: Objective = "kl",
    structure: str = "isotropic",
    estimator: Estimator | None = None,
    max_relative_error: float = 0.1,
) -> OptimalPaths:
    """The optimal paths of every number of steps up to `most` (None: all), in one go.

    Args:
        costs, objective: see `optimal`.
        structure: of the table: exact for up to 4,096 elements, above them binned (`OptimalPaths.binning_error`).
        estimator: of the table; None: "residual", or "score_norm" for published arrays.
        max_relative_error: indices whose isotropic variance has a larger relative standard error are not visited, 1
            and N excepted (see the module docstring). A warning names them. Without meaning for published arrays.
    """
    if objective == "bound":
        if not isinstance(costs, StepCosts):
            raise InputError(
                f"objective='bound' needs measured costs, but got {type(costs).__name__}; measure them with "
                "dv.step_costs(denoiser, covariance, images)."
            )
        return _bound_paths(costs, most)
    if objective != "kl":
        raise InputError(f"objective={objective!r} is not known; use 'kl' (from a table) or 'bound' (measured costs).")
    if not isinstance(costs, VarianceTable):
        raise InputError(
            f"objective='kl' needs a variance table, but got {type(costs).__name__}; for what step_costs measured, use "
            "objective='bound'."
        )
    return _kl_paths(costs, most, structure, estimator or costs.default_estimator, max_relative_error)


def _kl_paths(
    table: VarianceTable, most: int | None, structure: str, estimator: Estimator, max_relative_error: float
) -> OptimalPaths:
    wrong = not checks.is_number(max_relative_error) or not max_relative_error > 0
    checks.refuse(wrong, f"max_relative_error={max_relative_error!r} must be a positive number.")
    for n in (1, table.schedule.num_steps):
        table.posterior_variance(n, estimator, structure)  # covers the steps, and knows the names?
    if table.data is None:
        nodes, rows = _published(table)
    else:
        nodes, rows = _measured(table, structure, estimator, max_relative_error)
    matrix = kl_costs(table.schedule, nodes, np.concatenate([binned for binned, _ in rows]))
    errors = np.concatenate([error for _, error in rows])
    return OptimalPaths(np.array(nodes), least_costs(matrix, _most(most, nodes)), matrix, 0.5, errors)


def _published(table: VarianceTable) -> tuple[list[int], list[tuple[Float64Array, Float64Array]]]:
    """All indices, and the variances of published arrays made non-decreasing."""
    schedule, N = table.schedule, table.schedule.num_steps
    raw = np.array(
        [float(table.interpolation.value("score_norm", "isotropic", schedule.level(n))) for n in range(1, N + 1)]
    )
    known = np.isfinite(raw)  # not at zero SNR
    weights = np.exp(2.0 * schedule.log_snr[1:][known])
    smooth = np.empty(N)
    smooth[known] = isotonic_regression(raw[known], weights=weights / weights.max() + 1e-300).x
    smooth[~known] = smooth[known][-1]
    if smooth[-1] <= 0.0:
        raise InputError("the published moments give no positive variance at any index; check them and the schedule.")
    nodes = sorted({1, *(int(n) for n in np.flatnonzero(smooth > 0.0) + 1)})
    return nodes, [bin_variances(np.full((1, 1), max(smooth[n - 1], 0.0))) for n in nodes]


def _measured(
    table: VarianceTable, structure: str, estimator: Estimator, limit: float
) -> tuple[list[int], list[tuple[Float64Array, Float64Array]]]:
    """The indices that may be visited, and their variances."""
    N = table.schedule.num_steps
    poor = [n for n in range(2, N) if _is_poor(table, n, estimator, limit)]
    if poor:
        warn(
            f"{len(poor)} of {N} indices are not visited, since their relative standard error is above {limit:g} or "
            f"their variance not positive ({checks.brief(poor).strip('[]')}); estimate the table to a lower tolerance "
            "to have them all."
        )
    nodes = sorted({*range(1, N + 1)} - {*poor})
    sources = {N: _known_at_end(table, nodes, estimator, limit)}
    # One by one: those of large images do not fit into the memory together.
    return nodes, [
        bin_variances(np.reshape(table.posterior_variance(sources.get(n, n), estimator, structure), (1, -1)))
        for n in nodes
    ]


def _is_poor(table: VarianceTable, n: int, estimator: Estimator, limit: float) -> bool:
    v = table.posterior_variance(n, estimator)
    return not 0.0 < v < math.inf or table.standard_error(n, estimator) > limit * v


def _known_at_end(table: VarianceTable, nodes: Sequence[int], estimator: Estimator, limit: float) -> int:
    """N, or the nearest node below it where the variance at N is poor, as score_norm's often is: an exact variance
    hardly changes there, and without one the last step would be free."""
    N = nodes[-1]
    for n in reversed(nodes):
        if not _is_poor(table, n, estimator, limit):
            if n != N:
                found = table.posterior_variance(N, estimator)
                warn(
                    f"the {estimator} variance at index {N} is {found:g}, with which a step from there has no sensible "
                    f"cost; that of index {n} stands for it."
                )
            return n
    raise InputError(f"the table has no positive {estimator} variance at any index; estimate it again.")


def _bound_paths(costs: StepCosts, most: int | None) -> OptimalPaths:
    ends = int(costs.indices[0]), int(costs.indices[-1])
    if ends != (1, costs.schedule.num_steps):
        raise InputError(
            f"the measured costs cover the indices {ends[0]} to {ends[1]}, but a path goes from 1 to "
            f"{costs.schedule.num_steps}; measure them with both among the indices."
        )
    nodes = [int(n) for n in costs.indices]
    table = least_costs(costs.values, _most(most, nodes))
    return OptimalPaths(costs.indices, table, costs.values, 1.0, np.zeros(len(nodes)))


def _most(most: int | None, nodes: Sequence[int]) -> int:
    """The largest number of steps that is asked for; InputError above that of the indices that may be visited."""
    if most is None:
        return len(nodes)
    checks.refuse(
        not checks.is_whole(most) or not 1 <= most <= len(nodes),
        f"steps={most} is not a usable number of steps: {len(nodes)} indices can be visited, so that a whole number "
        f"from 1 to {len(nodes)} is expected.",
    )
    return int(most)


# ---- costs ------------------------------------------------------------------------------------------------------


def kl_costs(schedule: NoiseSchedule, nodes: Sequence[int], variances: npt.ArrayLike) -> Float64Array:
    """(I, I): log(1 + (SNR_s − SNR_t) v_t), averaged over elements, for steps from nodes[j] down to nodes[i]; inf for
    i ≥ j (module docstring).

    Args:
        nodes: I indices, ascending.
        variances: (I,) or (I, E), v of each node and element, at least 0, squared data units.
    """
    schedule = as_schedule(schedule)
    nodes = explicit(schedule, nodes)
    try:
        v = np.asarray(variances, dtype=np.float64).reshape(len(nodes), -1)
    except (TypeError, ValueError):
        found = checks.brief(np.shape(variances)) if np.ndim(variances) else checks.brief(variances)
        raise InputError(
            f"variances must be numbers, one or more for each of {len(nodes)} nodes, but are {found}."
        ) from None
    log_snr = schedule.log_snr[list(nodes)]
    out = np.full((len(nodes), len(nodes)), math.inf)
    for j in range(1, len(nodes)):
        out[:j, j] = step_cost(log_snr[j], log_snr[:j, None], v[j]).mean(1)
    return out


def bin_variances(variances: Float64Array, most: int = MAX_ELEMENTS) -> tuple[Float64Array, Float64Array]:
    """(I, E) variances as (I, at most `most`) of equal weight in each row, and (I,) bounds on what that changes a cost.

    Sorted elements are grouped, and a group takes its geometric mean. With u = log v, log(1 + w eᵘ) has a second
    derivative between 0 and 1/4 for every w ≥ 0, so that a group errs by at most an eighth of the variance of its u;
    the slope is between 0 and 1, which bounds what filling up the first group changes. Variances below 1e-12 of the
    row's largest are raised to that.
    """
    elements = variances.shape[1]
    if elements <= most:
        return variances, np.zeros(len(variances))
    size = -(-elements // most)
    floor = np.maximum(1e-12 * variances.max(1, keepdims=True), 1e-300)
    u = np.sort(np.log(np.maximum(variances, floor)), axis=1)
    # Equal groups, so that a mean over them is one over elements: the first group is filled up with the least element.
    short = -elements % size
    filling = short / (elements + short) * (u.mean(1) - u[:, 0])
    u = np.concatenate([np.repeat(u[:, :1], short, axis=1), u], axis=1)
    groups = u.reshape(len(u), -1, size)
    return np.exp(groups.mean(2)), groups.var(2).mean(1) / 8.0 + filling
