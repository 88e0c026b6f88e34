"""A variance table as text. (Tables are typed `Any` here: `table` builds on this file.)"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .estimators import Estimator

_SHORTFALLS = 5
_OTHERS: tuple[Estimator, ...] = ("score_norm", "data_variance")


def scale_text(scaling: Any) -> str:
    """The scale of latents, in short."""
    scale = scaling[0]
    return f"{min(scale):g} to {max(scale):g} by channel" if isinstance(scale, tuple) else f"{scale:g}"


def summarise(table: Any, lines: int = 12) -> str:
    """Where the table comes from, and the posterior standard deviation at about `lines` of its indices."""
    network = (table.network or "unknown")[:12]
    classifier = (table.network_facts or {}).get("classifier_scale")
    head = [
        f"variance table: N={table.schedule.num_steps}, {len(table.indices)} measured indices, "
        f"{table.evaluations:,} network evaluations, structures {', '.join(table.structures)}",
        f"model: shape {table.shape}, prediction {table.prediction}, clip {table.clip}, network {network}"
        + (f", guidance scale {table.guidance_scale:g}" if table.guidance_scale != 1.0 else "")
        + (f", classifier scale {classifier:g}" if classifier is not None else "")
        + (f", latents scaled by {scale_text(table.latent_scaling)}" if table.latent_scaling is not None else ""),
    ]
    if table.data is None:
        return "\n".join([*head, "made from published moments: score_norm only, no errors known"])
    head.append(f"data: {table.data.count:,} images, fingerprint {table.data.fingerprint[:12]}, seed {table.seed}")
    if (given := table.details.get("conditions")) is not None:
        head.append(f"conditions: {given['count']:,}, {given['how']}, fingerprint {given['fingerprint'][:12]}")
    shortfall = table.details.get("shortfall", [])
    head += [f"short of its tolerance: {text}" for text in shortfall[:_SHORTFALLS]]
    if len(shortfall) > _SHORTFALLS:
        head.append(f"short of their tolerance: {len(shortfall) - _SHORTFALLS} more indices")
    head += table.details.get("which_images", [])
    head += _worse_than_linear(table)
    head.append(
        f"errors: ± for these {table.data.count:,} images, by the noise alone; + images for the many of which "
        "these are a random choice, by that choice too"
    )
    # The other estimators hold for the posterior mean, which a guided one is not.
    guided = table.guided_by is not None
    rows = [
        "     n   draws   residual ± rel.err  + images"
        + ("" if guided else "    score_norm data_variance disagreement")
    ]
    positions = sorted({int(i) for i in np.linspace(0, len(table.indices) - 1, lines).round()})
    for i in positions:
        n = int(table.indices[i])
        v, error, wider = table.posterior_variance(n), table.relative_error(n), table.relative_error(n, images=True)
        row = f"{n:6d} {table.counts[i]:7,} {v:10.4g} {error:9.2%} "
        row += f"{'unknown' if math.isnan(wider) else f'{wider:.2%}':>9s}"
        if not guided:
            others = [f"{table.posterior_variance(n, estimator):13.4g}" for estimator in _OTHERS]
            row += f" {''.join(others)}  {_disagreement(table, n)}"
        rows.append(row)
    if guided:
        return "\n".join(head + rows)
    rows.append(
        "disagreement: the larger difference of the two other estimators from residual, where it is more than two\n"
        "standard errors; it measures how imperfect the network's mean is."
    )
    return "\n".join(head + rows)


def _worse_than_linear(table: Any) -> list[str]:
    """A line where the mean is worse than the best linear denoiser's, by more than a tenth; a guided one may be."""
    if table.guided_by is not None:
        return []
    linear = {int(n): table.interpolation.linear("isotropic", table.schedule.level(int(n))) for n in table.indices}
    worse = [n for n, least in linear.items() if table.posterior_variance(n) > 1.1 * least]
    if not worse:
        return []
    where = (
        f"n={worse[0]}" if len(worse) == 1 else f"{len(worse)} of {len(linear)} indices, n={worse[0]} to {worse[-1]}"
    )
    return [
        f"worse than the best linear denoiser at {where}: as small networks are near pure noise; or the network is not "
        "what it is declared to be, which dv.diagnose tells"
    ]


def _disagreement(table: Any, n: int) -> str:
    v, error = table.posterior_variance(n), table.standard_error(n)
    found = []
    for estimator in _OTHERS:
        raw = abs(table.posterior_variance(n, estimator, bounded=False) - v)
        if raw > 2 * math.hypot(error, table.standard_error(n, estimator)):
            found.append(abs(table.posterior_variance(n, estimator) - v))
    return f"{max(found) / v:11.1%}" if found and v > 0 else f"{'none seen':>11s}"
