"""Where the parts of a pretrained model lie: a local folder, or a hub repository fetched into the hub's cache.

A pipeline folder has `model_index.json` and sub-folders (`unet` or `transformer`, `scheduler`, `vae` or `vqvae`,
`text_encoder`, `tokenizer`); a bare network folder, and the first DDPM repositories, have their `config.json` at the
root, with `scheduler_config.json` beside it or in `scheduler/`. From the hub only the needed files are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import InputError, printable
from ...files import expanded
from ...hub import fetch_snapshot
from ...json_text import parse_json

#: The small models that come with the package: of handwritten digits, and of patches of two photographs.
BUNDLED = ("digits", "photographs")
# Where to look, in this order; "" is the folder itself.
NETWORK_FOLDERS = ("unet", "transformer", "")
SCHEDULER_FOLDERS = ("scheduler", "")
CODEC_FOLDERS = ("vae", "vqvae")
_WEIGHTS = "diffusion_pytorch_model"
_TEXT_FILES = ("text_encoder/config.json", "tokenizer/*")


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, what it was asked for as (`name`), and the variant of its weight files."""

    path: Path
    name: str
    variant: str | None = None

    def config(self, part: str, file: str = "config.json") -> dict[str, Any] | None:
        """The JSON config of a part, or None where there is none."""
        path = self.path / part / file
        return read_json(path) if path.is_file() else None

    def index(self) -> dict[str, Any]:
        """What a pipeline folder says of its parts; empty where it is none."""
        return self.config("", "model_index.json") or {}

    def parts(self) -> dict[str, Any]:
        """What `index` says of each part; InputError for a name that is none, and may lead out of the folder."""
        found = {name: entry for name, entry in self.index().items() if not name.startswith("_")}
        wrong = next((name for name in found if not name.isidentifier()), None)
        checks.refuse(
            wrong is not None,
            f"{self.name} has a part {printable(repr(wrong), 100)} in its model_index.json, which is no name of a "
            "sub-folder; save the pipeline again.",
        )
        return found

    def network(self) -> tuple[str, dict[str, Any]]:
        """(sub-folder, config) of the network."""
        index = self.config("", "model_index.json")
        for part in NETWORK_FOLDERS:
            if (config := self.config(part)) is not None:
                return part, config
        where = self.path / ("unet" if index is not None else "") / "config.json"
        pipeline = "" if index is None else f" (a {index.get('_class_name')})"
        raise InputError(
            f"{self.name}{pipeline} holds no UNet and no transformer: {where} is missing; expected a diffusers "
            "pipeline or UNet folder."
        )

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's config."""
        for part in SCHEDULER_FOLDERS:
            if (config := self.config(part, "scheduler_config.json")) is not None:
                return config
        where = self.path / SCHEDULER_FOLDERS[0] / "scheduler_config.json"
        raise InputError(
            f"{self.name} holds no scheduler config ({where} is missing), so its noise schedule is unknown; "
            "save the scheduler there."
        )

    def codec(self) -> tuple[str, dict[str, Any]] | None:
        """(sub-folder, config) of the autoencoder, or None."""
        found = ((part, self.config(part)) for part in CODEC_FOLDERS)
        return next(((part, config) for part, config in found if config is not None), None)

    @property
    def has_prompts(self) -> bool:
        """Whether there are a tokenizer and one text encoder."""
        return (self.path / "tokenizer").is_dir() and (self.path / "text_encoder" / "config.json").is_file()


def open_folder(
    path: str | Path, revision: str | None = None, variant: str | None = None, allow_pickle: bool = False
) -> ModelFolder:
    """A local folder, or else a hub id or the bundled model's name; InputError where there is none."""
    folder = expanded(path)
    if folder.is_dir():
        return ModelFolder(folder.absolute(), str(path), variant)  # a relative path may be taken for a hub id
    if str(path) in BUNDLED:
        return ModelFolder(Path(str(resources.files("diffusion_var") / "assets" / str(path))), str(path))
    if folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise InputError(
            f"there is no model folder at {path}; expected one that diffusers' save_pretrained wrote, or a hub id."
        )
    return ModelFolder(_fetch(str(path), revision, _patterns(variant, allow_pickle)), str(path), variant)


def whole(folder: ModelFolder, path: str | Path, revision: str | None, allow_pickle: bool) -> ModelFolder:
    """The folder with all parts of its pipeline: of a hub repository the rest is fetched."""
    if expanded(path).is_dir() or str(path) in BUNDLED:
        return folder
    middle = f".{folder.variant}" if folder.variant else ""
    files = ["model_index.json"]
    for part in folder.parts():
        files += [f"{part}/*.{kind}" for kind in ("json", "txt", "model", "jinja")]
        for stem in (_WEIGHTS, "model"):
            files += [f"{part}/{stem}{middle}.safetensors", f"{part}/{stem}{middle}-0*.safetensors"]
        if allow_pickle:
            files += [f"{part}/{stem}{middle}*.bin" for stem in (_WEIGHTS, "pytorch_model")]
    return ModelFolder(_fetch(str(path), revision, files), folder.name, folder.variant)


def _patterns(variant: str | None, allow_pickle: bool) -> list[str]:
    middle = f".{variant}" if variant else ""
    kinds = ["safetensors", "bin"] if allow_pickle else ["safetensors"]
    files = [
        "config.json",
        "model_index.json",
        "scheduler_config.json",
        "scheduler/scheduler_config.json",
        *_TEXT_FILES,
    ]
    for part in (*NETWORK_FOLDERS, *CODEC_FOLDERS):
        prefix = f"{part}/" if part else ""
        for kind in kinds:
            stem = f"{prefix}{_WEIGHTS}"
            files += [f"{prefix}config.json", f"{stem}{middle}.{kind}", f"{stem}{middle}-0*.{kind}"]
            files += [f"{stem}.{kind}.index{middle}.json"]
    return [*files, f"text_encoder/model{middle}.safetensors"]


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    def failed(reason: str) -> str:
        return (
            f"there is no local folder {name}, and {name} could not be had from the hub ({reason}); wanted are its "
            "config.json files, scheduler/scheduler_config.json and diffusion_pytorch_model.safetensors (with "
            "model_index.json and unet/ or transformer/ in a pipeline); download them and give their folder."
        )

    return fetch_snapshot(name, patterns, failed, revision).absolute()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError for anything else."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = printable(str(error), 200)
        raise InputError(f"{path} could not be read as JSON ({reason}); save the model again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, but it holds {type(content).__name__}.")
    return content
