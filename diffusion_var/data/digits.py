"""The 1,797 handwritten digits of scikit-learn (UCI optical digits, 8×8 grey, values 0..16), in three fixed parts.

`train` is for denoisers, `table` for variance tables and `score` for likelihoods and FIDs: what is scored was neither
trained on nor measured. The parts are cut from one fixed shuffle, so that each holds every digit in about its share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..randomness import generator

SIZES = {"train": 997, "table": 300, "score": 500}


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64; of the digits (N, 1, 8, 8), 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class DigitsSplits:
    """Three disjoint parts of the digits; together they are all of them."""

    train: Split
    table: Split
    score: Split


def digits_images() -> tuple[Tensor, Tensor]:
    """All digits in scikit-learn's order: images (1797, 1, 8, 8) uint8, 16 scaled to 255, and labels (1797,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(np.asarray(digits.images, dtype=np.float64) * 255 / 16).astype(np.uint8)
    return torch.from_numpy(pixels[:, None]), torch.from_numpy(np.asarray(digits.target, dtype=np.int64))


def digits_splits() -> DigitsSplits:
    """The parts of 997, 300 and 500 images; the same in every run."""
    images, labels = digits_images()
    order = torch.from_numpy(generator(0, "digits split").permutation(len(images)))
    return DigitsSplits(*(Split(images[part], labels[part]) for part in torch.split(order, list(SIZES.values()))))
