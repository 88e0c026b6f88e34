"""The command estimate: a model's variance table, measured on images."""

from __future__ import annotations

from ...files import require_new_file
from ...variance.allocation import check_budget, default_indices, merge_indices
from ..model import check_model_options, open_model, open_schedule, read
from ..options import EstimateOptions
from ..outputs import checkpoint_beside
from ..terminal import say, say_lines


def run(options: EstimateOptions) -> None:
    """Measure a table and write it; a checkpoint beside it lets an interrupted run go on."""
    from ...variance.estimate import estimate

    require_new_file(options.out, options.overwrite)
    checkpoint = checkpoint_beside(options.out, options.checkpoint)
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
    table.save(options.out)
    checkpoint.unlink(missing_ok=True)
    say_lines(table.summary(), "")
    say(f"written: {options.out} ({options.out.stat().st_size / 1e6:.2g} MB)")
