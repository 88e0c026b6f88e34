"""Which network evaluations the bound takes of each image, and with which weight: of every step, or of some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..randomness import generator
from .terms import Evaluation

IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Network evaluations, a row each: of which draw, place in the terms' evaluations and image (of the chunk), and the
    weight of its terms."""

    draws: IntArray
    places: IntArray
    images: IntArray
    weights: Float64Array

    def __len__(self) -> int:
        return len(self.places)

    def take(self, part: IntArray | slice) -> Rows:
        """Some of them."""
        return Rows(self.draws[part], self.places[part], self.images[part], self.weights[part])


def strata_of(evaluations: Sequence[Evaluation], count: int) -> list[IntArray]:
    """`count` groups of neighbouring evaluations of one step each, that should cost about the same together.

    What a step costs is guessed: log((1 + SNR_s)/(1 + SNR_t)), twice its KL for data of variance 1. Equal numbers of
    steps would throw the few dear ones next to the data together with many that cost nothing.
    """
    kernels = [evaluation.steps[0][1] for evaluation in evaluations]
    at_s = np.logaddexp(0.0, [kernel.level_s.log_snr for kernel in kernels])
    at_t = np.logaddexp(0.0, [kernel.level_t.log_snr for kernel in kernels])
    share = np.cumsum(at_s - at_t) / np.sum(at_s - at_t)
    cuts = [0, *(int(np.searchsorted(share, k / count)) + 1 for k in range(1, count)), len(kernels)]
    for k in range(1, count):  # none of them empty
        cuts[k] = min(max(cuts[k], cuts[k - 1] + 1), len(kernels) - (count - k))
    return [np.arange(start, stop) for start, stop in pairwise(cuts)]


class RowPlan:
    """Which rows an image has.

    Args:
        evaluations: of the terms; the last is made for every image and draw.
        seed, draws: see `bits_per_dim`.
        step_samples: how many of the others are made for an image and draw; None: all.

    Attribute `per_image`: how many rows an image has.
    """

    def __init__(self, evaluations: Sequence[Evaluation], seed: int, draws: int, step_samples: int | None) -> None:
        self._seed, self._draws, self._count = seed, draws, len(evaluations)
        self._strata = None if step_samples is None else strata_of(evaluations[:-1], step_samples)
        self.per_image = draws * (self._count if self._strata is None else len(self._strata) + 1)

    def rows(self, numbers: IntArray) -> Rows:
        """All rows of these images, sorted by place."""
        every = np.arange(self._count), np.ones(self._count)
        draws, places, images, weights = [], [], [], []
        for draw in range(self._draws):
            for image, number in enumerate(numbers):
                picked, weight = every if self._strata is None else self._choose(self._strata, int(number), draw)
                draws.append(np.full(len(picked), draw))
                places.append(picked)
                images.append(np.full(len(picked), image))
                weights.append(weight)
        rows = Rows(*(np.concatenate(parts) for parts in (draws, places, images, weights)))
        return rows.take(np.argsort(rows.places, kind="stable"))

    def _choose(self, strata: list[IntArray], image: int, draw: int) -> tuple[IntArray, Float64Array]:
        """One evaluation of each stratum, weighted by the stratum's size; and always the last."""
        stream = generator(self._seed, "likelihood steps", image, draw)
        picked = [int(stratum[stream.integers(len(stratum))]) for stratum in strata]
        sizes = [float(len(stratum)) for stratum in strata]
        return np.array([*picked, self._count - 1]), np.array([*sizes, 1.0])
