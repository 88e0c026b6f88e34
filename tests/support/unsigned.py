"""Files without a checksum of ours, damaged at random: what makes one, what reads it, and what it may then mean.

Archives have checksums of their own; of a text, whatever can be read may be used, but as the text says; of a model's
weights and config nothing says what they were meant to be, but the model must be told from the one that it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import senseless_configs as configs
import torch
import yaml
from damage import damaged
from safetensors.torch import load_file
from senseless import Outcome

import diffusion_var as dv
from diffusion_var.app.claims import claimed_file, run_of_npz
from diffusion_var.app.compare.options import CompareOptions
from diffusion_var.app.config import load_options
from diffusion_var.app.signed import content_of_signed, run_of_signed, write_signed
from diffusion_var.data.images import save_npz
from diffusion_var.errors import NetworkError, NumericalError
from diffusion_var.manifest import NAME, Manifest
from diffusion_var.randomness import generator

RUN = "ab" * 32


@dataclasses.dataclass(frozen=True)
class Unsigned:
    """A kind of file.

    Attributes:
        file: that is damaged, in the folder that `make` fills.
        form: of the damage (see damage.py).
        read: of the folder, as a user's call does it; what comes of it.
        means: whether that (the last) is what it should be, from what came of the whole file, the text or bytes of the
            whole file, and those of the mutant.
    """

    file: str
    form: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    means: Callable[[Any, bytes, bytes, Any], bool] = lambda whole, original, mutant, found: bool(found == whole)
    random: int = 300


def outcome(
    kind: str, folder: Path, chosen: Callable[[int], list[int]], random: int | None = None, seed: int = 0
) -> Outcome:
    """Read those of `random` mutants of a kind that are chosen; the file itself must be read before and after."""
    made, found = KINDS[kind], Outcome(longest=1000)
    made.make(folder)
    path = folder / made.file
    original, whole = path.read_bytes(), made.read(folder)
    for number in chosen(made.random if random is None else random):
        name, content = damaged(made.form, original, generator(seed, f"mutants of a {kind}", number))
        _put(path, content)
        means = lambda it, content=content: made.means(whole, original, content, it)  # noqa: E731
        refused = found.take(number, name, folder.name, lambda: made.read(folder), means)
        if refused and path.read_bytes() != content:
            found.written_over.append((number, f"{name}: written over"))
        _put(path, original)
    if not made.means(whole, original, original, made.read(folder)):
        raise RuntimeError(f"the {kind} is not read as before")
    return found


def _put(path: Path, content: bytes) -> None:
    """A new file: the old one may be mapped by what was read of it."""
    path.unlink()
    path.write_bytes(content)


# ---- archives ------------------------------------------------------------------------------------------------------


def _save_statistics(folder: Path) -> None:
    statistics = dv.metrics.FeatureStatistics(3).update(np.random.default_rng(0).standard_normal((9, 3)))
    statistics.origin = {"features": "some", "images": "others"}
    statistics.save(folder / "it.npz", run=RUN)


def _statistics(folder: Path) -> Any:
    found = dv.metrics.FeatureStatistics.load(folder / "it.npz")
    return found.digest, found.count, found.origin


def _are_statistics(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """Other programs' files say neither count nor origin."""
    return all(mine == his or (i > 0 and his is None) for i, (mine, his) in enumerate(zip(whole, found, strict=True)))


def _save_images(folder: Path) -> None:
    save_npz(torch.arange(4 * 3 * 5 * 5, dtype=torch.uint8).reshape(4, 3, 5, 5), folder / "it.npz", run=RUN)


def _images(folder: Path) -> Any:
    images = dv.metrics.read_images(folder / "it.npz")
    return b"".join(images[i].numpy().tobytes() for i in range(len(images)))  # in whatever shape


def _finished_npz(folder: Path) -> Any:
    with claimed_file(folder / "it.npz", RUN, run_of_npz, overwrite=False, aloud=False) as finished:
        return finished, _images(folder)


# ---- records of runs -----------------------------------------------------------------------------------------------


def _finished_json(folder: Path) -> Any:
    with claimed_file(folder / "it.json", RUN, run_of_signed, overwrite=False, aloud=False) as finished:
        return finished, content_of_signed(folder / "it.json")


FILES = {"000000.png": b"some", "000001.png": b"others", "part/config.json": b"{}"}


def _save_manifest(folder: Path) -> None:
    (folder / "part").mkdir()
    manifest = Manifest(folder, RUN)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        (folder.parent / Path(name).name).write_bytes(content)  # to which nothing may lead
    manifest.end(FILES)


def _manifest(folder: Path) -> Any:
    """The names of files that a run finds as it wrote them, and whether it takes them for all."""
    manifest = Manifest(folder, RUN)
    return manifest.intact(), manifest.is_whole()


def _is_manifest(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """Nothing may be found that was not there; and all only where all is."""
    names, finished = found
    return names <= set(FILES) and (not finished or names == set(FILES))


# ---- configs -------------------------------------------------------------------------------------------------------

CONFIG = """out: here
model: digits
count: 17
seeds: [3, 5]
steps: [2, 25]
tolerance: 0.05  # of the table
reference: digits:score
methods:
  - {covariance: analytic, structure: dct, eta: 0.5}
  - {covariance: beta_tilde, name: "DDPM"}
"""


def _options(folder: Path) -> Any:
    return load_options(CompareOptions, {}, folder / "it.yaml")


def _says(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """Whether options are what the text says by YAML's own rules."""
    return _agrees(yaml.safe_load(mutant.decode("utf-8-sig")) or {}, vars(found))


def _agrees(said: Any, held: Any) -> bool:
    if dataclasses.is_dataclass(held):
        held = vars(held)
    if isinstance(said, dict) and isinstance(held, dict):
        return all(name in held and _agrees(value, held[name]) for name, value in said.items())
    if isinstance(said, list) and isinstance(held, list | tuple):
        return len(said) == len(held) and all(map(_agrees, said, held))
    if isinstance(said, int | float) and not isinstance(said, bool) and isinstance(held, int | float):
        return bool(said == held) and not isinstance(held, bool)
    return str(said) == str(held)


# ---- folders of schedulers and models ------------------------------------------------------------------------------


def _scheduler(kind: str) -> dict[str, Any]:
    def make(folder: Path) -> None:
        configs.save_schedulers(folder.parent)
        (folder.parent / kind).rename(folder / "it")

    return {"make": make, "read": lambda folder: dv.AnalyticScheduler.from_pretrained(folder / "it")}


def _is_scheduler(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """The settings of the text; the variances of the whole file, where the text has any."""
    said = {name: value for name, value in json.loads(mutant).items() if name in whole.config and name[0] != "_"}
    if not {"variance", "variance_type"} & {*said}:
        return found.config["variance"] is None
    same = json.dumps(_numbers(found), sort_keys=True) == json.dumps(_numbers(whole), sort_keys=True)
    return same and all(_agrees(value, found.config[name]) for name, value in said.items() if name != "variance")


def _numbers(scheduler: Any) -> Any:
    return {name: value for name, value in dict(scheduler.config["variance"] or {}).items() if name != "digest"}


def _is_beside(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    return bool(found._source.held.digest == whole._source.held.digest)


def _save_model(folder: Path) -> None:
    configs.save_model(folder / "it")


def _model(folder: Path) -> Any:
    return dv.Denoiser.from_pretrained(folder / "it")


def _is_model(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """It does what the whole one does; or it is told from it, as a table does that was measured with it; or it does
    nothing, and that is said."""
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    try:
        mine, his = (model.identity(keep=True) for model in (whole, found))
        if mine.mismatch(his, "the one", "the other"):
            return True
        a, b = (model(x, 25).mean for model in (whole, found))
    except (dv.InputError, NetworkError, NumericalError):
        return True
    return bool(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3))


def _has_weights(whole: Any, original: bytes, mutant: bytes, found: Any) -> bool:
    """The weights of the file, by the library's own reading; told from others by their fingerprint."""
    (folder := Path(found.network.config["_name_or_path"])).is_dir()
    held, state = load_file(folder / "diffusion_pytorch_model.safetensors"), found.network.state_dict()
    as_said = held.keys() == state.keys() and all(
        torch.equal(held[name].view(torch.uint8), state[name].view(torch.uint8)) for name in held
    )
    same = all(torch.equal(held[name], value) for name, value in whole.network.state_dict().items())
    return as_said and same == (found.fingerprint == whole.fingerprint)


def _model_file(name: str, form: str = "json", **more: Any) -> Unsigned:
    return Unsigned(f"it/{name}", form, _save_model, _model, **{"means": _is_model, **more})


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "it/scheduler_config.json"
KINDS = {
    "statistics": Unsigned("it.npz", "npz", _save_statistics, _statistics, _are_statistics),
    "images": Unsigned("it.npz", "npz", _save_images, _images),
    "images of a run": Unsigned("it.npz", "any", _save_images, _finished_npz),
    "result of a run": Unsigned(
        "it.json",
        "json",
        lambda folder: write_signed(folder / "it.json", {"value": 3.25, "steps": [1, 2]}, RUN),
        _finished_json,
    ),
    "manifest": Unsigned(NAME, "lines", _save_manifest, _manifest, _is_manifest),
    "config": Unsigned("it.yaml", "yaml", lambda folder: (folder / "it.yaml").write_text(CONFIG), _options, _says),
    "scheduler's config with lists": Unsigned(SCHEDULER, "json", **_scheduler("lists"), means=_is_scheduler),
    "scheduler's config with a table": Unsigned(SCHEDULER, "json", **_scheduler("table"), means=_is_scheduler),
    "scheduler's config with a head": Unsigned(SCHEDULER, "json", **_scheduler("head"), means=_is_scheduler),
    "scheduler's table": Unsigned("it/variance_table.safetensors", "document", **_scheduler("table"), means=_is_beside),
    "scheduler's head": Unsigned("it/variance_head.safetensors", "document", **_scheduler("head"), means=_is_beside),
    "model's index": _model_file("model_index.json"),
    "model's scheduler": _model_file("scheduler/scheduler_config.json"),
    "model's config": _model_file("unet/config.json"),
    "model's weights": _model_file(WEIGHTS, "safetensors", means=_has_weights),
}
