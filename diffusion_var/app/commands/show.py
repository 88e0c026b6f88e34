"""The command show: a variance table as text and as a picture."""

from __future__ import annotations

from ...variance.table import VarianceTable
from ..claims import claimed_file, run_identity
from ..options import ShowOptions
from ..terminal import say_lines


def run(options: ShowOptions) -> None:
    """Print a table's summary and what it says of a sampler's steps; if asked, write its plot."""
    from ...plots import picture_format, run_of_picture, save_figure, variance_curves

    if options.plot is None:
        _describe(options)
        return
    picture_format(options.plot)
    this = run_identity("show", options)
    with claimed_file(options.plot, this, run_of_picture, options.overwrite) as finished:
        table = _describe(options)
        if not finished:
            save_figure(variance_curves(table, options.steps), options.plot, this)
            say_lines("", f"written: {options.plot}")


def _describe(options: ShowOptions) -> VarianceTable:
    from ...covariance.diagnostics import describe, diagnose
    from ...process.steps import linspace

    table = VarianceTable.load(options.table)
    say_lines(table.summary())
    steps = linspace(table.schedule, min(options.steps, table.schedule.num_steps))
    if sum(table.covers(n) for n in steps) > 1:
        say_lines("", describe(diagnose(table, steps)))
    return table
