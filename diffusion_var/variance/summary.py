"""A variance table as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .table import VarianceTable


def summarise(table: VarianceTable, lines: int = 12) -> str:
    """Where the table comes from, and the posterior standard deviation at about `lines` of its indices."""
    network = (table.network or "unknown")[:12]
    head = [
        f"variance table: N={table.schedule.num_steps}, {len(table.indices)} measured indices, "
        f"{table.evaluations:,} network evaluations, structures {', '.join(table.structures)}",
        f"model: shape {table.shape}, prediction {table.prediction}, clip {table.clip}, network {network}",
    ]
    if table.data is None:
        return "\n".join([*head, "made from published moments: score_norm only, no errors known"])
    head.append(f"data: {table.data.count:,} images, fingerprint {table.data.fingerprint[:12]}, seed {table.seed}")
    for text in table.details.get("shortfall", []):
        head.append(f"short of its tolerance: {text}")
    rows = ["     n   draws   residual  ± rel.err   score_norm  data_variance  disagreement"]
    positions = sorted({int(i) for i in np.linspace(0, len(table.indices) - 1, lines).round()})
    for i in positions:
        n = int(table.indices[i])
        v = table.posterior_variance(n)
        others = [table.posterior_variance(n, "score_norm"), table.posterior_variance(n, "data_variance")]
        spread = max(abs(o - v) for o in others) / v if v > 0 else float("nan")
        rows.append(
            f"{n:6d} {table.counts[i]:7,} {v:10.4g} {table.relative_error(n):9.2%}  "
            f"{others[0]:11.4g}  {others[1]:13.4g}  {spread:11.1%}"
        )
    rows.append(
        "disagreement: largest difference of the other two estimators from residual; it measures how imperfect the "
        "mean is."
    )
    return "\n".join(head + rows)
