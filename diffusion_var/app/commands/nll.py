"""The command nll: a bound on the negative log-likelihood of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...parallel import is_first
from ...variance.table import VarianceTable
from ..decoders import measure_decoders
from ..methods import make_covariance, make_noise, make_steps, refuse_set
from ..model import Model, check_model_options, open_model, open_schedule, read
from ..options import WITH_TABLE, NllOptions
from ..signed import find_and_tell

if TYPE_CHECKING:
    from ...likelihood.decoder_costs import DecoderCosts
    from ...likelihood.result import LikelihoodBound


def run(options: NllOptions) -> None:
    """Print a bound on the negative log-likelihood of images, and write its parts if asked."""
    if options.head is not None and options.covariance == "analytic" and options.table is None:
        options = replace(options, covariance="head")
    find_and_tell("nll", options, lambda checkpoint: _measure(options, checkpoint))


def _measure(options: NllOptions, checkpoint: Path | None) -> tuple[dict[str, Any], LikelihoodBound]:
    result = _bound(options, _table_of(options), checkpoint)
    return {"model": options.model, "images_name": options.images, **result.to_dict()}, result


def _table_of(options: NllOptions) -> VarianceTable | None:
    needed = options.covariance in WITH_TABLE or options.spacing == "optimal"
    if not needed:
        refuse_set(options, ("structure", "estimator"), f"--covariance {options.covariance}")
    if options.continuous:
        refuse_set(options, ("levels",), "--continuous")
    if options.spacing != "optimal":
        refuse_set(options, ("decoder_images",), f"--spacing {options.spacing}")
    elif options.decoder_variance is not None:
        refuse_set(options, ("decoder_images",), "--decoder-variance")
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

    # What can be wrong without the model is told at once.
    covariance, noise = make_covariance(options, table), make_noise(options)
    check_model_options(options)
    images = read(options.images, options)
    others = None if options.decoder_images is None else read(options.decoder_images, options)
    schedule = open_schedule(options.model, options)
    steps = make_steps(schedule, options, options.steps, table)
    model = open_model(options.model, options)
    levels = None if options.continuous or model.denoiser.codec is not None else options.levels
    decoders = None if others is None else _decoders(options, model, others, table, levels, checkpoint)
    if options.spacing == "optimal" and (decoders, levels) != (None, 256):  # not what was found before the model
        steps = make_steps(schedule, options, options.steps, table, decoders, levels)
    bound = Bound(
        model.denoiser,
        covariance,
        steps,
        noise["eta"],
        None if options.spacing == "optimal" else options.decoder_variance,
        levels=levels,
        clipped_eps=options.clipped_eps,
        tau=noise["tau"],
    )
    result = bound.evaluate(
        model.inputs(images),
        options.seed,
        options.draws,
        options.step_samples,
        conditions=model.table_conditions(options.images, options.download),
        batch_size=options.batch_size,
        checkpoint=checkpoint,
        progress=True,
    )
    if checkpoint is not None and is_first():
        _checkpoint_of_decoders(checkpoint).unlink(missing_ok=True)
    return result


def _decoders(
    options: NllOptions,
    model: Model,
    images: Any,
    table: VarianceTable | None,
    levels: int | None,
    checkpoint: Path | None,
) -> DecoderCosts:
    name = str(options.decoder_images)
    conditions = model.table_conditions(name, options.download)
    kept = None if checkpoint is None else _checkpoint_of_decoders(checkpoint)
    return measure_decoders(model, images, conditions, table, levels, options.seed, options.batch_size, kept)


def _checkpoint_of_decoders(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".decoders")
