"""Bounds of several covariances and step lists on the same images and noise, from shared network evaluations.

A bound's terms at a level need the posterior there and nothing else, and all methods have the same noise at the same
index. So the union of their indices is evaluated once, and every method's terms are taken from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from ..checks import Range
from ..data.fixed_images import FixedImages
from ..likelihood.bound import Bound
from ..likelihood.run import FORM, BoundRun
from ..likelihood.terms import BoundTerms, Evaluation
from ..models.conditions import Conditions
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.schedule import Float64Array
from ..resume import Checkpoint


class SharedTerms(BoundTerms):
    """The terms of several bounds at once: column 0 is the prior's, then each bound's own, one after the other.

    Args:
        bounds: of one denoiser; their paths all end at the same index.
    """

    def __init__(self, bounds: Sequence[Bound]) -> None:
        starts = np.cumsum([0, *(len(bound.kernels) for bound in bounds)])
        self.columns = int(starts[-1]) + 1
        #: Of each bound: the columns that add up to it, without the prior's.
        self.parts = [slice(int(a) + 1, int(b) + 1) for a, b in pairwise(starts)]
        self._own: dict[float, list[tuple[Bound, Evaluation]]] = {}
        merged: dict[float, Evaluation] = {}
        for bound, start in zip(bounds, starts, strict=False):
            for own in bound.terms.evaluations:
                key = own.level.log_snr
                self._own.setdefault(key, []).append((bound, own))
                before = merged.get(key, Evaluation(own.level))
                merged[key] = Evaluation(
                    own.level,
                    before.steps + tuple((int(start) + column, kernel) for column, kernel in own.steps),
                    before.decoders + tuple((int(start) + column, *rest) for column, *rest in own.decoders),  # type: ignore[misc]
                )
        noisiest_first = [merged[key] for key in sorted(merged)]
        super().__init__(bounds[0].denoiser, noisiest_first, bounds[0].terms.covariances)

    def at(self, evaluation: Evaluation, x_0: torch.Tensor, eps: torch.Tensor, posterior: Posterior) -> torch.Tensor:
        steps, decoders = [], []
        for bound, own in self._own[evaluation.level.log_snr]:
            found = bound.terms.at(own, x_0, eps, posterior)
            steps.append(found[:, : len(own.steps)])
            decoders.append(found[:, len(own.steps) :])
        return torch.cat([*steps, *decoders], dim=1)


def shared_bits(
    denoiser: Denoiser,
    bounds: Sequence[Bound],
    images: torch.Tensor,
    conditions: Conditions | None,
    groups: int,
    seed: int,
    batch_size: int,
    data_range: Range | None,
    told: Callable[[int], object],
) -> Float64Array:
    """(groups, bounds) bits/dim: each bound's mean over a group of the images; group g are the images g, g + groups, ….

    Args:
        images: (M, C, *spatial), in the data range.
        told: is given the evaluations of each group.
    """
    terms = SharedTerms(bounds)
    bits = 1.0 / (math.log(2.0) * math.prod(denoiser.shape))
    out = []
    for g in range(groups):
        part = np.arange(g, len(images), groups)
        run = BoundRun(
            terms,
            FixedImages(images[torch.from_numpy(part)], denoiser.shape, data_range),
            None if conditions is None else conditions.part(part),
            terms.columns,
            bounds[0].kernels[0].level_t,
            seed * groups + g,  # images of another group have noise of their own
            1,
            batch_size,
        )
        run.finish(Checkpoint(None, FORM, {}), progress=False)
        mean = run.moments.mean
        out.append([(mean[0] + mean[columns].sum()) * bits for columns in terms.parts])
        told(len(part) * run.per_image)
    return np.array(out)


def evaluations_of(bounds: Sequence[Bound]) -> int:
    """Network evaluations of one image for all of these."""
    return len({evaluation.level.log_snr for bound in bounds for evaluation in bound.terms.evaluations})
