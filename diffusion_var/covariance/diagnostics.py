"""What a table says of a sampler's steps: how much each choice of variance costs, and how much is the mean's fault.

What a step costs with its optimal variance σ*² = λ² + γ² v, and what it costs more with another, is
`process.divergence` [E11].

The residual v holds the mean's own error: v = v_exact + E‖x̂_0 − E[x_0|x_t]‖²/d. The two other estimators take the mean
for exact, and where its error is uncorrelated with the exact prediction (of x_0 or of ε) they are v_exact − E‖…‖²/d:
then half of what they differ by from v is the mean's. An error that is a shrinkage, say, is misjudged in this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import InputError
from ..process.divergence import excess_kl, expected_kl
from ..process.kernel import ReverseKernel
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .analytic import Analytic

_BITS = 1.0 / math.log(2.0)
_OTHERS: tuple[Estimator, ...] = ("score_norm", "data_variance")
FIXED = ("beta_tilde", "beta")


def mean_error(table: VarianceTable, n: int) -> float | None:
    """E‖x̂_0 − E[x_0|x_t]‖²/d at index n, estimated as half of what the estimators disagree by (module docstring); 0
    where that is within two standard errors, None where it is not known (guided tables, published arrays).

    Of the two other estimators the one that is known better is asked.
    """
    if table.data is None or table.guided_by is not None:
        return None
    level, v = table.schedule.level(n), table.posterior_variance(n)
    errors = {other: table.standard_error(n, other) for other in _OTHERS}
    other = min(_OTHERS, key=lambda name: errors[name])
    # Not `posterior_variance`, which is cut at 0: below that it is where the mean errs by more than the exact variance.
    gap = v - float(table.interpolation.value(other, "isotropic", level))
    if gap <= 2.0 * math.hypot(table.standard_error(n), errors[other]):
        return 0.0
    return float(min(0.5 * gap, v))


@dataclass(frozen=True)
class StepDiagnosis:
    """One step t → s at η = 1; KLs in bits/dim.

    Attributes:
        t, s: the indices.
        variance: the optimal isotropic one, σ*².
        optimal: expected KL of the step with it.
        excess: what β̃ ("beta_tilde") and β ("beta") add to that.
        saving: what channel, pixel and dct variances of the table would take off it.
        imperfect: the part of `optimal` that an exact mean would save; None where it is not known.
    """

    t: int
    s: int
    variance: float
    optimal: float
    excess: dict[str, float]
    saving: dict[str, float]
    imperfect: float | None


def diagnose(table: VarianceTable, steps: Sequence[int]) -> list[StepDiagnosis]:
    """The steps between these indices (ascending) that the table covers, the noisiest first.

    Raises InputError where it covers none.
    """
    inside = [n for n in steps if table.covers(n)]
    if len(inside) < 2:
        raise InputError(
            f"the table's indices {table.indices[0]} to {table.indices[-1]} hold no step of the {len(steps)} asked for."
        )
    return [_diagnose_step(table, t, s) for s, t in pairwise(inside)][::-1]


def _diagnose_step(table: VarianceTable, t: int, s: int) -> StepDiagnosis:
    kernel, estimator = ReverseKernel(table.schedule, t, s), table.default_estimator
    best = float(Analytic(table, estimator).variance(kernel))
    saving = {}
    for name in table.structures:
        if name != "isotropic" and not (name == "channel" and table.structure(name).shape[0] == 1):
            elements = Analytic(table, estimator, name).variance(kernel)
            saving[name] = 0.5 * _BITS * (math.log(best) - float(np.log(elements).mean()))
    error = mean_error(table, t)
    imperfect = None
    if error is not None:
        imperfect = 0.5 * _BITS * (math.log(best) - math.log(max(best - kernel.gain**2 * error, kernel.lambda2)))
    used = {"beta_tilde": kernel.beta_tilde, "beta": kernel.beta}
    return StepDiagnosis(
        t,
        s,
        best,
        _BITS * expected_kl(best, kernel.lambda2),
        {name: _BITS * float(excess_kl(best, used[name])) for name in FIXED},
        saving,
        imperfect,
    )


def describe(steps: Sequence[StepDiagnosis]) -> str:
    """A few lines: sums over the steps, and where the fixed choices lose most."""
    total = sum(step.optimal for step in steps)
    known = [step.imperfect for step in steps if step.imperfect is not None]
    lines = [
        f"expected KL of the {len(steps)} steps {steps[0].t} to {steps[-1].s} at η = 1, bits/dim (decoder apart):",
        f"  optimal isotropic  {total:9.4f}"
        + (f"   of which imperfect mean {sum(known):.4f} ({sum(known) / total:.0%})" if known and total else ""),
    ]
    for name, sign in (("beta_tilde", "β̃"), ("beta", "β")):
        worst = max(steps, key=lambda step: step.excess[name])
        lost = sum(step.excess[name] for step in steps)
        lines.append(
            f"  {sign:<18} {total + lost:9.4f}   {lost:+.4f}, most of it ({worst.excess[name]:.4f}) from {worst.t} to "
            f"{worst.s}"
        )
    for name in steps[0].saving:
        saved = sum(step.saving[name] for step in steps)
        lines.append(f"  optimal {name:<10} {total - saved:9.4f}   {-saved:+.4f}")
    return "\n".join(lines)
