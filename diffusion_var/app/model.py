"""The model that a command works with: opened by name, with what it is conditioned on and how its latents are pictures.

Commands see pictures on both sides: images go in (encoded once, for a latent model) and come out (decoded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checks, launch
from ..data.labels import open_labels
from ..data.names import open_images, parse_name
from ..data.photographs import photographs_part
from ..errors import InputError
from ..files import regular_file
from ..models.conditions import Conditions, batch_of, map_leaves
from ..models.denoiser import Denoiser
from ..models.mixture_fit import fit_mixture
from ..models.pretrained.folder import open_folder
from ..models.pretrained.latents import IMAGE_RANGE
from ..models.pretrained.openai import OpenAIFlags
from ..process.diffusers_configs import config_of, schedule_of
from ..process.schedule import NoiseSchedule
from .options import ImageOptions, ModelOptions
from .yaml_text import read_yaml

#: Patches of photographs under a mixture of Gaussians fitted to them; of its components, and to how many patches.
_MIXTURE, _COMPONENTS, _MIXTURE_IMAGES = "photographs:mixture", 6, 10_000
_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How many there are of each.
_DEVICES: dict[str, Callable[[], int]] = {
    "cpu": lambda: 1,
    "cuda": torch.cuda.device_count,
    "mps": lambda: int(torch.backends.mps.is_available()),
    "xpu": torch.xpu.device_count,
}


@dataclass(frozen=True)
class Model:
    """A denoiser, and the options it was opened with."""

    denoiser: Denoiser
    options: ModelOptions

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of its pictures."""
        codec = self.denoiser.codec
        return self.denoiser.shape if codec is None else codec.image_shape(self.denoiser.shape)

    @property
    def image_range(self) -> tuple[float, float]:
        """The range of its pictures as floats."""
        known = self.denoiser.codec is not None or self.denoiser.exact
        found = IMAGE_RANGE if known else self.denoiser.data_range
        if found is None:
            raise InputError(
                "the model has no data range, so its samples are no pictures that could be written or scored; use the "
                "Python API."
            )
        return found

    def pictures(self, batch: torch.Tensor) -> torch.Tensor:
        """Samples as pictures: decoded where the model works on latents."""
        return batch if self.denoiser.codec is None else self.denoiser.codec.decode(batch)

    def inputs(self, images: Any) -> Any:
        """Pictures as the model's data: encoded where it works on latents, once, into `options.latents`."""
        from ..models.pretrained.encode import encode_latents

        if self.denoiser.codec is None:
            if self.options.latents is not None:
                raise InputError("this model works on pixels, so --latents has no meaning; leave it out.")
            return images
        return encode_latents(self.denoiser, images, self.options.latents)

    # ---- conditions -------------------------------------------------------------------------------------------

    def table_conditions(self, images: str, download: bool, own: bool = False) -> Conditions | None:
        """What goes with the images of a variance table: their classes, or prompts or classes drawn at random.

        Args:
            own: whether classes are the images' own even where `classes` are named (which are then for samples alone).
        """
        listed, options = self._listed, self.options
        if options.labels is not None and (not self.denoiser.conditional or self._wants_prompts()):
            raise InputError("this model takes no class labels, so --labels has no meaning; leave it out.")
        if not self.denoiser.conditional:
            return None
        if self._wants_prompts():
            if listed is None:
                raise InputError("this model is conditioned on prompts; give a file of them, a line each: --prompts.")
            return Conditions(listed)
        if listed is not None and not own:
            if options.labels is not None:
                raise InputError(
                    "--labels are the images' own classes and --classes others at random; give one of both."
                )
            return Conditions(listed)
        return Conditions(*_distinct(open_labels(images, self.options.labels, download)))

    def sample_conditions(self, images: Sequence[int]) -> _Cycled | None:
        """The conditions of images i of a run: image i has the (i modulo P)-th of P prompts or classes."""
        listed = self._listed
        if listed is None and self.denoiser.conditional:
            flag = "--prompts" if self._wants_prompts() else "--classes"
            raise InputError(f"this model needs a condition for every image it makes; give {flag}.")
        return None if listed is None else _Cycled(listed, images)

    @property
    def conditions_digest(self) -> str | None:
        """SHA-256 of the prompts' embeddings or classes, for what depends on them."""
        listed = self._listed
        return None if listed is None else Conditions(listed).fingerprint

    def _wants_prompts(self) -> bool:
        return self.denoiser.prompts is not None

    @cached_property
    def _listed(self) -> Any:
        """The prompts' embeddings (a tensor, or a nest of them) or the classes that the options name, or None."""
        options, denoiser = self.options, self.denoiser
        if options.prompts is None and options.classes is None:
            return None
        if not denoiser.conditional:
            raise InputError(
                "this model takes no condition, so --prompts and --classes have no meaning; leave them out."
            )
        if options.classes is not None:
            if self._wants_prompts() or options.prompts is not None:
                raise InputError("this model is conditioned on prompts, not on classes; give --prompts alone.")
            return torch.tensor(options.classes, dtype=torch.int64)
        if denoiser.prompts is None:
            raise InputError("this model is conditioned on classes, not on prompts; give --classes alone.")
        return denoiser.prompts.encode(_read_prompts(Path(str(options.prompts))))


def open_model(name: str, options: ModelOptions) -> Model:
    """A model by name: "digits", "photographs", a diffusers model's folder or hub id, or a checkpoint of OpenAI's."""
    check_model_options(options)
    if (size := mixture_size(name)) is not None:
        return Model(_fitted(size, options), options)
    _check_kind(name, options)
    own = options.unconditional
    denoiser = (
        _open_openai(name, options)
        if options.openai is not None
        else Denoiser.from_pretrained(
            name,
            device=open_device(options.device),
            dtype=_weights_dtype(options),
            variant=options.variant,
            revision=options.revision,
            autocast=_AUTOCAST[options.dtype],
            guidance_scale=options.guidance_scale if own is None else 1.0,
            allow_pickle=options.allow_pickle,
            call=options.call,
        )
    )
    if own is not None:
        denoiser = denoiser.with_guidance(_scale(options), _null_condition(denoiser, own))
    if options.data_range is not None:
        checks.refuse(denoiser.codec is not None, "this model works on latents, so --data-range has no meaning.")
        denoiser.data_range = checks.bounds("data_range", options.data_range)
    return Model(denoiser, options)


def _scale(options: ModelOptions) -> float:
    """Of classifier-free guidance."""
    return 1.0 if options.guidance_scale is None else options.guidance_scale


def _weights_dtype(options: ModelOptions) -> torch.dtype | None:
    found: torch.dtype | None = None if options.weights_dtype is None else getattr(torch, options.weights_dtype)
    return found


def mixture_size(name: str) -> int | None:
    """The side of the patches of the model photographs:mixture[:SIZE]; None for any other model."""
    if name != _MIXTURE and not name.startswith(f"{_MIXTURE}:"):
        return None
    size = name.removeprefix(_MIXTURE).removeprefix(":") or "16"
    wrong = not size.isdecimal() or not 1 <= int(size) <= 32
    checks.refuse(wrong, f"the model {checks.brief(name)} must be {_MIXTURE} or {_MIXTURE}:SIZE, a side of 1 to 32.")
    return int(size)


def _fitted(size: int, options: ModelOptions) -> Denoiser:
    """The mixture of Gaussians that is fitted to patches of the photographs: a model whose mean is exact."""
    wrong = any(value is not None for value in (options.openai, options.data_range, options.call))
    checks.refuse(
        wrong or _scale(options) != 1,
        f"the model {_MIXTURE} is no network: openai=, guidance_scale=, data_range= and call= have no meaning.",
    )
    device = open_device(options.device)
    return fit_mixture(photographs_part("fit", size, _MIXTURE_IMAGES).images, _COMPONENTS, device=device)


def _open_openai(name: str, options: ModelOptions) -> Denoiser:
    """A checkpoint of OpenAI's with the hyper-parameters that the options name."""
    denoiser = Denoiser.from_openai(
        name,
        _hyperparameters(options),
        device=open_device(options.device),
        dtype=_weights_dtype(options),
        autocast=_AUTOCAST[options.dtype],
    )
    return denoiser.with_guidance(_scale(options) if options.unconditional is None else 1.0)


def _check_kind(name: str, options: ModelOptions) -> None:
    """Refuse weights alone where a model is wanted, and say what is missing."""
    weights = Path(name).suffix in (".pt", ".pth", ".ckpt", ".safetensors") and Path(name).is_file()
    checks.refuse(
        weights and options.openai is None,
        f"the model {name} is a file of weights; give a folder of a diffusers model, or, if it is a checkpoint of "
        "OpenAI's, its hyper-parameters too: --openai FILE.yaml.",
    )


def _hyperparameters(options: ModelOptions) -> dict[str, Any]:
    return read_yaml(options.openai) if options.openai is not None else {}


def open_schedule(name: str, options: ModelOptions) -> NoiseSchedule:
    """The noise schedule of a model, without its weights: what does not fit it is refused before they are read."""
    if mixture_size(name) is not None:
        return NoiseSchedule.linear(1000)
    if options.openai is not None:
        regular_file(name, "checkpoint")
        return OpenAIFlags.of(_hyperparameters(options)).schedule()
    _check_kind(name, options)
    folder = open_folder(name, options.revision, options.variant, options.allow_pickle)
    return schedule_of(config_of(folder.scheduler()))


def read(name: str, options: ImageOptions) -> Any:
    """Images by name, read as the options say."""
    return open_images(name, options.download, options.skip_corrupt, options.channels)


def image_range(given: list[float]) -> tuple[float, float]:
    """The data range of images of floats, as two options give it."""
    return checks.given(checks.bounds("data_range", given), "data_range is empty; give LOW,HIGH.")


def check_model_options(options: ModelOptions) -> None:
    """Refuse what cannot be used with any model, before one is loaded."""
    open_device(options.device)
    checks.bounds("data_range", options.data_range)
    wrong = options.unconditional is not None and _scale(options) == 1
    checks.refuse(wrong, "unconditional= is for guidance, and guidance_scale=1 means none; leave one of them out.")
    if options.openai is not None:
        given = [flag for flag in ("variant", "revision", "allow_pickle", "call") if getattr(options, flag)]
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        checks.refuse(bool(given), f"{flags} have no meaning for a checkpoint of OpenAI's (--openai); leave them out.")
        _hyperparameters(options)
    if options.prompts is not None:
        _read_prompts(options.prompts)
    if options.labels is not None:
        regular_file(parse_name(options.labels).base, "file of labels=")
    if options.latents is not None and options.latents.exists() and not options.latents.is_dir():
        raise InputError(f"--latents {options.latents} is a file, but a folder is needed; choose another path.")


def _null_condition(denoiser: Denoiser, text: str) -> Any:
    """The condition that stands for none, of its text on the command line."""
    if denoiser.prompts is not None:
        return map_leaves(lambda leaf: leaf[0], denoiser.prompts.encode([text]))
    checks.refuse(not denoiser.conditional, "this model takes no condition, so --unconditional has no meaning.")
    checks.refuse(not text.isdecimal(), f"--unconditional {checks.brief(text)} must be a class label of this model.")
    return torch.tensor(int(text))


def open_device(name: str | None) -> torch.device:
    """The device of that name; by default the GPU if there is one. Of processes that share work each has its own."""
    kind, _, number = (name or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")
    known = kind in _DEVICES and (not number or number.isdecimal())
    checks.refuse(not known, f"the device {checks.brief(name)} is not known; use cpu, cuda, cuda:N, mps or xpu.")
    if launch.is_joined() and kind != "cpu":
        own, others = launch.local_rank()
        checks.refuse(
            bool(number) and others > 1,
            f"the device {name} is one, but {others} processes of this machine would share it; say {kind} (each takes "
            "its own), or start one process.",
        )
        number = number or str(own)
    count = _DEVICES[kind]()
    here = f"this PyTorch finds no {kind} device here" if count == 0 else f"there are {count} of them, from {kind}:0 on"
    checks.refuse(int(number or 0) >= count, f"the device {name} cannot be used: {here}; try cpu.")
    device = torch.device(f"{kind}:{number}" if number else kind)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name} cannot be used ({str(error).splitlines()[0]}); try cpu.") from error
    return device


class _Cycled:
    """Conditions of a list of images, made when they are sliced: embeddings of many images would fill the memory."""

    def __init__(self, values: Any, images: Sequence[int]) -> None:
        self._values, self._images, self._count = values, images, batch_of(values)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice) -> Any:
        rows = [i % self._count for i in self._images[part]]
        return map_leaves(lambda leaf: leaf[rows], self._values)


def _distinct(labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
    values, of_image = np.unique(labels.numpy(), return_inverse=True)
    return torch.from_numpy(values), of_image


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = regular_file(path, "file of prompts=").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the prompts {path} could not be read ({error}); expected a text file, one a line."
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"the prompts {path} hold no text; expected one prompt a line.")
    return prompts
