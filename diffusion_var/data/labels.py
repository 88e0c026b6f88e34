"""Classes of labelled images, found where each kind of source keeps them.

A torchvision data set, the digits and the photographs' patches (0 the temple, 1 the flower) know their own; a folder's
are its subfolders, numbered in alphabetical order; a zip's are in its `dataset.json` ({"labels": [[file, class], …]},
as EDM writes it) or else its folders; those of an npz or npy are another array, named by the user: `mnist.npz:train_y`.
"""

from __future__ import annotations

import operator
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..files import regular_file
from ..json_text import parse_json
from .arrays import names_in, whole_array
from .images import read_images
from .names import ImageName, TorchvisionImages, digits_part, parse_name, photographs_named
from .sources import LARGEST_MEMBER
from .zips import read_member

_KEYS = ("labels", "y", "arr_0")


def open_labels(images: str, labels: str | None = None, download: bool = False) -> torch.Tensor:
    """The class of every image that `open_images(images)` gives, (M,) int64, from 0.

    Args:
        images: name of the images; its slice applies to the labels too, unless theirs has one.
        labels: npz or npy that holds them, `file.npz:KEY`; needed where the images are an array.

    Raises InputError where there are none, or they are not whole numbers from 0.
    """
    name = parse_name(images)
    part = name.part
    if labels is not None:
        own = parse_name(labels)
        found, part = _read_array(own), own.part or part
    else:
        found = _own_labels(name, download)
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu" or found.min() < 0:
        raise InputError(
            f"the labels of {images} are {found.dtype} numbers of shape {found.shape}; expected whole numbers from 0, "
            "one per image, shape (N,)."
        )
    found = found.astype(np.int64)
    return torch.from_numpy(found if part is None else found[part.indices(len(found))])


def _own_labels(name: ImageName, download: bool) -> np.ndarray[Any, Any]:
    kind, rest = name.scheme
    if kind == "torchvision":
        return TorchvisionImages(rest, download).labels.numpy()
    if kind == "digits":
        labels: np.ndarray[Any, Any] = digits_part(rest).labels.numpy()
        return labels
    if kind == "photographs":
        pictures: np.ndarray[Any, Any] = photographs_named(rest).labels.numpy()
        return pictures
    path = Path(name.base)
    if path.suffix.lower() in (".npz", ".npy"):
        raise InputError(f"{path} is an array of images; name its labels too, e.g. labels={path}:KEY.")
    files = getattr(read_images(path), "names", [])
    if path.suffix.lower() == ".zip" and (listed := _dataset_json(path)) is not None:
        if missing := [file for file in files if file not in listed]:
            raise InputError(f"dataset.json in {path} gives no label for {missing[0]}; add it or remove the image.")
        return np.array([listed[file] for file in files])
    return _folders(files, path)


def _folders(files: list[str], path: Path) -> np.ndarray[Any, Any]:
    """The number of each file's top folder, in alphabetical order."""
    tops = [PurePosixPath(file).parts[0] if len(PurePosixPath(file).parts) > 1 else "" for file in files]
    classes = sorted(set(tops))
    if "" in classes or len(classes) < 2:
        raise InputError(
            f"{path} has no labels; expected every image in a folder of its class, and at least two of them."
        )
    return np.array([classes.index(top) for top in tops])


def _dataset_json(path: Path) -> dict[str, int] | None:
    """The labels of an EDM-style zip; None where it has none."""
    with zipfile.ZipFile(path) as archive:
        if "dataset.json" not in archive.namelist():
            return None
        try:
            if (size := archive.getinfo("dataset.json").file_size) > LARGEST_MEMBER:
                raise ValueError(f"it declares {size} bytes")
            labels = parse_json(read_member(archive, archive.getinfo("dataset.json")))["labels"]
            return None if labels is None else {str(file): operator.index(label) for file, label in labels}
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f'dataset.json in {path} is not as expected ({error!r}); expected {{"labels": [[file, class], …]}}.'
            ) from error


def _read_array(name: ImageName) -> np.ndarray[Any, Any]:
    try:
        if Path(name.base).exists():
            regular_file(name.base)
        if not zipfile.is_zipfile(name.base):
            return np.asarray(np.load(name.base, allow_pickle=False))
        with zipfile.ZipFile(name.base) as archive:
            keys = names_in(archive)
            wanted = [name.key] if name.key else [k for k in _KEYS if k in keys] or keys * (len(keys) == 1)
            if wanted and wanted[0] in keys:
                return whole_array(archive, wanted[0])
    except InputError:
        raise
    except Exception as error:  # numpy raises OSError, ValueError, EOFError, BadZipFile, zlib.error, ...
        raise InputError(
            f"the labels {name.base} cannot be read ({str(error).rstrip('.')}); check the path."
        ) from error
    raise InputError(f"{name.base} holds the arrays {keys}; name the labels among them: {name.base}:KEY.")
