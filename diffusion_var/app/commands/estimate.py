"""The command estimate: a model's variance table, measured on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import parallel
from ...variance.allocation import check_budget, default_indices, merge_indices
from ...variance.table import VarianceTable
from ..claims import claimed_file, run_identity
from ..model import check_model_options, open_model, open_schedule, read
from ..options import EstimateOptions
from ..outputs import checkpoint_beside
from ..terminal import say, say_lines


def run(options: EstimateOptions) -> None:
    """Measure a table and write it; a checkpoint beside it lets an interrupted run go on."""
    this = run_identity("estimate", options)
    checkpoint = checkpoint_beside(options.out, options.checkpoint)
    with claimed_file(options.out, this, _run_of, options.overwrite, checkpoint) as finished:
        if not finished:
            _measure(options, checkpoint, this)


def _run_of(path: Path) -> Any:
    return VarianceTable.load(path).details.get("run")


def _measure(options: EstimateOptions, checkpoint: Path, this: str) -> None:
    from ...variance.estimate import estimate

    check_model_options(options)
    images = read(options.images, options)
    schedule = open_schedule(options.model, options)
    wanted = default_indices(schedule) if options.indices is None else merge_indices(schedule, options.indices)
    check_budget(options.tolerance, options.max_evaluations, wanted)
    model = open_model(options.model, options)
    conditions = model.table_conditions(options.images, options.download)
    table = estimate(
        model.denoiser,
        model.inputs(images),
        tolerance=options.tolerance,
        seed=options.seed,
        indices=options.indices,
        structures=options.structures,
        conditions=conditions,
        max_evaluations=options.max_evaluations,
        batch_size=options.batch_size,
        checkpoint=checkpoint,
    )
    if parallel.is_first():
        table.details["run"] = this
        table.save(options.out)
        checkpoint.unlink(missing_ok=True)
        say_lines(table.summary(), "")
        say(f"written: {options.out} ({options.out.stat().st_size / 1e6:.2g} MB)")
