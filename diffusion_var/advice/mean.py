"""How imperfect a network's mean is, as far as a table can tell: lower bounds of its error [E26].

With e = x̂_0 − E[x_0|x_t] the residual is v + E e²/d, of which a table knows the sum. What is certainly error:

    the bounds of the exact mean   v is at most the linear denoiser's error, so that E e²/d ≥ residual − linear
    the other estimator            residual − data_variance = 2 E e(x̂_0 − μ)/d, so that by Cauchy and Schwarz
                                   E e²/d ≥ ((residual − data_variance)/2)² / (E(x̂_0 − μ)²/d)

Neither sees an error that is uncorrelated with the prediction and smaller than what the linear denoiser lacks, as that
of a network that is too small: agreement of the estimators does not make a mean exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..variance.table import VarianceTable

_ERRORS = 2.0  # standard errors that a difference must exceed


@dataclass(frozen=True)
class MeanAtLevel:
    """What is known of the mean's error at one index.

    Attributes:
        n: the index.
        residual: E‖x_0 − x̂_0‖²/d, squared data units; `error` its standard error.
        linear: the best linear denoiser's.
        disagreement: the larger difference of the estimators from the residual, as a share of it; 0 where it is within
            two standard errors.
        surely: the share of the residual that is certainly error of the mean, and not uncertainty of x_0 [E26].
    """

    n: int
    residual: float
    error: float
    linear: float
    disagreement: float
    surely: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def share_of_error(residual: float, linear: float, data_variance: float, variance: float) -> float:
    """The share of a residual that is certainly error of the mean [E26]; all arguments per dimension.

    Args:
        residual, data_variance: the estimators.
        linear: the best linear denoiser's error.
        variance: of the data; E(x̂_0 − μ)² is what `data_variance` lacks of it.
    """
    if residual <= 0.0:
        return 0.0
    predicted = variance - data_variance
    by_agreement = ((residual - data_variance) / 2) ** 2 / predicted if predicted > 0.0 else 0.0
    return min(max(residual - linear, by_agreement, 0.0) / residual, 1.0)


def mean_at(table: VarianceTable, n: int) -> MeanAtLevel:
    """What a table says of the mean's error at a measured index; differences count as far as they exceed two standard
    errors."""
    assert table.data is not None
    level = table.schedule.level(n)
    residual, error = table.posterior_variance(n), table.standard_error(n)
    linear = float(np.asarray(table.interpolation.linear("isotropic", level)))
    differences = []
    for estimator in ("score_norm", "data_variance"):
        other = table.posterior_variance(n, estimator, bounded=False)
        doubt = _ERRORS * math.hypot(error, table.standard_error(n, estimator))
        gap = residual - other
        differences.append(math.copysign(max(abs(gap) - doubt, 0.0), gap) if math.isfinite(gap) else 0.0)
    told = [abs(gap) for gap, kept in zip(_gaps(table, n, residual), differences, strict=True) if kept]
    variance = float(table.data.pixel_variance.mean())
    surely = share_of_error(residual, linear + _ERRORS * error, residual - differences[1], variance)
    return MeanAtLevel(n, residual, error, linear, max(told, default=0.0) / residual if residual > 0 else 0.0, surely)


def _gaps(table: VarianceTable, n: int, residual: float) -> list[float]:
    """The bounded estimators' differences from the residual, as summaries show them."""
    return [residual - table.posterior_variance(n, name) for name in ("score_norm", "data_variance")]


def imperfection(table: VarianceTable, lines: int = 10) -> tuple[MeanAtLevel, ...]:
    """At about `lines` of a table's indices."""
    places = sorted({int(i) for i in np.linspace(0, len(table.indices) - 1, lines).round()})
    return tuple(mean_at(table, int(table.indices[i])) for i in places)


def in_words(rows: Sequence[MeanAtLevel]) -> str:
    """One sentence on where the mean is certainly wrong."""
    bad = [row for row in rows if row.surely > 0.1]
    if not bad:
        return "nothing says that the mean is wrong by more than a tenth of its residual (which does not make it exact)"
    worst = max(bad, key=lambda row: row.surely)
    where = f"n={bad[0].n}" if len(bad) == 1 else f"n={bad[0].n} to {bad[-1].n}"
    return (
        f"at {where} more than a tenth of the residual is certainly the mean's error, at n={worst.n} "
        f"{worst.surely:.0%}: there the variance pays for the network's mistakes, too"
    )
