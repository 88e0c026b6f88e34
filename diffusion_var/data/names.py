"""Images by name, as commands and configs give them.

    folder | 'imgs/*.png' | file.zip | file.npy | file.npz | file.npz:KEY | torchvision:NAME[:train|test] |
    digits:train|table|score | photographs:fit|table|score[:SIZE]

each with an optional slice at its end, `[START:STOP]`, as in Python: `mnist.npz:train_x[:50000]`. So disjoint parts of
one file serve training, the variance table and scores. Where a file is sorted by class, such a part lacks classes:
`[shuffled:START:STOP]` slices one fixed shuffle of the images, the same in every run. Patches of the photographs come
in no order, 16 × 16 unless their SIZE is given (see `photographs.py`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Subset

from .. import checks
from ..errors import InputError
from ..files import expanded
from ..randomness import generator
from .digits import SIZES, Split, digits_splits
from .images import read_images
from .photographs import SIZE, STRIP, STRIPS, photographs_part

_TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST")


@dataclass(frozen=True)
class Part:
    """A slice of the images in their order, or in one fixed shuffle."""

    start: int | None
    stop: int | None
    shuffled: bool = False

    def indices(self, count: int) -> npt.NDArray[np.int64]:
        """Which of `count` images, ascending."""
        order = generator(0, "image order").permutation(count) if self.shuffled else np.arange(count)
        return np.sort(order[self.start : self.stop]).astype(np.int64)


@dataclass(frozen=True)
class ImageName:
    """A name taken apart: `base`, the npz's `key`, and the slice."""

    base: str
    key: str | None = None
    part: Part | None = None

    @property
    def scheme(self) -> tuple[str, str]:
        """("digits", "photographs" or "torchvision", what follows its colon), or ("", base) for a path."""
        kind, _, rest = self.base.partition(":")
        named = kind in ("digits", "photographs", "torchvision") and not os.path.exists(self.base)
        return (kind, rest) if named else ("", self.base)


def parse_name(name: str) -> ImageName:
    """Take a name apart. A path that exists as it stands is that path; a leading ~ is the home folder."""
    name = os.path.expanduser(name)
    if os.path.exists(name):  # not for what is too long for a path, of which the end may be a key and a slice
        return ImageName(name)
    part = None
    if match := re.fullmatch(r"(.+)\[(shuffled:)?(-?\d*):(-?\d*)\]", name):
        name = match[1]
        start, stop = (int(end) if end else None for end in match.groups()[2:])
        part = Part(start, stop, shuffled=match[2] is not None)
    key = None
    if match := re.fullmatch(r"(.+\.(?i:npz)):([^:]+)", name):
        name, key = match[1], match[2]
    return ImageName(name, key, part)


def open_images(name: str, download: bool = False, skip_corrupt: bool = False, channels: int | None = None) -> Any:
    """Images by name: a tensor (M, C, H, W) or a Dataset of (C, H, W) tensors, uint8 or floats.

    Args:
        name: see the module docstring.
        download: whether torchvision may download the data set.
        skip_corrupt: leave out files that cannot be decoded, with a warning, instead of refusing them.
        channels: 1 or 3 for images of files that shall be grey or RGB (see `read_images`); None: as they are.
    """
    parsed = parse_name(os.fspath(checks.instance("name", name, (str, os.PathLike), "the name or path of images")))
    images = _open_whole(parsed, download, skip_corrupt, channels)
    if parsed.part is None:
        return images
    chosen = parsed.part.indices(len(images))
    if len(chosen) == 0:
        raise InputError(f"{name} leaves none of the {len(images)} images; choose another slice.")
    return images[torch.from_numpy(chosen)] if isinstance(images, torch.Tensor) else Subset(images, chosen.tolist())


def _open_whole(name: ImageName, download: bool, skip_corrupt: bool, channels: int | None) -> Any:
    kind, rest = name.scheme
    if kind and channels is not None:
        raise InputError(f"channels={channels} is for images of files, but {name.base} has its own; leave it out.")
    if kind == "digits":
        return digits_part(rest).images
    if kind == "photographs":
        return photographs_named(rest).images
    if kind == "torchvision":
        return TorchvisionImages(rest, download)
    return read_images(name.base, channels, key=name.key, skip_corrupt=skip_corrupt)


def digits_part(name: str) -> Split:
    """One of the digits' three parts by name."""
    if name not in SIZES:
        raise InputError(
            f"the digits have no split {name!r}; choose one of {', '.join(f'digits:{part}' for part in SIZES)}."
        )
    part: Split = getattr(digits_splits(), name)
    return part


def photographs_named(name: str) -> Split:
    """One of the photographs' three parts by name, `PART` or `PART:SIZE`."""
    part, colon, size = name.partition(":")
    wrong = part not in STRIPS or (bool(colon) and not (size.isdecimal() and 1 <= int(size) <= STRIP))
    if wrong:
        raise InputError(
            f"the photographs have no part {name!r}; choose one of "
            f"{', '.join(f'photographs:{known}' for known in STRIPS)}, each with an optional :SIZE of 1 to {STRIP}."
        )
    return photographs_part(part, int(size) if colon else SIZE)


class TorchvisionImages(Dataset[torch.Tensor]):
    """A torchvision data set without its labels: (C, H, W) uint8 tensors. `labels` has them, (M,) int64.

    Args:
        name: e.g. "MNIST" or "CIFAR10:test"; the train split by default. Kept in $DIFFUSION_VAR_DATA, by default
            ~/.cache/diffusion_var.
    """

    def __init__(self, name: str, download: bool) -> None:
        from torchvision import datasets

        name, _, split = name.partition(":")
        if name not in _TORCHVISION or split not in ("", "train", "test"):
            raise InputError(
                f"torchvision:{name}{':' + split if split else ''} is not known; use "
                f"torchvision:NAME[:train|test] with NAME one of {', '.join(_TORCHVISION)}."
            )
        root = expanded(os.environ.get("DIFFUSION_VAR_DATA", "~/.cache/diffusion_var"))
        try:
            self._dataset = getattr(datasets, name)(str(root), train=split != "test", download=download)
        except (RuntimeError, OSError) as error:
            what = "could not be downloaded" if download else "is not there; pass download=True to fetch it"
            raise InputError(f"torchvision's {name} in {root} {what} ({str(error).splitlines()[0]}).") from error

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        image: torch.Tensor = pil_to_tensor(self._dataset[index][0])
        return image

    @property
    def labels(self) -> torch.Tensor:
        """The class of every image, (M,) int64."""
        return torch.as_tensor(self._dataset.targets, dtype=torch.int64)
