"""The command sample: images from a model, as files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import checks
from ...data.images import writable_shape
from ...errors import InputError
from ...files import require_empty_folder, write_atomic
from ...json_text import parse_json
from ...locks import locked
from ...manifest import Manifest
from ...process.steps import describe
from ...variance.table import VarianceTable
from ..claims import claimed_file, recorded, run_identity, run_of_npz
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
_OTHER_FILES = frozenset({".npy", ".zip", ".png", ".jpg", ".jpeg", ".pt", ".safetensors"})  # no names of folders
# Options that older versions did not have: they decide the images only where they are given.
_LATER = ("unconditional", "data_range", "capped_steps", "rho", "power", "average", "call", "weights_dtype")


def run(options: SampleOptions) -> None:
    """Draw images into a folder of PNG files, or one npz; an interrupted folder is completed by the same command."""
    wrong = options.count < 1 or options.first < 0
    checks.refuse(wrong, f"count={options.count} must be at least 1 and first={options.first} at least 0.")
    options = _with_covariance(options)
    _refuse_unused(options)
    if options.out.suffix.lower() == ".npz":
        this = run_identity("sample", options)
        with claimed_file(options.out, this, run_of_npz, options.overwrite) as finished:
            if not finished:
                _sample_npz(*_open(options), options, this)
        return
    wrong = options.out.suffix.lower() in _OTHER_FILES and not options.out.is_dir()
    checks.refuse(
        wrong, f"the output {options.out} is neither a folder nor a file ending in .npz; choose one of these."
    )
    continues = (options.out / _SETTINGS).is_file()  # whether by the same settings is known with the model
    require_writable(require_empty_folder(options.out, options.overwrite or continues))
    with locked(options.out, folder=True):
        _sample_folder(*_open(options), options)


def _open(options: SampleOptions) -> tuple[Model, Sampler]:
    # What can be wrong without the model is told at once.
    table = None if options.table is None else VarianceTable.load(options.table)
    make_covariance(options, table)
    check_model_options(options)
    steps = make_steps(open_schedule(options.model, options), options, options.steps)
    model = open_model(options.model, options)
    writable_shape(f"the samples of {options.model}", model.image_shape, videos=True)
    return model, make_sampler(model.denoiser, options, steps, table)


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


def _wanted(options: SampleOptions) -> list[int]:
    return list(range(options.first, options.first + options.count))


def _sample_npz(model: Model, sampler: Sampler, options: SampleOptions, this: str) -> None:
    import torch

    from ...data.images import save_npz

    save_npz(torch.cat(list(_pictures(model, sampler, _wanted(options), options))), options.out, run=this)
    say(f"written: {options.count} images in {options.out}")


def _sample_folder(model: Model, sampler: Sampler, options: SampleOptions) -> None:
    from ...data.images import encode_images

    settings, folder, wanted = _settings(sampler, options), options.out, _wanted(options)
    manifest = Manifest(folder, _digest(settings))
    continues = manifest.belongs or _read_settings(folder / _SETTINGS) == settings
    require_empty_folder(folder, options.overwrite or continues)
    there = manifest.intact()
    missing = [i for i in wanted if _name(i) not in there]
    _tell_found(folder, wanted, missing, continues)
    # Whole batches, as an uninterrupted run draws them: their size may move a value across a rounding boundary.
    size = max(options.batch_size, 1)  # the sampler refuses others
    batches = [wanted[k : k + size] for k in range(0, len(wanted), size)]
    drawn = [i for batch in batches if not {*missing}.isdisjoint(batch) for i in batch]
    done = 0
    for batch in _pictures(model, sampler, drawn, options) if drawn else ():
        if done == 0:  # not before: a run that fails at once leaves nothing in the way of the mended command
            _begin(manifest, settings, there, continues)
        files = dict(zip(map(_name, drawn[done : done + len(batch)]), encode_images(batch), strict=True))
        manifest.write({name: content for name, content in files.items() if name not in there})
        done += len(batch)
    if drawn:
        say(f"written: {len(wanted)} images in {folder}")


def _name(i: int) -> str:
    return f"{i:06d}.png"


def _tell_found(folder: Path, wanted: list[int], missing: list[int], continues: bool) -> None:
    """What a run before has left."""
    if not missing:
        say(f"already finished: the {len(wanted)} images are in {folder}, as this command wrote them")
    elif len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} of {len(wanted)} images are there already")
    damaged = [_name(i) for i in missing if continues and (folder / _name(i)).exists()]
    if damaged:
        say(f"{len(damaged)} images are not as they were written ({checks.listing(damaged, 4)}); they are drawn again")


def _begin(manifest: Manifest, settings: dict[str, Any], there: set[str], continues: bool) -> None:
    """The folder is this run's: images of others go, since they must not be taken for its own."""
    if not continues:
        manifest.remove()
        for old in manifest.folder.glob("[0-9]" * 6 + "*.png"):
            old.unlink()
    write_atomic(manifest.folder / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    manifest.begin(there)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _settings(sampler: Any, options: SampleOptions) -> dict[str, Any]:
    """What decides the images: kept beside them, and compared when a run is continued."""
    files = ("out", "table", "model", "openai", "prompts", "latents", "head")
    different = (*files, "count", "first", "batch_size", "device", "overwrite")
    chosen = {key: value for key, value in recorded(options).items() if key not in different}
    defaults = {option.name: option.default for option in fields(options)}
    for key in _LATER:
        if chosen[key] == defaults[key]:
            del chosen[key]
    table = None if options.table is None else hashlib.sha256(options.table.read_bytes()).hexdigest()
    return {
        **chosen,
        "steps": describe(sampler.steps),
        "network": sampler.denoiser.fingerprint,
        **({} if sampler.denoiser.codec is None else {"autoencoder": sampler.denoiser.codec.fingerprint}),
        "schedule": sampler.denoiser.schedule.digest,
        "table": table,
        **({} if options.head is None else {"head": sampler.covariance.identity()}),
        **({} if options.openai is None else {"openai": hashlib.sha256(options.openai.read_bytes()).hexdigest()}),
        "prompts": None if options.prompts is None else hashlib.sha256(options.prompts.read_bytes()).hexdigest(),
    }


def _read_settings(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
