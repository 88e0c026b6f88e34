"""Images and models by name, as commands and configs give them."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import InputError
from ..metrics.images import read_images
from ..models.denoiser import Denoiser

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST")
BUNDLED_MODEL = "digits"


def open_images(name: str, download: bool = False) -> Any:
    """Images by name: a tensor (M, C, H, W) or a Dataset of (C, H, W) tensors, uint8 or floats.

    Args:
        name: a folder, zip, npz or npy; "torchvision:NAME[:train|test]"; or "digits:train|table|score".
        download: whether torchvision may download the data set.
    """
    kind, _, rest = name.partition(":")
    if kind == "digits" and rest:
        from .digits import SIZES, digits_splits

        if rest not in SIZES:
            raise InputError(f"the digits have no split {rest!r}; choose one of {', '.join(SIZES)}.")
        return getattr(digits_splits(), rest).images
    if kind == "torchvision":
        return TorchvisionImages(rest, download)
    return read_images(name)


class TorchvisionImages(Dataset[torch.Tensor]):
    """A torchvision data set without its labels: (C, H, W) uint8 tensors.

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
        root = Path(os.environ.get("DIFFUSION_VAR_DATA", Path.home() / ".cache" / "diffusion_var"))
        try:
            self._dataset = getattr(datasets, name)(str(root), train=split != "test", download=download)
        except (RuntimeError, OSError) as error:
            what = "could not be downloaded" if download else "is not there; pass --download to fetch it"
            raise InputError(f"torchvision's {name} in {root} {what} ({str(error).splitlines()[0]}).") from error

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.transforms.functional import pil_to_tensor

        image: torch.Tensor = pil_to_tensor(self._dataset[index][0])
        return image


def open_model(name: str, device: str | None = None, dtype: str = "float32") -> Denoiser:
    """A denoiser by name: "digits", or a folder or hub id of a diffusers model."""
    try:
        where = None if device is None else torch.device(device)
        if where is not None:
            torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {device!r} cannot be used ({str(error).splitlines()[0]}); try cpu.") from error
    if name == BUNDLED_MODEL and not Path(name).exists():
        with resources.as_file(resources.files("diffusion_var") / "assets" / "digits") as folder:
            return Denoiser.from_pretrained(folder, device=where, autocast=_DTYPES[dtype])
    return Denoiser.from_pretrained(name, device=where, autocast=_DTYPES[dtype])
