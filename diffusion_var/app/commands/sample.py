"""The command sample: images from a model, as files."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import checks, parallel
from ...data.images import writable_shape
from ...errors import InputError
from ...files import require_empty_folder, write_atomic
from ...json_text import parse_json
from ...locks import locked
from ...manifest import Manifest, write_files
from ...process.steps import describe
from ...progress import progress_bar
from ...same_folder import require_shared
from ...variance.table import VarianceTable
from ..claims import claimed_file, recorded, run_identity, run_of_npz
from ..methods import make_covariance, make_sampler, make_steps
from ..model import check_model_options, open_model, open_schedule
from ..options import WITH_TABLE, SampleOptions
from ..outputs import require_writable
from ..terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from ...sampling.sampler import Sampler
    from ..model import Model

_SETTINGS = "sampling.json"
_SECONDS = 5.0  # between two meetings of processes that share a folder
_OTHER_FILES = frozenset({".npy", ".zip", ".png", ".jpg", ".jpeg", ".pt", ".safetensors"})  # no names of folders
# Options that older versions did not have: they decide the images only where they are given.
_LATER = (
    *("unconditional", "data_range", "capped_steps", "rho", "power", "average", "call", "weights_dtype"),
    *("bands", "probes", "krylov_steps", "derivative", "multistep"),
)


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
    with ExitStack() as held:
        parallel.team().first_alone(lambda: _hold(options, held))
        _sample_folder(*_open(options), options)


def _hold(options: SampleOptions, held: ExitStack) -> None:
    """The output folder is this run's, unless it is another's."""
    continues = (options.out / _SETTINGS).is_file()  # whether by the same settings is known with the model
    require_writable(require_empty_folder(options.out, options.overwrite or continues))
    held.enter_context(locked(options.out, folder=True))


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
    if options.table is not None and options.covariance not in WITH_TABLE:
        raise InputError(
            f"--table has no meaning with --covariance {options.covariance}; add --covariance analytic, or leave it "
            "out."
        )
    for name in ("labels", "latents"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for the images of a variance table, and has no meaning here; leave it out.")


def _pictures(
    model: Model, sampler: Sampler, batches: list[list[int]], options: SampleOptions, bar: Any
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Of batches of image numbers, each with its images, uint8."""
    from ...data.images import to_uint8

    wanted = [i for batch in batches for i in batch]
    conditions, image_range = model.sample_conditions(wanted), model.image_range
    images = sampler.stream(wanted, options.seed, max(options.batch_size, 1), conditions, bar) if wanted else ()
    for batch, drawn in zip(batches, images, strict=True):
        yield batch, to_uint8(model.pictures(drawn), image_range)


def _batches(options: SampleOptions) -> list[list[int]]:
    """The image numbers that are wanted, in whole batches."""
    wanted, size = _wanted(options), checks.whole("batch_size", options.batch_size, least=1)
    return [wanted[k : k + size] for k in range(0, len(wanted), size)]


def _wanted(options: SampleOptions) -> list[int]:
    return list(range(options.first, options.first + options.count))


def _sample_npz(model: Model, sampler: Sampler, options: SampleOptions, this: str) -> None:
    import torch

    from ...covariance.reverse import report_of_all
    from ...data.images import save_npz

    team, batches, found = parallel.team(), _batches(options), {}
    with _bar(sampler, batches) as bar:
        for batch, images in _pictures(model, sampler, batches[team.rank :: team.count], options, bar):
            found[_name(batch[0])] = images.numpy()
            if team.called:
                break
    told = team.gather(found, to_first=True)
    team.end_if_stopped()
    report_of_all(sampler.covariance)
    if team.first:
        everyones = {name: images for arrays, _ in told for name, images in arrays.items()}
        in_order = [torch.from_numpy(everyones[_name(batch[0])]) for batch in batches]
        save_npz(torch.cat(in_order), options.out, run=this)
    say(f"written: {options.count} images in {options.out}")


def _bar(sampler: Sampler, batches: list[list[int]]) -> Any:
    parallel.team().tell_idle(len(batches), "batches of images")
    return progress_bar(sum(map(len, batches)) * sampler.evaluations, "sample", "eval")


def _sample_folder(model: Model, sampler: Sampler, options: SampleOptions) -> None:
    """Each process draws, encodes and writes batches of its own; the first keeps the manifest."""
    from ...covariance.reverse import report_of_all

    team, folder = parallel.team(), _Folder(sampler, options)
    missing = {*team.first_alone(folder.missing)}
    # Whole batches, as an uninterrupted run draws them: their size may move a value across a rounding boundary.
    batches = [batch for batch in _batches(options) if not missing.isdisjoint(batch)]
    if not batches:
        return
    require_shared(options.out, team)
    with _bar(sampler, batches) as bar:
        images = _pictures(model, sampler, batches[team.rank :: team.count], options, bar)
        first = [*islice(images, 1)]
        team.first_alone(folder.begin)  # not before: a run that fails at once leaves nothing in a mended one's way
        _write(folder.manifest, chain(first, images), {*map(_name, missing)}, -(-len(batches) // team.count))
    report_of_all(sampler.covariance)
    if team.first:
        folder.manifest.settle()
    say(f"written: {options.count} images in {options.out}")


def _write(
    manifest: Manifest, images: Iterable[tuple[list[int], torch.Tensor]], missing: set[str], batches: int
) -> None:
    """Write the files that are missing, and every few seconds the lines of all processes' files.

    Args:
        batches: the most that any process has.
    """
    from ...data.images import encode_images

    team, size, images = parallel.team(), 1, iter(images)
    while batches > 0:
        begun, theirs = time.monotonic(), {}
        for batch, drawn in islice(images, size):
            files = dict(zip(map(_name, batch), encode_images(drawn), strict=True))
            sums = write_files(manifest.folder, {name: files[name] for name in files if name in missing})
            manifest.note(sums) if team.first else theirs.update(sums)
            if team.called:  # to stop: nobody calls for anything else
                break
        told = team.gather({}, [theirs, time.monotonic() - begun])
        for _, (others, _) in told if team.first else ():
            manifest.note(others)
        team.end_if_stopped()
        batches -= size
        slowest = max(seconds for _, (_, seconds) in told)
        size = max(min(2 * size, int(size * _SECONDS / max(slowest, 1e-3))), 1)


def _name(i: int) -> str:
    return f"{i:06d}.png"


class _Folder:
    """The output folder of a run; what is there already, its first process knows."""

    def __init__(self, sampler: Sampler, options: SampleOptions) -> None:
        self._path, self._wanted, self._overwrite = options.out, _wanted(options), options.overwrite
        self._settings = _settings(sampler, options)
        self.manifest = Manifest(options.out, _digest(self._settings))
        self._there: set[str] = set()
        self._continues = False

    def missing(self) -> list[int]:
        """Which of the wanted images are not there."""
        self._continues = self.manifest.belongs or _read_settings(self._path / _SETTINGS) == self._settings
        require_empty_folder(self._path, self._overwrite or self._continues)
        self._there = self.manifest.intact()
        missing = [i for i in self._wanted if _name(i) not in self._there]
        self._tell_found(missing)
        if not missing and _read_settings(self._path / _SETTINGS) != self._settings:  # damaged since
            self._write_settings()
        return missing

    def _tell_found(self, missing: list[int]) -> None:
        """What a run before has left."""
        count = len(self._wanted)
        if not missing:
            say(f"already finished: the {count} images are in {self._path}, as this command wrote them")
        elif len(missing) < count:
            say(f"{count - len(missing)} of {count} images are there already")
        damaged = [_name(i) for i in missing if self._continues and (self._path / _name(i)).exists()]
        if damaged:
            named = checks.listing(damaged, 4)
            say(f"{len(damaged)} images are not as they were written ({named}); they are drawn again")

    def begin(self) -> None:
        """The folder is this run's: images of others go, since they must not be taken for its own."""
        if not self._continues:
            self.manifest.remove()
            for old in self._path.glob("[0-9]" * 6 + "*.png"):
                old.unlink()
        self._write_settings()
        self.manifest.begin(self._there)

    def _write_settings(self) -> None:
        write_atomic(self._path / _SETTINGS, (json.dumps(self._settings, indent=2) + "\n").encode())


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
