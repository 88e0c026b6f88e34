"""The conditions of a sampler's images: one for each, as a nest that is there or made slice by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import checks
from ..errors import InputError
from ..models.conditions import as_nest, batch_of, check_classes, digest_of, map_leaves, rows_of


def facts_of(conditions: Any) -> dict[str, Any]:
    """What tells conditions from others, where they are not made while they are asked for."""
    return {"conditions": conditions.digest if isinstance(conditions, _Rows) else conditions is not None}


class _Rows:
    """A nest of conditions, by slices of the images."""

    def __init__(self, nest: Any) -> None:
        self._nest = nest

    def __getitem__(self, part: slice) -> Any:
        return rows_of(self._nest, part)

    @property
    def digest(self) -> str:
        """Of all of them."""
        return digest_of(self._nest)


def check_conditions(conditions: Any, images: int, classes: int | None) -> Any:
    """What gives the conditions of a slice of the images."""
    if isinstance(conditions, np.ndarray | list | tuple | torch.Tensor | dict):
        nest = as_nest(conditions)
        found = batch_of(nest, what="conditions")
        checks.refuse(found != images, f"conditions has {found} entries for {images} images; give one for each.")
        if classes is not None:  # here, where the look waits for no GPU
            check_classes(map_leaves(lambda leaf: leaf.cpu(), nest), classes)
        return _Rows(nest)
    if not hasattr(conditions, "__len__") or not hasattr(conditions, "__getitem__"):
        raise InputError(
            f"conditions must hold one condition for each image (a tensor, array or list), but got "
            f"{type(conditions).__name__}."
        )
    found = len(conditions)
    checks.refuse(found != images, f"conditions has {found} entries for {images} images; give one for each.")
    return conditions
