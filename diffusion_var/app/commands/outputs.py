"""What the commands compare (and demo), estimate, show and sample do, once their options are checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.names import open_images
from ...errors import InputError
from ...files import make_folder, require_empty_folder, require_writable_folder, write_atomic
from ...variance.table import VarianceTable
from ..methods import make_sampler, make_steps
from ..model import open_model
from ..options import CompareOptions, EstimateOptions, SampleOptions, ShowOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from matplotlib.figure import Figure

    from ...sampling.sampler import Sampler
    from ..model import Model

_SETTINGS = "sampling.json"


def run_compare(options: CompareOptions) -> None:
    """Measure, sample, score and write the report into `options.out`; prints the scores and who wins."""
    from ..compare.cells import FOLDER
    from ..compare.findings import findings
    from ..compare.report import text_table, write_report
    from ..compare.run import TABLE, compare

    # What a run of this command leaves is to be continued, not to be in the way.
    continues = (options.out / FOLDER).is_dir()
    folder = require_empty_folder(options.out, options.overwrite or continues, ignore=[TABLE])
    result = compare(options, folder)
    print("3/3 writing the report")
    write_report(result, folder)
    for metric in options.metrics:
        print(text_table(result, metric))
    print()
    for line in findings(result):
        print(f"- {line}")
    print(f"\nThe report is {folder / 'report.html'} (and report.md, with pictures and results.csv beside it).")


def run_estimate(options: EstimateOptions) -> None:
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


def run_show(options: ShowOptions) -> None:
    """Print a table's summary and what it says of a sampler's steps; if asked, write its plot."""
    from ...covariance.diagnostics import describe, diagnose
    from ...process.steps import linspace

    if options.plot is not None:
        figure_kind(options.plot)
        require_new_file(options.plot, options.overwrite)
    table = VarianceTable.load(options.table)
    print(table.summary())
    steps = linspace(table.schedule, min(options.steps, table.schedule.num_steps))
    if sum(table.indices[0] <= n <= table.indices[-1] for n in steps) > 1:
        print("\n" + describe(diagnose(table, steps)))
    if options.plot is None:
        return
    from ... import plots

    write_figure(plots.variance_curves(table, options.steps), options.plot)
    print(f"\nwritten: {options.plot}")


def figure_kind(path: Path) -> str:
    """The kind of picture that a path's suffix asks for."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise InputError(f"the plot {path} must end in .png, .pdf or .svg.")
    return kind


def write_figure(figure: Figure, path: Path) -> None:
    """Write a picture, atomically."""
    kind = figure_kind(path)
    write_atomic(path, lambda file: figure.savefig(file, format=kind))


def run_sample(options: SampleOptions) -> None:
    """Draw images into a folder of PNG files, or one npz; an interrupted folder is completed by the same command."""
    if options.count < 1 or options.first < 0:
        raise InputError(f"count={options.count} must be at least 1 and first={options.first} at least 0.")
    _refuse_unused(options)
    table = None if options.table is None else VarianceTable.load(options.table)
    model = open_model(options.model, options)
    steps = make_steps(model.denoiser.schedule, options.steps, options.spacing)
    sampler = make_sampler(model.denoiser, options, steps, table)
    wanted = list(range(options.first, options.first + options.count))
    if options.out.suffix == ".npz":
        _sample_npz(model, sampler, wanted, options)
    else:
        _sample_folder(model, sampler, wanted, options)


def _refuse_unused(options: SampleOptions) -> None:
    """An option that would be ignored is a mistake."""
    if options.table is not None and options.covariance != "analytic":
        raise InputError(
            f"--table has no meaning with --covariance {options.covariance}; add --covariance analytic, or leave it "
            "out."
        )
    for name in ("labels", "latents"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for the images of a variance table, and has no meaning here; leave it out.")


def _pictures(model: Model, sampler: Sampler, wanted: list[int], options: SampleOptions) -> Iterator[torch.Tensor]:
    """The wanted images in batches, uint8."""
    from ...data.images import to_uint8

    conditions, image_range = model.sample_conditions(wanted), model.image_range
    batches = sampler.stream(wanted, options.seed, options.batch_size, conditions, progress=True)
    return (to_uint8(model.pictures(batch), image_range) for batch in batches)


def _sample_npz(model: Model, sampler: Sampler, wanted: list[int], options: SampleOptions) -> None:
    import torch

    from ...data.images import save_npz

    require_new_file(options.out, options.overwrite)
    save_npz(torch.cat(list(_pictures(model, sampler, wanted, options))), options.out)
    print(f"written: {len(wanted)} images in {options.out}")


def _sample_folder(model: Model, sampler: Sampler, wanted: list[int], options: SampleOptions) -> None:
    from ...data.images import save_images

    settings = _settings(sampler, options)
    folder = options.out
    continues = (folder / _SETTINGS).is_file() and _read_settings(folder / _SETTINGS) == settings
    require_empty_folder(folder, options.overwrite or continues)
    missing = [i for i in wanted if not continues or not (folder / f"{i:06d}.png").exists()]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} images are there already")
    batches = _pictures(model, sampler, missing, options)
    make_folder(folder)
    done = 0
    for batch in batches:
        if done == 0:  # not before: a run that fails at once leaves nothing in the way of the mended command
            if not continues:  # images of other settings must not be taken for this run's
                for old in folder.glob("[0-9]" * 6 + "*.png"):
                    old.unlink()
            write_atomic(folder / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        for i, image in zip(missing[done:], batch, strict=False):
            save_images(image[None], folder, start=i)
        done += len(batch)
    print(f"written: {len(wanted)} images in {folder}")


def _settings(sampler: Any, options: SampleOptions) -> dict[str, Any]:
    """What decides the images: kept beside them, and compared when a run is continued."""
    files = ("out", "table", "model", "prompts", "latents", "head")
    different = (*files, "count", "first", "batch_size", "device", "overwrite")
    chosen = {key: value for key, value in asdict(options).items() if key not in different}
    table = None if options.table is None else hashlib.sha256(options.table.read_bytes()).hexdigest()
    return {
        **chosen,
        "steps": sampler.steps,
        "network": sampler.denoiser.fingerprint,
        "schedule": sampler.denoiser.schedule.digest,
        "table": table,
        **({} if options.head is None else {"head": sampler.covariance.identity()}),
        "prompts": None if options.prompts is None else hashlib.sha256(options.prompts.read_bytes()).hexdigest(),
    }


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def require_new_file(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists (unless `overwrite`), and a path whose folder is missing."""
    if path.is_dir():
        raise InputError(f"the output {path} is a folder, but a file is needed; add a file name.")
    if path.exists() and not overwrite:
        raise InputError(f"the output {path} exists already; choose another name or pass --overwrite.")
    require_writable_folder(path.parent)
