"""The model that a command works with: opened by name, with what it is conditioned on and how its latents are pictures.

Commands see pictures on both sides: images go in (encoded once, for a latent model) and come out (decoded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.labels import open_labels
from ..errors import InputError
from ..models.conditions import Conditions
from ..models.denoiser import Denoiser
from ..models.pretrained.latents import IMAGE_RANGE
from .options import ModelOptions

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        found = self.denoiser.data_range if self.denoiser.codec is None else IMAGE_RANGE
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
    def _listed(self) -> torch.Tensor | None:
        """The prompts' embeddings or the classes that the options name."""
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
    """A model by name: "digits", or a folder or hub id of a diffusers model."""
    denoiser = Denoiser.from_pretrained(
        name,
        device=open_device(options.device),
        variant=options.variant,
        revision=options.revision,
        autocast=_DTYPES[options.dtype],
        guidance_scale=options.guidance_scale,
        allow_pickle=options.allow_pickle,
    )
    return Model(denoiser, options)


def open_device(name: str | None) -> torch.device:
    """The device of that name; by default the GPU if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name!r} cannot be used ({str(error).splitlines()[0]}); try cpu.") from error
    return device


class _Cycled:
    """Conditions of a list of images, made when they are sliced: embeddings of many images would fill the memory."""

    def __init__(self, values: torch.Tensor, images: Sequence[int]) -> None:
        self._values, self._images = values, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self._values[[i % len(self._values) for i in self._images[part]]]


def _distinct(labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
    values, of_image = np.unique(labels.numpy(), return_inverse=True)
    return torch.from_numpy(values), of_image


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the prompts {path} could not be read ({error}); expected a text file, one a line."
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"the prompts {path} hold no text; expected one prompt a line.")
    return prompts
