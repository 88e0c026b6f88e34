"""Where images come from, by file, name or tensor. Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_of

if TYPE_CHECKING:
    from .digits import digits_splits as digits_splits
    from .images import read_images as read_images
    from .images import save_images as save_images
    from .images import save_npz as save_npz
    from .images import to_float as to_float
    from .images import to_uint8 as to_uint8
    from .names import open_images as open_images
    from .photographs import photographs_part as photographs_part

_HOMES = {
    "digits_splits": ".digits",
    "open_images": ".names",
    "photographs_part": ".photographs",
    "read_images": ".images",
    "save_images": ".images",
    "save_npz": ".images",
    "to_float": ".images",
    "to_uint8": ".images",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = names_of(__name__, _HOMES)
