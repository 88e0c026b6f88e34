"""The command estimate: a model's variance table, measured on images."""

from __future__ import annotations

from ...data.names import open_images
from ...errors import InputError
from ...files import require_new_file
from ..model import open_model
from ..options import EstimateOptions


def run(options: EstimateOptions) -> None:
    """Measure a table and write it; a checkpoint beside it lets an interrupted run go on."""
    from ...variance.estimate import estimate

    require_new_file(options.out, options.overwrite)
    model = open_model(options.model, options)
    images = open_images(options.images, options.download)
    conditions = model.table_conditions(options.images, options.download)
    checkpoint = options.checkpoint or options.out.with_name(options.out.name + ".partial")
    if checkpoint.resolve() == options.out.resolve():
        raise InputError(
            f"checkpoint and out are both {options.out}, but they are two files; choose another checkpoint."
        )
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
    print(table.summary())
    print(f"\nwritten: {options.out} ({options.out.stat().st_size / 1e6:.2g} MB)")
