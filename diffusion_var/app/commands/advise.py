"""The command advise: what to do with a model of one's own, from a few hundred held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...json_text import parse_json
from ...variance.table import VarianceTable
from ..model import Model, check_model_options, open_model, read
from ..options import AdviseOptions
from ..signed import find_and_tell

if TYPE_CHECKING:
    from ...advice.advice import Advice

_OF_BUNDLED = {"digits": "digits:train", "photographs": "photographs:fit"}
_MOST = 200_000  # images of a training set that are looked through unasked


def run(options: AdviseOptions) -> None:
    """Print what is advised, and write it if asked."""
    from ...advice.kept import forget

    find_and_tell("advise", options, lambda checkpoint: _found(options, checkpoint), forget)


def _found(options: AdviseOptions, checkpoint: Path | None) -> tuple[dict[str, Any], Advice]:
    advice = _advise(options, checkpoint)
    return {"model": options.model, "images_name": options.images, **advice.to_dict()}, advice


def _advise(options: AdviseOptions, checkpoint: Path | None) -> Advice:
    from ...advice.advise import LEAST_IMAGES, advise
    from ...metrics.networks import load_features

    check_model_options(options)
    if options.save_table is not None and options.save_table.exists() and not options.overwrite:
        raise InputError(
            f"{options.save_table} exists; pass --overwrite to replace it, or choose another --save-table."
        )
    table = None if options.table is None else VarianceTable.load(options.table)
    images = read(options.images, options)
    if len(images) < LEAST_IMAGES:  # before the model is loaded
        raise InputError(
            f"{options.images} holds {len(images)} images, but at least {LEAST_IMAGES} are needed; give more."
        )
    features: Any = options.features
    if features != "pixels":
        features = load_features(
            features, inception_weights=options.inception_weights, accept_weights=options.accept_weights
        )
    model = open_model(options.model, options)
    advice = advise(
        model.denoiser,
        model.inputs(images),
        options.budget,
        steps=options.steps,
        features=features,
        table=table,
        trained_on=_trained_on(options, model),
        conditions=model.table_conditions(options.images, options.download),
        seed=options.seed,
        batch_size=options.batch_size,
        checkpoint=checkpoint,
    )
    if options.save_table is not None and advice.table is not None:
        advice.table.save(options.save_table)
    return advice


def _trained_on(options: AdviseOptions, model: Model) -> Any:
    """The images that the network was trained on, as far as it is known: those named, the bundled model's, or those
    that the record beside a model names."""
    if options.trained_on is not None:
        if model.denoiser.codec is not None:
            raise InputError(
                "--trained-on compares pixels, but this model works on latents; leave it out, and make sure by hand."
            )
        return read(options.trained_on, options)
    if model.denoiser.codec is not None:
        return None
    try:
        name = _OF_BUNDLED.get(options.model) or _recorded(Path(options.model) / "training.json")
        found = None if name is None else read(name, options)
    except InputError:  # the record names what is not here
        return None
    fits = found is not None and len(found) <= _MOST and tuple(found[0].shape) == model.denoiser.shape
    return found if fits else None


def _recorded(path: Path) -> str | None:
    try:
        name = parse_json(path.read_bytes())["images"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return name if isinstance(name, str) else None
