"""Whether a set of images is in an order: whether ten successive parts of it differ by more than chance.

A table of the first images of an ordered set is not one of the rest, whatever its error bars say, and nothing but the
images can tell. The parts are compared in brightness (the mean of each channel) and contrast (the mean squared
deviation from the mean image): one-way analysis of variance, with no network, on one pass over the data.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc

Float64Array = npt.NDArray[np.float64]

_PARTS = 10
_LEAST_IN_A_PART = 8
_CHANCE = 1e-4  # of a warning where the order is random
_SHARE = 0.01  # of the variance between images that must lie between the parts: less does not matter


def differing_parts(facts: Float64Array) -> Float64Array | None:
    """(P, F) means of the parts where any of the F facts of the images, (N, F), differs between them, or None."""
    count, kinds = facts.shape
    if count < _PARTS * _LEAST_IN_A_PART:
        return None
    parts = np.array_split(facts, _PARTS)
    means, sizes = np.stack([part.mean(0) for part in parts]), np.array([len(part) for part in parts])
    between = sizes @ (means - facts.mean(0)) ** 2 / (_PARTS - 1)
    within = np.maximum(sum(((part - part.mean(0)) ** 2).sum(0) for part in parts) / (count - _PARTS), 1e-300)
    share = (_PARTS - 1) * (between - within) / ((_PARTS - 1) * between + (count - _PARTS + 1) * within)
    chance = kinds * fdtrc(_PARTS - 1, count - _PARTS, between / within)
    return means if ((chance < _CHANCE) & (share > _SHARE)).any() else None


def order_warning(facts: Float64Array) -> str | None:
    """One sentence about a set in an order; the last of `facts` is the contrast. None where it is in none."""
    means = differing_parts(facts)
    if means is None:
        return None
    contrast = np.sqrt(np.maximum(means[:, -1], 0.0))
    return (
        f"the images are in an order: {_PARTS} successive parts of them differ in brightness or contrast by more than "
        f"chance (contrast {contrast.min():.3g} to {contrast.max():.3g}); if they are a part of a larger set, choose "
        "them from it at random, since a table of the first images does not hold for the rest."
    )
