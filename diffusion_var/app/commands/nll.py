"""The command nll: a bound on the negative log-likelihood of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.names import open_images
from ...errors import InputError
from ...files import require_new_file, write_atomic
from ...variance.table import VarianceTable
from ..methods import make_covariance, make_noise, make_steps, refuse_set
from ..model import open_model
from ..options import NllOptions

if TYPE_CHECKING:
    from ...likelihood.result import LikelihoodBound


def run(options: NllOptions) -> None:
    """Print a bound on the negative log-likelihood of images, and write its parts if asked."""
    if options.out is not None:
        require_new_file(options.out, options.overwrite)
    table = _table_of(options)
    checkpoint = options.checkpoint
    if checkpoint is None and options.out is not None:
        checkpoint = options.out.with_name(options.out.name + ".partial")
    if checkpoint is not None and options.out is not None and checkpoint.resolve() == options.out.resolve():
        raise InputError(f"checkpoint and out are both {options.out}, but they are two files; choose another one.")
    result = _bound(options, table, checkpoint)
    content = {"model": options.model, "images_name": options.images, **result.to_dict()}
    if options.out is not None:
        write_atomic(options.out, (json.dumps(content, indent=2) + "\n").encode())
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    if options.json:
        print(json.dumps(content))
        return
    print(result)
    if options.out is not None:
        print(f"written: {options.out}")


def _table_of(options: NllOptions) -> VarianceTable | None:
    needed = options.covariance == "analytic" or options.spacing == "optimal"
    if not needed:
        refuse_set(options, ("structure", "estimator"), f"--covariance {options.covariance}")
    if options.continuous:
        refuse_set(options, ("levels",), "--continuous")
    noise = f"eta={options.eta:g}" if options.tau is None else f"tau={options.tau:g}"
    if options.spacing == "optimal" and noise not in ("eta=1", "tau=1"):
        raise InputError(
            f"--spacing optimal is for eta=1, but {noise}; measure a path with `diffusion-var steps "
            "--objective bound --eta …` and give its indices as --steps."
        )
    if options.table is None:
        if options.spacing == "optimal":
            raise InputError(
                "--spacing optimal needs a variance table; give one with --table, or indices with --steps."
            )
        return None
    if not needed:
        raise InputError(
            f"--table has no meaning with --covariance {options.covariance}; add --covariance analytic or --spacing "
            "optimal, or leave it out."
        )
    return VarianceTable.load(options.table)


def _bound(options: NllOptions, table: VarianceTable | None, checkpoint: Path | None) -> LikelihoodBound:
    from ...likelihood.bound import Bound

    covariance = make_covariance(options, table)  # before the model is opened: a missing table is told at once
    model = open_model(options.model, options)
    levels = None if options.continuous or model.denoiser.codec is not None else options.levels
    bound = Bound(
        model.denoiser,
        covariance,
        make_steps(model.denoiser.schedule, options, options.steps, table),
        make_noise(options)["eta"],
        options.decoder_variance,
        levels=levels,
        clipped_eps=options.clipped_eps,
        tau=make_noise(options)["tau"],
    )
    return bound.evaluate(
        model.inputs(open_images(options.images, options.download)),
        options.seed,
        options.draws,
        options.step_samples,
        conditions=model.table_conditions(options.images, options.download),
        batch_size=options.batch_size,
        checkpoint=checkpoint,
        progress=True,
    )
