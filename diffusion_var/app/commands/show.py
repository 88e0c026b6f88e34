"""The command show: a variance table as text and as a picture."""

from __future__ import annotations

from ...files import require_new_file
from ...variance.table import VarianceTable
from ..options import ShowOptions
from ..terminal import say, say_lines


def run(options: ShowOptions) -> None:
    """Print a table's summary and what it says of a sampler's steps; if asked, write its plot."""
    from ...covariance.diagnostics import describe, diagnose
    from ...plots import picture_format, save_figure, variance_curves
    from ...process.steps import linspace

    if options.plot is not None:
        picture_format(options.plot)
        require_new_file(options.plot, options.overwrite)
    table = VarianceTable.load(options.table)
    say_lines(table.summary())
    steps = linspace(table.schedule, min(options.steps, table.schedule.num_steps))
    if sum(table.covers(n) for n in steps) > 1:
        say_lines("", describe(diagnose(table, steps)))
    if options.plot is None:
        return
    save_figure(variance_curves(table, options.steps), options.plot)
    say_lines("")
    say(f"written: {options.plot}")
