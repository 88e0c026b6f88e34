"""One rule for floats outside the data range: they are another range's, and to clamp them would change the images.

Who reads images refuses them; who converts them to 8 bits may clamp, and says so. What rounding alone moves is no
offence: `SLACK` for what stays float, half a level (`ROUNDED`) for what becomes 8 bits anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SLACK = 1e-5  # of the range's width
ROUNDED = 0.5 / 255


@dataclass(frozen=True)
class Outside:
    """The first image with values outside: its place in the batch, its least and greatest value, and the share of all
    values that are outside."""

    index: int
    least: float
    most: float
    share: float


def outside_range(images: torch.Tensor, data_range: tuple[float, float], slack: float = SLACK) -> Outside | None:
    """The first of float images (B, …) with values outside the range, by more than `slack` of its width; or None."""
    if images.numel() == 0:
        return None
    (low, high), slack = data_range, slack * (data_range[1] - data_range[0])
    least, most = (float(end) for end in torch.aminmax(images))
    if low - slack <= least and most <= high + slack:
        return None
    outside = ((images < low - slack) | (images > high + slack)).flatten(1)
    if not outside.any():  # NaN, which others look for
        return None
    index = int(outside.any(1).nonzero()[0])
    least, most = (float(end) for end in torch.aminmax(images[index]))
    return Outside(index, least, most, float(outside.double().mean()))
