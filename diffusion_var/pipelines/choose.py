"""Which of the two schedulers a pipeline takes."""

from __future__ import annotations

from typing import Any

from .. import checks
from ..covariance.head import Head
from ..errors import InputError
from ..process.diffusers_configs import SUPPORTED, config_of, family_of
from ..variance.table import VarianceTable
from .flow_scheduler import AnalyticFlowScheduler
from .scheduler import AnalyticScheduler
from .source import require_network


def analytic_scheduler(
    table: VarianceTable | Head, pipe: Any, **options: Any
) -> AnalyticScheduler | AnalyticFlowScheduler:
    """The scheduler with a table's or head's variances that fits a pipeline.

        pipe.scheduler = dv.analytic_scheduler(table, pipe)

    Args:
        table: measured for the pipeline's network, or a head trained on it.
        pipe: the pipeline; for a table also its scheduler, or that one's config.
        options: of `AnalyticScheduler.from_table` (`from_head`) for schedules by betas, of
            `AnalyticFlowScheduler.from_table` (`from_head`) for flows: structure, eta, tau, … are options of both.

    Raises InputError where neither fits: for EDM's and score-SDE's schedules, and for pipelines without a network.
    """
    checks.instance("table", table, (VarianceTable, Head), "a dv.VarianceTable or a dv.Head")
    scheduler, kind = getattr(pipe, "scheduler", pipe), type(pipe).__name__
    if scheduler is not pipe:
        require_network(pipe)
    config = config_of(scheduler)
    named = config.get("_class_name")
    try:
        family = family_of({**config, "_class_name": named if named in SUPPORTED else None})
    except InputError:
        family = ""
    fitting: Any = {
        "betas": AnalyticScheduler,
        "flow": AnalyticFlowScheduler,
        "inverted flow": AnalyticFlowScheduler,
    }.get(family)
    if fitting is None:
        raise InputError(
            f"no analytic scheduler fits {named or kind}: there is AnalyticScheduler for schedules that are given by "
            "betas, and AnalyticFlowScheduler for flow matching; use dv.Sampler for others."
        )
    make = fitting.from_head if isinstance(table, Head) else fitting.from_table
    made: AnalyticScheduler | AnalyticFlowScheduler = make(table, pipe, **options)
    return made
