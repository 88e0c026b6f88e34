"""What images come in: one rule for all that takes them, by position (`by_position`) or in passing (`in_passing`).

*An image* is a tensor or array of channels first, or a PIL image, which is read as its file would be (`decoding.py`).

*A record* is a tuple, list or dict with one image among other things: (image, label), {"image": …, "label": …}. What
has the most axes is the image; in a dict with several, the one that is called so.

*A batch* is a tensor with one axis more, a list of images or of records, or a record with a batch for its image: what a
DataLoader gives, whatever its `collate_fn`. Where a guess could leave images out without a word, none is made: a tuple
of several images (a batch, or an image with its target?) and several batches side by side are refused.

*By position* are the images of an estimate: position i must mean the same image in every read. So streams are refused,
and a DataLoader stands for its data set where it gives just those images in their order, and is refused elsewhere.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    default_collate,
    default_convert,
)

from .. import checks
from ..errors import InputError
from .decoding import mode_of, pixels_of
from .images import read_images

_NAMES = ("image", "images", "img", "pixel_values")  # of the image in a dict


# ---- one image --------------------------------------------------------------------------------------------------


def image_of(item: Any, name: str = "an image", shape: Sequence[int] | None = None) -> Tensor:
    """The image of a data set's item: the item itself, or the one image of a record.

    Arrays are copied, in this machine's byte order: a mapped file is read-only, and torch knows no other order.

    Args:
        name: of the item, in messages.
        shape: that the image should have, where it is known; it tells the image in a record.

    Raises InputError where there is no image, or several that it could be.
    """
    if not _is_record(item):
        return _tensor(item, name)
    fields = _fields(item)
    found = {key: field for key, field in fields.items() if shape is not None and _shape(field) == tuple(shape)}
    if len(found) != 1:
        found = _images_among(fields, least=3 if shape is None else len(shape))
    if not found:
        _refuse_dict(item, name)
        return image_of(fields[0], name, shape)  # which says what is wrong with it
    first = next(iter(found.values()))
    rivals = [field for field in found.values() if _shape(field) == _shape(first)]
    if isinstance(item, list) and len(item) > 1 and all(_axes(field) >= 3 for field in item):
        rivals = item  # crops of several sizes, say
    if len(rivals) > 1:
        raise InputError(
            f"{name} is a {type(item).__name__} of {len(rivals)} images, one of which must be meant; give that alone."
        )
    return image_of(first, name, shape)


def _is_record(value: Any) -> bool:
    return isinstance(value, tuple | list | Mapping) and len(value) > 0


def _fields(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, Mapping) else dict(enumerate(value))


def _images_among(fields: Mapping[Any, Any], least: int) -> dict[Any, Any]:
    """The fields with the most axes, if these are `least` or more; in a dict, the one with an image's name."""
    axes = {key: _axes(field) for key, field in fields.items()}
    named = [key for key in fields if key in _NAMES and axes[key] >= least]
    most = max([least, *axes.values()])
    chosen = named if len(named) == 1 else [key for key in fields if axes[key] == most]
    return {key: fields[key] for key in chosen}


def _axes(value: Any) -> int:
    """Axes of an array or a PIL image; of a list of images, one more; of a record, those of its image."""
    if isinstance(value, Image.Image):
        return 3
    if isinstance(value, Tensor | np.ndarray) and value.dtype != object:
        return value.ndim
    if not _is_record(value):
        return 0
    axes = [_axes(field) for field in _fields(value).values()]
    return max(axes) + (not isinstance(value, Mapping) and min(axes) >= 3)


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Image.Image):
        return 1 if mode_of(value) == "L" else 3, value.height, value.width
    return tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else None


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        try:
            return pixels_of(value, name)
        except OSError as error:  # a file that was opened and is decoded only now
            raise InputError(f"{name} cannot be decoded ({str(error).rstrip('.')}); repair or remove it.") from error
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{name} is a {type(value).__name__}, but a tensor or array (C, H, W) is expected; convert it in the data "
            "set (add a transform)."
        )
    wrong = value.dtype.kind not in "fiub"
    checks.refuse(
        wrong, f"{name} holds {value.dtype} numbers, but uint8 or a floating-point type is expected: convert it."
    )
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))


# ---- in passing -------------------------------------------------------------------------------------------------


def in_passing(images: Any, size: int = 256) -> Iterator[Tensor]:
    """Every image once, (C, H, W) or as batches (B, C, H, W), from a tensor or array (N, C, H, W), which is given in
    batches of `size`; from a data set; or from an iterable of images, records or batches.

    Raises InputError for what cannot be iterated over or never ends, and for items without one clear image.
    """
    if isinstance(images, Tensor | np.ndarray) and images.dtype != object:
        wrong = images.ndim != 4
        checks.refuse(wrong, f"images have shape {tuple(images.shape)}; expected (N, C, H, W): reshape them.")
        yield from (_tensor(images[start : start + size], "images") for start in range(0, len(images), size))
    elif isinstance(images, Mapping):
        yield from _batch(_column(images), "images")
    else:
        # A data set gives single items, and so does a loader that does not batch them.
        single = has_positions(images) or (isinstance(images, DataLoader) and images.batch_sampler is None)
        for item in _items(images):
            yield from [image_of(item)] if single else _batch(item, "an image")


def _items(images: Any) -> Iterator[Any]:
    endless = isinstance(images, itertools.count | itertools.cycle)
    checks.refuse(endless, f"images is a {type(images).__name__}, which never ends; cut it with itertools.islice.")
    # A map-style data set need not stop an iteration by IndexError, so its length is what counts.
    if has_positions(images):
        return (item_at(images, index) for index in range(len(images)))
    try:
        return iter(images)
    except TypeError as error:
        raise InputError(
            f"images is a {type(images).__name__}; expected a tensor, an array, a Dataset, batches or a path."
        ) from error


def has_positions(images: Any) -> bool:
    """Whether this is a map-style data set with a length: torch's, or what behaves like it and is no iterable."""
    if isinstance(images, IterableDataset | type) or not (isinstance(images, Sized) and hasattr(images, "__getitem__")):
        return False
    return isinstance(images, Dataset) or not isinstance(images, Iterable)


def _batch(item: Any, name: str) -> Iterator[Tensor]:
    """The images of what may be a batch."""
    item = list(item) if isinstance(item, np.ndarray) and item.dtype == object and item.ndim == 1 else item
    if not _is_record(item) or _axes(item) <= 3:
        yield image_of(item, name)
        return
    fields = _fields(item)
    found = _images_among(fields, least=3)
    if isinstance(item, list) and len(found) == len(item) and all(_axes(field) == 3 for field in item):
        for field in item:
            yield image_of(field, name)
        return
    checks.refuse(len(found) != 1, _several(item, name))
    ((key, field),) = found.items()
    if isinstance(field, tuple) and _axes(field) > 3:  # what zip(*items) makes: (images, labels), each a tuple
        lengths = [_length(beside) for other, beside in fields.items() if other != key]
        checks.refuse(len(field) not in lengths, _several(field, name))
        field = [*field]
    yield from _batch(field, name)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, Sized) and getattr(value, "ndim", 1) > 0 else None


def _several(item: Any, name: str) -> str:
    return (
        f"{name} is a {type(item).__name__} of {len(item)} images or batches, which could be one and its targets, or a "
        "batch; give (image, label) for each image, or a batch as one tensor (B, C, H, W) or as a list of images."
    )


# ---- by position ------------------------------------------------------------------------------------------------


def by_position(images: Any, name: str = "images") -> Any:
    """What gives the same images by position, 0 to len − 1: a tensor, an array, or anything with a length and items.

    A path is read (`read_images`), a dict of columns stands for its images, and a DataLoader for its data set where it
    gives just that. Raises InputError, with `name`, for streams, and for loaders that shuffle, choose or change.
    """
    if isinstance(images, str | os.PathLike):
        return read_images(images)
    if isinstance(images, DataLoader):
        return _data_set(images, name)
    if isinstance(images, Mapping):
        return by_position(_column(images), name)
    if isinstance(images, np.ndarray) and images.dtype == object and images.ndim == 1:
        return [*images]
    wanted = f"{name} must be a tensor, an array or a Dataset with a length, but got"
    checks.refuse(isinstance(images, type), f"{wanted} the class {getattr(images, '__name__', '')}; give an instance.")
    stream = isinstance(images, IterableDataset | Iterator) or not isinstance(images, Sized | Dataset)
    if stream and isinstance(images, Iterable):
        raise InputError(
            f"{wanted} {type(images).__name__}, which is read in passing; collect its images first: list(images)."
        )
    checks.refuse(not isinstance(images, Sized), f"{wanted} {type(images).__name__}.")
    no_order = f"{name} is a {type(images).__name__}, which has no order; give a list, an array or a Dataset."
    checks.refuse(not hasattr(images, "__getitem__"), no_order)
    return images


def stacked(images: Any, name: str = "images") -> Tensor | Any:
    """All images as one tensor (M, C, *spatial), where they are not numbers in one array already."""
    first = images
    while isinstance(first, list | tuple) and len(first):
        first = first[0]
    if isinstance(images, Tensor | np.ndarray) or isinstance(first, int | float):
        return images
    source = by_position(images, name)
    checks.refuse(len(source) == 0, f"{name} is empty; give at least one image.")
    found = [image_of(item_at(source, index), f"item {index} of {name}") for index in range(len(source))]
    shapes = sorted({tuple(image.shape) for image in found})
    checks.refuse(len(shapes) > 1, f"{name} have shapes {checks.listing(shapes)}; all must share one: resize them.")
    return torch.stack(found)


def item_at(images: Any, index: int) -> Any:
    """An item by position; InputError where the data set has fewer than it says."""
    try:
        return images[index]
    except (LookupError, NotImplementedError) as error:
        raise InputError(
            f"images has a length of {len(images)}, but gives no item {index} ({error!r}); correct the data set."
        ) from error


def _data_set(loader: DataLoader[Any], name: str) -> Any:
    batches, dataset = loader.batch_sampler, loader.dataset
    wrong = ""
    if isinstance(dataset, IterableDataset):
        wrong = "reads a stream"
    elif type(loader.sampler) is not SequentialSampler or not (batches is None or type(batches) is BatchSampler):
        wrong = "shuffles or chooses its images"
    elif loader.collate_fn not in (default_collate, default_convert):
        wrong = "has a collate_fn of its own"
    elif loader.drop_last and len(dataset) % (loader.batch_size or 1):  # type: ignore[arg-type]
        wrong = "drops the last batch"
    if wrong:
        raise InputError(
            f"{name} is a DataLoader that {wrong}, but position i must mean the same image in every read; give its "
            "data set, or the images as one tensor."
        )
    return by_position(dataset, name)


def _column(columns: Mapping[Any, Any]) -> Any:
    """The images in a dict of columns, such as a slice of a data set's rows."""
    found = _images_among(columns, least=4)
    if len(found) != 1:
        raise InputError(
            f"images is a {type(columns).__name__} with {checks.listing([*columns]) or 'nothing in it'}, of which not "
            "just one is a batch of images; give the one that is meant."
        )
    return next(iter(found.values()))


def _refuse_dict(item: Any, name: str) -> None:
    if isinstance(item, Mapping):
        raise InputError(
            f"{name} is a {type(item).__name__} with {checks.listing([*item])}, none of which is a decoded image; give "
            'tensors, arrays or PIL images, such as {"image": …}.'
        )
