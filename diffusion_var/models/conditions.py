"""Which condition goes with which draw of the estimator.

A conditional network's mean depends on its condition, so that the variance is an average over conditions too: over the
images' own (labels, captions), or over a list of them drawn at random beside the images. With a list, image and
condition are independent: the right average only where the condition says little of the image, and for guided
text-to-image models without captions the best that can be had.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .guidance import condition_tensor


@dataclass(frozen=True, eq=False)
class Conditions:
    """A list of conditions, and which of them each image has.

    Args:
        values: (P, …) class labels (whole numbers) or embeddings, as the network takes them.
        of_image: (M,) position in `values` of each image's condition; None: drawn at random for every draw.

    Raises InputError for an empty list and positions outside it.
    """

    values: Any
    of_image: Any = None

    def __post_init__(self) -> None:
        values = condition_tensor(self.values).detach().cpu()
        values = values if values.is_floating_point() else values.long()
        if values.ndim == 0 or len(values) == 0:
            raise InputError(f"conditions have shape {tuple(values.shape)}, but a list of at least one is expected.")
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise InputError("conditions hold NaN or infinite values.")
        object.__setattr__(self, "values", values)
        if self.of_image is None:
            return
        positions = np.asarray(self.of_image)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise InputError(
                f"of_image must be one whole number per image, but it has shape {positions.shape} and dtype "
                f"{positions.dtype}."
            )
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(values):
            raise InputError(
                f"of_image holds positions from {positions.min()} to {positions.max()}, but there are {len(values)} "
                "conditions."
            )
        object.__setattr__(self, "of_image", positions.astype(np.int64))

    def pick(self, images: npt.NDArray[np.int64], stream: np.random.Generator) -> npt.NDArray[np.int64]:
        """Positions of the conditions for these draws; `stream` is used only where they are drawn at random."""
        if self.of_image is None:
            return stream.integers(len(self.values), size=len(images))
        picked: npt.NDArray[np.int64] = self.of_image[images]
        return picked

    def part(self, images: npt.NDArray[np.int64]) -> Conditions:
        """Those of some of the images, in their order."""
        return Conditions(self.values, None if self.of_image is None else self.of_image[images])

    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """(len, …) conditions, on the CPU."""
        taken: torch.Tensor = self.values[torch.from_numpy(positions)]
        return taken

    def origin(self) -> dict[str, Any]:
        """What a table remembers of its conditions."""
        used = self._used()
        how = "drawn at random" if self.of_image is None else "each image's own"
        return {"count": len(set(used)), "how": how, "fingerprint": self.fingerprint}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the conditions in the images' order (or of the list that they are drawn from): the same however
        they are given."""
        kind = b"random" if self.of_image is None else b"own"
        return hashlib.sha256(kind + b"".join(self._used())).hexdigest()

    def _used(self) -> list[bytes]:
        """A digest of each image's condition, or of each in the list."""
        values = self.values.float() if self.values.is_floating_point() else self.values
        each = [hashlib.sha256(np.ascontiguousarray(value.numpy()).tobytes()).digest() for value in values]
        return each if self.of_image is None else [each[i] for i in self.of_image]


def as_conditions(conditions: Any, images: int) -> Conditions | None:
    """None, a `Conditions`, or one condition per image as a tensor, an array or a list; checked against the number of
    images."""
    if conditions is None:
        return None
    if isinstance(conditions, Conditions):
        given = conditions
    else:
        values = condition_tensor(conditions)
        given = Conditions(values, np.arange(len(values) if values.ndim else 0))
    if given.of_image is not None and len(given.of_image) != images:
        raise InputError(f"conditions has {len(given.of_image)} entries for {images} images; give one for each.")
    return given
