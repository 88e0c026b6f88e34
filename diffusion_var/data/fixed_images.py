"""A fixed set of images, read by position: where the estimator's x_0 and an autoencoder's inputs come from.

Images are read as they are, without augmentation; reading an item twice must give the same image. Small sets are held
in memory (uint8 stays uint8), large ones are read again when needed.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..errors import InputError, warn
from .containers import by_position, image_of, item_at
from .images import to_float
from .ranges import outside_range

_IN_MEMORY_BYTES = 2 * 1024**3
CHUNK = 256
_AXES = ((), ("L",), ("H", "W"), ("F", "H", "W"))


class FixedImages:
    """Images (C, *spatial), read by position as float32 in the data range.

    Args:
        images: a tensor or array (M, C, *spatial); a Dataset or list of images (C, *spatial), or of records of one,
            such as (image, label) or {"image": …}; a path; see `containers.by_position`. uint8 is mapped from 0…255 to
            the data range; floats must lie in it.
        shape: (C, *spatial) that the denoiser expects.
        data_range: (a, b), or None: floats only, any finite value.

    Raises InputError for an empty source, a wrong shape or type, values outside the range, and data that changes
    from read to read.
    """

    def __init__(self, images: Any, shape: Sequence[int], data_range: tuple[float, float] | None) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.data_range = data_range
        images = by_position(images)
        self._count = _length(images, self.shape)
        self._source = images
        self._memory: torch.Tensor | None = None
        if isinstance(images, (np.ndarray, torch.Tensor)):
            self._memory = _whole_tensor(images)
            self._check_item(self._memory[0], 0)
        else:
            self._refuse_augmentation()
            first = self._item(0)
            if self._count * first.numel() * first.element_size() <= _IN_MEMORY_BYTES:
                self._memory = torch.stack([self._item(i) for i in range(self._count)])

    def __len__(self) -> int:
        return self._count

    @property
    def quantised(self) -> bool:
        """Whether they are 8-bit images."""
        return self._raw(np.zeros(1, dtype=np.int64)).dtype == torch.uint8

    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """The images at these positions, (len, C, *spatial) float32 in the data range, on the CPU."""
        return self.to_float(self._raw(positions))

    def _raw(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        if self._memory is not None:
            return self._memory[torch.from_numpy(positions)]
        return torch.stack([self._item(int(i)) for i in positions])

    def _item(self, i: int) -> torch.Tensor:
        tensor = image_of(item_at(self._source, i), f"item {i} of images", self.shape).detach().cpu()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # NumPy does not know it
        self._check_item(tensor, i)
        return tensor

    def _check_item(self, item: torch.Tensor, i: int) -> None:
        if tuple(item.shape) != self.shape:
            raise InputError(
                f"image {i} has shape {tuple(item.shape)}, but the denoiser expects {self.shape}; "
                "convert or resize the images."
            )
        if item.dtype == torch.uint8:
            if self.data_range is None:
                raise InputError(
                    "images are uint8, but the denoiser has no data range to map them to; "
                    "give it data_range=(a, b) or pass floats."
                )
        elif not item.is_floating_point():
            raise InputError(f"image {i} has dtype {item.dtype}, but uint8 or a floating-point type is expected.")

    def _refuse_augmentation(self) -> None:
        for i in sorted({0, self._count // 2, self._count - 1}):
            # Four reads: a random flip goes unnoticed with probability 1/8 at each position, 1/512 at all three.
            reads = [self._item(i) for _ in range(4)]
            if any(not torch.equal(reads[0], other) for other in reads[1:]):
                raise InputError(
                    f"two reads of image {i} differ, so the data set augments at random, but the estimator needs fixed "
                    "images (its control variates use their exact mean and variance); switch the augmentation off."
                )

    def to_float(self, raw: torch.Tensor) -> torch.Tensor:
        """float32 in the data range."""
        if raw.dtype != torch.uint8 or self.data_range is None:
            return raw.float()
        return to_float(raw, self.data_range)

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All images as they are, as (position of the first, (B, C, *spatial))."""
        for start in range(0, self._count, CHUNK):
            yield start, self._raw(np.arange(start, min(start + CHUNK, self._count)))

    def scan(self, visit: Callable[[torch.Tensor], None] | None = None) -> str:
        """SHA-256 of all images, on a pass that refuses values outside the range; `visit` gets each chunk as floats."""
        content = hashlib.sha256(f"{self._count}{self.shape}".encode())
        low, high = math.inf, -math.inf
        for start, raw in self.chunks():
            content.update(f"{raw.dtype}".encode() + raw.contiguous().numpy().tobytes())
            x = self.to_float(raw)
            self._check_range(x, start)
            low, high = min(low, float(x.min())), max(high, float(x.max()))
            if visit is not None:
                visit(x)
        self._warn_of_half_range(low, high)
        return content.hexdigest()

    def _check_range(self, x: torch.Tensor, start: int) -> None:
        bad = ~torch.isfinite(x).flatten(1).all(1)
        if bad.any():
            raise InputError(f"image {start + int(bad.nonzero()[0])} holds NaN or infinite values; remove it.")
        if self.data_range is None:
            return
        if outside := outside_range(x, self.data_range):
            raise InputError(
                f"image {start + outside.index} has values from {outside.least:.4g} to {outside.most:.4g}, outside the "
                f"data range [{self.data_range[0]:g}, {self.data_range[1]:g}]; scale the images or give the denoiser "
                "their range."
            )

    def _warn_of_half_range(self, low: float, high: float) -> None:
        if self.data_range == (-1.0, 1.0) and low >= 0.0 and high > 0.0:
            warn(
                f"all image values lie between {low:.3g} and {high:.3g} while the data range is [-1, 1]; if they are "
                "scaled to [0, 1], map them to [-1, 1] first."
            )


def _length(images: Any, shape: tuple[int, ...]) -> int:
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim != len(shape) + 1:
        raise InputError(
            f"images must have shape ({', '.join(['M', 'C', *_AXES[len(shape) - 1]])}), but the array has shape "
            f"{tuple(images.shape)}."
        )
    count = len(images)
    checks.refuse(count == 0, "images is empty; give at least one image.")
    return count


def _whole_tensor(images: npt.NDArray[Any] | torch.Tensor) -> torch.Tensor:
    """On the CPU, of a type that NumPy knows too."""
    if isinstance(images, torch.Tensor):
        tensor = images.detach().cpu()
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of read-only arrays (memory-mapped files): they are only read here
            native = images.astype(images.dtype.newbyteorder("="), copy=False)  # torch knows no other byte order
            return torch.as_tensor(native.copy() if min(native.strides, default=0) < 0 else native)
    except TypeError:
        raise InputError(f"images have dtype {images.dtype}, but uint8 or a floating-point type is expected.") from None
