"""Optimal trajectories: which K of the N indices make the likelihood bound least (Analytic-DPM, arXiv:2201.06503, §4).

With the optimal covariance at η = 1, a step t → s adds to the bound, per dimension, half of

    cost(s, t) = log((λ² + γ² v_t)/λ²) = log(1 + (SNR_s − SNR_t) v_t),            γ²/λ² = SNR_s − SNR_t at η = 1,

averaged over the elements where v_t has a structure. Where a path begins is free: from its first index t the decoder
gives the image, at cost(0, t), twice its expected −log p(x_0|x_t) with a variance of its own [E18]. The path of K
indices that ends at N with the least sum is found by dynamic programming, for all K at once:

    F_1(t) = cost(0, t),      F_k(t) = min over s < t of F_{k−1}(s) + cost(s, t).

For data that are i.i.d. Gaussian with variance l, v_t = l/(1 + l SNR_t), and with a Gaussian density of variance v_t
as the decoder the cost telescopes: every path costs the same. With measured costs (`step_costs`) the same programme
minimises the bound of any covariance (Watson et al., arXiv:2106.03802).

A minimum over noisy estimates seeks out those that err downwards. So an index whose estimate is poor is not visited:
the relative standard error of its isotropic variance is above `max_relative_error`, or that variance is not positive.
The rule is the same for every structure, since a cost is a mean over elements, in which their own errors average out.
At N, where a path must begin, the nearest good variance below stands for a poor one. Published arrays know no errors;
theirs are made non-decreasing in n, as exact variances are, by isotonic regression (weights SNR²: the noise of
1 − E ε̂² is about the same everywhere).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
from .decoder_costs import DecoderCosts
from .decoder_variance import DecoderVariance
from .expected_decoder import ExpectedDecoder
from .paths import DecoderOfNodes, OptimalPaths, Trajectory, least_costs
from .step_costs import StepCosts

Float64Array = npt.NDArray[np.float64]
Objective = Literal["kl", "bound"]
#: (n, structure) to v of that index.
Variances = Callable[[int, str], Any]

#: Elements of a structure that are summed exactly; of more, groups of nearly equal variance count as one.
MAX_ELEMENTS = 4096


def optimal(
    costs: VarianceTable | StepCosts,
    steps: int,
    objective: Objective = "kl",
    structure: str = "isotropic",
    estimator: Estimator | None = None,
    max_relative_error: float = 0.1,
    *,
    first: int | None = None,
    decoder_variance: DecoderVariance | float | npt.ArrayLike | DecoderCosts | None = None,
    levels: int | None = 256,
) -> Trajectory:
    """The K indices, N the last, and the decoder's variance of the least expected bound; K = 1 is [N]. Best for
    likelihoods; for sample quality rather use `log_snr` or `quadratic` steps: the KL-optimal path is known to harm the
    FID.

    Args:
        costs: a variance table (objective "kl"), or what `step_costs` measured (objective "bound").
        steps: K.
        objective: "kl": the expected KL with the optimal covariance of that structure; "bound": the measured bound.
        structure, estimator, max_relative_error, first, decoder_variance, levels: see `optimal_paths`.

    Returns: a sequence of indices that carries its `decoder_variance`, which `bits_per_dim(steps=…)` takes from it.
    Raises InputError for K outside 1…N (less the indices left out) and for costs that do not fit the objective.
    """
    count = checks.whole("steps", steps, least=1)
    free: dict[str, Any] = {"first": first, "decoder_variance": decoder_variance, "levels": levels}
    return optimal_paths(costs, count, objective, structure, estimator, max_relative_error, **free).steps(count)


def optimal_paths(
    costs: VarianceTable | StepCosts,
    most: int | None = None,
    objective: Objective = "kl",
    structure: str = "isotropic",
    estimator: Estimator | None = None,
    max_relative_error: float = 0.1,
    *,
    first: int | None = None,
    decoder_variance: DecoderVariance | float | npt.ArrayLike | DecoderCosts | None = None,
    levels: int | None = 256,
) -> OptimalPaths:
    """The optimal paths of every number of steps up to `most` (None: all), in one go.

    Args:
        costs, objective: see `optimal`.
        structure: of the table: exact for up to 4,096 elements, above them binned (`OptimalPaths.binning_error`).
        estimator: of the table; None: "residual", or "score_norm" for published arrays.
        max_relative_error: indices whose isotropic variance has a larger relative standard error are not visited, 1
            and N excepted (see the module docstring). A warning names them. Without meaning for published arrays.
        first: the index that paths begin at; None: chosen, with the decoder.
        decoder_variance: what `decoder_costs` measured: paths begin at one of its indices, with the best variance
            there. Or what the decoder's cost is expected for, from the table alone: "table" (None; v_t, in the
            structure where that is diagonal in pixels, else isotropic), "isotropic", "pixel", "sigma2" (σ_t²/α_t²),
            "beta_tilde", a number or an array. Of measured costs None is what was measured with them.
        levels: number of values a pixel can have, of a table's expected decoder; None, and for a table without a data
            range: a density's.
    """
    checks.refuse(levels is not None and not (checks.is_whole(levels) and levels >= 2), _LEVELS.format(levels))
    if objective == "bound":
        if not isinstance(costs, StepCosts):
            raise InputError(
                f"objective='bound' needs measured costs, but got {type(costs).__name__}; measure them with "
                "dv.step_costs(denoiser, covariance, images)."
            )
        return _bound_paths(costs, most, first, decoder_variance)
    if objective != "kl":
        raise InputError(f"objective={objective!r} is not known; use 'kl' (from a table) or 'bound' (measured costs).")
    if not isinstance(costs, VarianceTable):
        raise InputError(
            f"objective='kl' needs a variance table, but got {type(costs).__name__}; for what step_costs measured, use "
            "objective='bound'."
        )
    known = estimator or costs.default_estimator
    return _kl_paths(costs, most, structure, known, max_relative_error, first, decoder_variance, levels)


def _kl_paths(
    table: VarianceTable,
    most: int | None,
    structure: str,
    estimator: Estimator,
    max_relative_error: float,
    first: int | None,
    decoder_variance: Any,
    levels: int | None,
) -> OptimalPaths:
    wrong = not checks.is_number(max_relative_error) or not max_relative_error > 0
    checks.refuse(wrong, f"max_relative_error={max_relative_error!r} must be a positive number.")
    for n in (1, table.schedule.num_steps):
        table.posterior_variance(n, estimator, structure)  # covers the steps, and knows the names?
    if table.data is None:
        nodes, variances = _published(table)
    else:
        nodes, variances = _measured(table, estimator, max_relative_error)
    # One by one: those of large images do not fit into the memory together.
    rows = [bin_variances(np.reshape(variances(n, structure), (1, -1))) for n in nodes]
    matrix = kl_costs(table.schedule, nodes, np.concatenate([binned for binned, _ in rows]))
    errors = np.concatenate([error for _, error in rows])
    decoders, begin = _decoders(table, structure, variances, decoder_variance, levels, nodes)
    begin = _beginning(first, nodes, begin / 0.5)
    least = least_costs(matrix, _most(most, nodes), begin)
    return OptimalPaths(np.array(nodes), least, matrix, 0.5, errors, begin, decoders)


def _decoders(
    table: VarianceTable, structure: str, variances: Variances, choice: Any, levels: int | None, nodes: Sequence[int]
) -> tuple[DecoderOfNodes, Float64Array]:
    """The decoders, and what they cost from every node, nats/dim."""
    if isinstance(choice, DecoderCosts):
        other = choice.schedule != table.schedule
        checks.refuse(
            other, "decoder_variance was measured on another noise schedule than the table; measure it again."
        )
        return choice, choice.costs(nodes)
    expected = ExpectedDecoder(
        "table" if choice is None else choice, structure, table.schedule, variances, levels, table.data_range
    )
    return expected, np.array([expected.nats(n) for n in nodes])


def _beginning(first: int | None, nodes: Sequence[int], costs: Float64Array) -> Float64Array:
    """What it costs to begin at a node: at `first` alone, where that is given."""
    if first is not None:
        known = checks.is_whole(first) and int(first) in nodes
        checks.refuse(
            not known, f"first={checks.brief(first)} must be one of the indices that can be visited, or None: chosen."
        )
        costs = np.where(np.array(nodes) == first, costs, math.inf)
    checks.refuse(
        not np.isfinite(costs).any(),
        f"no decoder's cost is known{'' if first is None else f' at index {first}'}, so that no path can begin there; "
        "measure it (dv.decoder_costs), or name a decoder_variance.",
    )
    return costs


def _published(table: VarianceTable) -> tuple[list[int], Variances]:
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
    return nodes, lambda n, structure: np.float64(max(smooth[n - 1], 0.0))


def _measured(table: VarianceTable, estimator: Estimator, limit: float) -> tuple[list[int], Variances]:
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
    return nodes, lambda n, structure: np.asarray(
        table.posterior_variance(sources.get(n, n), estimator, structure), dtype=np.float64
    )


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


def _bound_paths(costs: StepCosts, most: int | None, first: int | None, decoder_variance: Any) -> OptimalPaths:
    nodes, N = [int(n) for n in costs.indices], costs.schedule.num_steps
    checks.refuse(
        nodes[-1] != N,
        f"the measured costs cover the indices {nodes[0]} to {nodes[-1]}, but a path ends at {N}; measure them with it "
        "among the indices.",
    )
    decoder = costs.decoder if decoder_variance is None else decoder_variance
    if not isinstance(decoder, DecoderCosts):
        raise InputError(
            "these measured costs have no decoder terms, which say where a path begins; measure them again "
            "(dv.step_costs), or give what dv.decoder_costs measured as decoder_variance."
            if decoder is None
            else "decoder_variance of measured costs must be what dv.decoder_costs measured, or None, but got "
            f"{checks.brief(decoder)}."
        )
    begin = _beginning(first, nodes, decoder.costs(nodes))
    least = least_costs(costs.values, _most(most, nodes), begin)
    return OptimalPaths(costs.indices, least, costs.values, 1.0, np.zeros(len(nodes)), begin, decoder)


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


_LEVELS = "levels={!r} must be a whole number of at least 2, or None for continuous data."


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
