"""The command sample: images from a model, as files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import checks
from ...data.images import writable_shape
from ...errors import InputError
from ...files import make_folder, require_empty_folder, require_new_file, write_atomic
from ...process.steps import describe
from ...variance.table import VarianceTable
from ..methods import make_covariance, make_sampler, make_steps
from ..model import check_model_options, open_model, open_schedule
from ..options import SampleOptions
from ..outputs import require_writable
from ..terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from ...sampling.sampler import Sampler
    from ..model import Model

_SETTINGS = "sampling.json"
# Options that older versions did not have: they decide the images only where they are given.
_LATER = ("unconditional", "data_range")


def run(options: SampleOptions) -> None:
    """Draw images into a folder of PNG files, or one npz; an interrupted folder is completed by the same command."""
    wrong = options.count < 1 or options.first < 0
    checks.refuse(wrong, f"count={options.count} must be at least 1 and first={options.first} at least 0.")
    options = _with_covariance(options)
    _refuse_unused(options)
    _check_output(options)
    # What can be wrong without the model is told at once.
    table = None if options.table is None else VarianceTable.load(options.table)
    make_covariance(options, table)
    check_model_options(options)
    steps = make_steps(open_schedule(options.model, options), options, options.steps)
    model = open_model(options.model, options)
    writable_shape(f"the samples of {options.model}", model.image_shape)
    sampler = make_sampler(model.denoiser, options, steps, table)
    wanted = list(range(options.first, options.first + options.count))
    if options.out.suffix.lower() == ".npz":
        _sample_npz(model, sampler, wanted, options)
    else:
        _sample_folder(model, sampler, wanted, options)


def _with_covariance(options: SampleOptions) -> SampleOptions:
    """The options with the covariance that a table or a head stands for, where none is named."""
    if options.covariance is not None:
        return options
    both = options.table is not None and options.head is not None
    checks.refuse(both, "--table and --head are for two covariances; name one with --covariance.")
    return replace(
        options,
        covariance="analytic" if options.table is not None else "head" if options.head is not None else "beta_tilde",
    )


def _check_output(options: SampleOptions) -> None:
    if options.out.suffix.lower() == ".npz":
        require_new_file(options.out, options.overwrite)
    else:
        continues = (options.out / _SETTINGS).is_file()  # whether by the same settings is known with the model
        require_writable(require_empty_folder(options.out, options.overwrite or continues))


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
    say(f"written: {len(wanted)} images in {options.out}")


def _sample_folder(model: Model, sampler: Sampler, wanted: list[int], options: SampleOptions) -> None:
    from ...data.images import save_images

    settings = _settings(sampler, options)
    folder = options.out
    continues = (folder / _SETTINGS).is_file() and _read_settings(folder / _SETTINGS) == settings
    require_empty_folder(folder, options.overwrite or continues)
    missing = [i for i in wanted if not continues or not (folder / f"{i:06d}.png").exists()]
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} images are there already")
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
    say(f"written: {len(wanted)} images in {folder}")


def _settings(sampler: Any, options: SampleOptions) -> dict[str, Any]:
    """What decides the images: kept beside them, and compared when a run is continued."""
    files = ("out", "table", "model", "prompts", "latents", "head")
    different = (*files, "count", "first", "batch_size", "device", "overwrite")
    chosen = {key: value for key, value in asdict(options).items() if key not in different}
    for key in _LATER:
        if chosen[key] is None:
            del chosen[key]
    table = None if options.table is None else hashlib.sha256(options.table.read_bytes()).hexdigest()
    return {
        **chosen,
        "steps": describe(sampler.steps),
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
