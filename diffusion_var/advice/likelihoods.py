"""Bounds of several covariances and step lists on the same images and noise, from shared network evaluations.

A bound's terms at a level need the posterior there and nothing else, and all methods have the same noise at the same
index. So the union of their indices is evaluated once, and every method's terms are taken from it. What follows of them
is `Likelihood`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from ..checks import Range
from ..covariance.analytic import Analytic
from ..covariance.fixed import FixedLarge, FixedSmall
from ..data.fixed_images import FixedImages
from ..likelihood.bound import Bound
from ..likelihood.decoder_costs import DecoderCosts
from ..likelihood.run import FORM, BoundRun
from ..likelihood.terms import BoundTerms, Evaluation
from ..likelihood.trajectories import optimal
from ..models.conditions import Conditions
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process import steps as step_lists
from ..process.schedule import Float64Array
from ..resume import Checkpoint
from ..variance.table import VarianceTable
from .advice import Bits, Likelihood
from .distances import Difference, difference

STRUCTURES = ("isotropic", "pixel", "dct")  # simple ones first
_FIXED = {"β̃": FixedSmall, "β": FixedLarge}
#: What needs no table, and what has its path alone.
_WITHOUT = tuple(f"{sign}, {steps} steps" for sign in _FIXED for steps in ("even", "log-SNR"))
_ON_PATH = tuple(f"{sign}, optimal steps" for sign in _FIXED)


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
                    before.decoders
                    + tuple((int(start) + column, kernel, decoder) for column, kernel, decoder in own.decoders),
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


# ---- what is compared -----------------------------------------------------------------------------------------------


def compared_bounds(
    denoiser: Denoiser, table: VarianceTable, decoders: DecoderCosts, k: int, levels: int | None
) -> list[tuple[str, int, Bound]]:
    """What is compared at one number of steps: (name, K, bound); those that need no table first."""
    snr = step_lists.log_snr(denoiser.schedule, k)
    paths = {s: optimal(table, k, structure=s, decoder_variance=decoders, levels=levels) for s in STRUCTURES}
    out = []
    for sign, fixed in _FIXED.items():
        out += [
            (f"{sign}, even steps", Bound(denoiser, fixed(), k, levels=levels)),
            (f"{sign}, log-SNR steps", Bound(denoiser, fixed(), snr, None, decoders.variance(snr[0]), levels=levels)),
            (f"{sign}, optimal steps", Bound(denoiser, fixed(), paths["isotropic"], levels=levels)),
        ]
    for structure in STRUCTURES:
        covariance = Analytic(table, structure=structure)
        name = f"analytic {structure}, optimal steps"
        out.append((name, Bound(denoiser, covariance, paths[structure], levels=levels)))
    return [(name, k, bound) for name, bound in out]


def likelihood_of(
    named: Sequence[tuple[str, int, Bound]], values: Float64Array, steps: Sequence[int], images: int, quantised: bool
) -> Likelihood:
    """What (groups, bounds) bits/dim say."""
    groups, freedom = len(values), len(values) - 1
    rows = tuple(
        Bits(name, k, _first_of(bound), float(column.mean()), float(column.std(ddof=1) / np.sqrt(groups)))
        for (name, k, bound), column in zip(named, values.T, strict=True)
    )
    place = {(row.name, row.steps): i for i, row in enumerate(rows)}

    def gain(without: str, with_it: str, k: int) -> Difference:
        paired = values[:, place[without, k]] - values[:, place[with_it, k]]
        return difference(float(paired.mean()), float(paired.std(ddof=1) / np.sqrt(groups)), freedom)

    structure = _structure(values, place, steps)
    chosen = f"analytic {structure}, optimal steps"

    def least(names: Sequence[str], k: int) -> str:
        return min((rows[place[name, k]] for name in names), key=lambda row: row.value).name

    gains = {k: gain(least(_WITHOUT, k), chosen, k) for k in steps}
    alone = {k: gain(least(_ON_PATH, k), chosen, k) for k in steps}
    paths = {k: tuple(kernel.t or 0 for kernel in reversed(named[place[chosen, k]][2].kernels)) for k in steps}
    unit = "bits/dim" if quantised else "bits/dim of density"
    return Likelihood(unit, structure, rows, gains, alone, paths, images)


def _structure(values: Float64Array, place: dict[tuple[str, int], int], steps: Sequence[int]) -> str:
    """The structure with the best bounds, summed over the numbers of steps; a simpler one where that is not told apart
    from it."""
    totals = {
        s: np.sum([values[:, place[f"analytic {s}, optimal steps", k]] for k in steps], axis=0) for s in STRUCTURES
    }
    best = min(totals, key=lambda s: totals[s].mean())
    for structure in STRUCTURES:
        gap = totals[structure] - totals[best]
        error = float(gap.std(ddof=1) / np.sqrt(len(gap)))
        if not difference(float(gap.mean()), error, len(gap) - 1).told_apart(len(STRUCTURES) - 1):
            return structure
    return best


def _first_of(bound: Bound) -> int:
    index = bound.kernels[-1].t
    return 0 if index is None else index
