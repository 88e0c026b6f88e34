"""Sheets of images: rows with labels, each pixel of an image a square of whole pixels."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..plots import DPI, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pixels that an image is enlarged to, at least, each of its own becoming a whole number of them.
_SIDE = 64
_LABEL = 230  # pixels of the labels
_GAP, _MOST = 4, 10  # pixels between images; images in a row


def picture_sheet(rows: Sequence[tuple[str, npt.NDArray[np.uint8]]], slanted: int = 0) -> Figure:
    """One row for each label and its images, (N, C, H, W) uint8, C = 1 or 3; smaller images are enlarged to the others.

    Args:
        slanted: how many of the first labels are set in italics: those of what is given, not made.
    """
    from matplotlib.figure import Figure

    columns = min(min(len(images) for _, images in rows), _MOST)
    height, width = (max(images.shape[axis] for _, images in rows) for axis in (2, 3))
    factor = max(1, -(-_SIDE // max(height, width)))
    across, down = width * factor + _GAP, height * factor + _GAP
    figure = Figure(figsize=((_LABEL + columns * across) / DPI, len(rows) * down / DPI), dpi=DPI)
    for r, (label, images) in enumerate(rows):
        bottom = (len(rows) - 1 - r) * down
        figure.text(
            (_LABEL - 8) / (_LABEL + columns * across),
            (bottom + down / 2) / (len(rows) * down),
            "\n".join(wrap(plain(label), 34)[:3]),
            ha="right",
            va="center",
            fontsize=8,
            style="italic" if r < slanted else "normal",
        )
        own = max(min(height * factor // images.shape[2], width * factor // images.shape[3]), 1)
        for column, image in enumerate(images[:columns]):
            shown = image.repeat(own, axis=1).repeat(own, axis=2).transpose(1, 2, 0)
            shown = shown[..., 0] if shown.shape[2] == 1 else shown[..., :3]
            figure.figimage(shown, _LABEL + column * across, bottom + _GAP, cmap="gray", vmin=0, vmax=255)
    return figure
