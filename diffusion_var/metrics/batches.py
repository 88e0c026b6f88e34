"""Images cut into batches, and which of the batches a process takes.

Whatever holds images, in one process or many the batches are the same, and a process takes every one whose turn it is:
batch i in process i mod P. A data set's images are read by the process that takes them; streams and loaders, which
cannot be read by position, pass in every process whole.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.containers import has_positions, image_of, in_passing, item_at
from ..errors import InputError
from ..parallel import Team

#: Bytes of pixels that a process holds before it hands them over.
_AT_ONCE = 8 << 20
_MOST = 256  # batches at once

Numbered = Iterator[tuple[int, Tensor]]


def own_batches(images: Any, batch_size: int, team: Team) -> Iterator[Numbered]:
    """The batches that this process takes, with their numbers, in stretches after each of which all meet.

    As many stretches as in every other process; each is to be run through. In one process a stretch is a batch. Raises
    InputError, in every process, where streams differ.
    """
    if _is_by_position(images):
        yield from _read(images, batch_size, team)
    else:
        yield from _passing(images, batch_size, team)


def facts(images: Any) -> dict[str, Any]:
    """What all processes must agree on of images by position: how many, and the first one."""
    if not _is_by_position(images):
        return {}
    return {"number of images": len(images), "first image": None if len(images) == 0 else _digest(_first(images))}


def batches(images: Any, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, C, H, W), B ≤ `batch_size`, from anything that gives images (C, H, W) or batches (B, C, H, W)."""
    single: list[Tensor] = []
    for image in in_passing(images, batch_size):
        if image.ndim not in (3, 4) or _channels_last(image.shape[-3:]):
            last = "; its channels are last: permute it" if image.ndim in (3, 4) else ""
            raise InputError(
                f"an image has shape {tuple(image.shape)}; expected (C, H, W), or (B, C, H, W) for a batch{last}."
            )
        if image.ndim == 4:
            yield from (part for part in torch.split(image, batch_size) if len(part))
            continue
        if single and image.shape != single[0].shape:
            raise InputError(
                f"images have shapes {tuple(single[0].shape)} and {tuple(image.shape)}; all must share one: resize "
                "them, and give all of them the same channels."
            )
        single.append(image)
        if len(single) == batch_size:
            yield torch.stack(single)
            single = []
    if single:
        yield torch.stack(single)


def _read(images: Any, batch_size: int, team: Team) -> Iterator[Numbered]:
    """Of images by position; batch i are those from i·`batch_size` on."""
    count = -(-len(images) // batch_size)
    team.tell_idle(count, "batches of images")
    stretch = team.count * _at_once(_first(images) if count and team.count > 1 else None, batch_size)
    for start in range(0, count, stretch):
        mine = range(start + team.rank, min(start + stretch, count), team.count)
        yield ((i, batch) for i in mine for batch in batches(_part(images, i * batch_size, batch_size), batch_size))


def _passing(images: Any, batch_size: int, team: Team) -> Iterator[Numbered]:
    """Of a stream, of which every process must see the same."""
    numbered, seen = enumerate(batches(images, batch_size)), hashlib.sha256()
    while stretch := list(itertools.islice(numbered, team.count)):
        if team.count > 1:
            seen.update("".join(_digest(batch) for _, batch in stretch).encode())
            team.agree({"images": f"{len(stretch)} batches, {seen.hexdigest()[:12]}"}, "collect")
        yield ((i, batch) for i, batch in stretch if i % team.count == team.rank)
    team.agree({"images": "all seen"}, "collect")


def _is_by_position(images: Any) -> bool:
    if isinstance(images, Tensor | np.ndarray):
        return images.ndim == 4 and images.dtype != object
    return has_positions(images)


class _Part(Dataset[Any]):
    """Some images of a data set, from `start` on."""

    def __init__(self, images: Any, start: int, size: int) -> None:
        self._images, self._range = images, range(start, min(start + size, len(images)))

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Any:
        return item_at(self._images, self._range[index])


def _part(images: Any, start: int, size: int) -> Any:
    return images[start : start + size] if isinstance(images, Tensor | np.ndarray) else _Part(images, start, size)


def _first(images: Any) -> Tensor:
    return image_of(images[:1] if isinstance(images, Tensor | np.ndarray) else item_at(images, 0))


def _at_once(image: Tensor | None, batch_size: int) -> int:
    """How many batches of such images a process takes before all meet."""
    return 1 if image is None else min(max(_AT_ONCE // max(image.numel() * batch_size, 1), 1), _MOST)


def _digest(image: Tensor) -> str:
    pixels = image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + pixels.tobytes()).hexdigest()


def _channels_last(shape: Sequence[int]) -> bool:
    """Whether (C, H, W) is (H, W, C): no picture is 1 or 3 wide and has other than 1, 3 or 4 channels."""
    return shape[0] not in (1, 3, 4) and shape[2] in (1, 3)
