"""The command train-head: a covariance head on a model's frozen trunk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cards import CARD
from ...errors import InputError
from ...files import write_atomic
from ...manifest import Manifest
from ...parallel import is_first
from ...variance.table import VarianceTable
from ..claims import train_into_folder
from ..model import Model, check_model_options, open_model, read
from ..options import TrainHeadOptions
from ..terminal import say
from .train_unet import CHECKPOINT, LOGS

if TYPE_CHECKING:
    from ...training.head import HeadResult

HEAD = "head.safetensors"


def run(options: TrainHeadOptions) -> None:
    """Train and save; the same command continues an interrupted run. One process, or many by torchrun."""
    train_into_folder("train-head", options, CHECKPOINT, lambda this: _train(options, this))


def _train(options: TrainHeadOptions, this: str) -> None:
    from ...covariance.head_spec import HeadSpec
    from ...training.head import HeadTraining, train_head

    settings = HeadTraining(**{name: getattr(options, name) for name in HeadTraining.__dataclass_fields__})
    spec = HeadSpec(options.target, options.kind, options.structure, options.output, options.features, options.bands)
    # What can be wrong without the model is told at once.
    table = VarianceTable.load(options.table)
    if options.held_out is None and options.held_out_labels is not None:
        raise InputError("--held-out-labels has no meaning without --held-out; leave it out.")
    check_model_options(options)
    images = read(options.images, options)
    held_out = None if options.held_out is None else read(options.held_out, options)
    model = open_model(options.model, options)
    table.check(model.denoiser)
    conditions, held_out_conditions = model.table_conditions(options.images, options.download), None
    images = model.inputs(images)
    if options.held_out is not None:
        other = Model(model.denoiser, replace(options, labels=options.held_out_labels))
        held_out_conditions = other.table_conditions(options.held_out, options.download)
        held_out = other.inputs(held_out)
    result = train_head(
        model.denoiser,
        table,
        images,
        settings,
        spec,
        held_out=held_out,
        conditions=conditions,
        held_out_conditions=held_out_conditions,
        checkpoint=options.out / CHECKPOINT,
        report_to=options.report_to,
        logs=options.out / LOGS,
    )
    if is_first():
        _save(result, options, this)


def _save(result: HeadResult, options: TrainHeadOptions, this: str) -> None:
    """The head, its curve as csv and picture, and a record of how it was made."""
    from ... import plots
    from ...training.card import head_card

    folder, manifest = options.out, Manifest(options.out, this)
    manifest.remove()
    result.head.save(folder / HEAD)
    names = ("step", "train", "held_out", "bits_per_dim")
    lines = [",".join(names), *(",".join(repr(getattr(p, name)) for name in names) for p in result.curve)]
    write_atomic(folder / "curve.csv", ("\n".join(lines) + "\n").encode())
    figure = plots.head_curve(result.curve)
    write_atomic(folder / "curve.png", lambda file: figure.savefig(file, format="png"))
    parameters = sum(p.numel() for p in result.head.network.parameters())
    record = {**asdict(options), "parameters": parameters, "seconds": round(result.seconds, 1)}
    record |= {"stopped_early": result.stopped_early}
    text = json.dumps(record, indent=2, default=lambda value: str(value) if isinstance(value, Path) else value)
    write_atomic(folder / "training.json", (text + "\n").encode())
    write_atomic(folder / CARD, head_card(result.head, record, options.license).encode())
    manifest.end([HEAD, "curve.csv", "curve.png", "training.json", CARD])
    (folder / CHECKPOINT).unlink(missing_ok=True)
    last = result.curve[-1]
    parts = [f"loss {last.train:.4g}"]
    parts += [f"held-out loss {last.held_out:.4g}"] if last.held_out == last.held_out else []
    parts += [f"{last.bits_per_dim:.4f} bits/dim"] if last.bits_per_dim == last.bits_per_dim else []
    early = ", stopped early" if result.stopped_early else ""
    say(
        f"written: {folder / HEAD} ({parameters:,} parameters; {', '.join(parts)} at step {last.step}{early}; "
        f"{result.seconds / 60:.1f} minutes of training)"
    )
