"""One pass over images for terms of the likelihood bound: batches, random numbers, sums, and where it was interrupted.

Images are taken in chunks. Within a chunk the wanted (draw, index, image) triples are sorted by index and cut into
batches of one size, so that the network is always full. Every random number comes from (seed, purpose, image,
draw, index): methods that are compared see the same noise. Memory does not grow with the number of images.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from ..array_rules import ArrayRule, Rules
from ..checks import refuse
from ..data.fixed_images import FixedImages
from ..documents import Form
from ..errors import NumericalError
from ..models.conditions import Conditions
from ..models.network_run import NetworkRun
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..progress import progress_bar
from ..randomness import Streams, generator
from ..resume import ANEW, Checkpoint, State, StateRecord
from .terms import BoundTerms, Evaluation, prior_kl

_CHUNK = 64  # images whose terms are held at once: whatever the batch size, so that it may change on resuming
IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class StateOfRun(StateRecord):
    """Where a pass is: whole images done, the rows done of the present chunk, and the noise's variance so far."""

    count: Annotated[int, Field(ge=0)]
    rows_done: Annotated[int, Field(ge=0)]
    noise_variance: Annotated[float, Field(ge=0)]


FORM = Form("diffusion_var.likelihood_checkpoint", 1, "likelihood checkpoint", StateOfRun, remedy=ANEW)


class RunningMoments:
    """Mean and sum of squared deviations of rows that come in chunks (Chan et al. 1979); float64, constant memory."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)

    def add(self, rows: Float64Array) -> None:
        """Merge rows (M, width)."""
        mean = rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        count, shift = self.count + len(rows), mean - self.mean
        self.squares += squares + shift**2 * (self.count * len(rows) / count)
        self.mean += shift * (len(rows) / count)
        self.count = count

    @property
    def standard_error(self) -> Float64Array:
        """(width,) of the mean; nan for fewer than two rows."""
        if self.count < 2:
            return np.full_like(self.mean, math.nan)
        return np.asarray(np.sqrt(self.squares / (self.count - 1) / self.count))


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


class BoundRun:
    """The state of one pass.

    Args:
        terms: what to compute.
        images: the images, in the data range.
        conditions: of the images, or None.
        columns: number of terms of an image; column 0 is the prior's if `prior` is given.
        prior: the level at which the prior's term is taken, or None.
        seed, draws, batch_size: see `bits_per_dim`.
        step_samples: how many of the middle evaluations are made for an image and draw; None: all.
    """

    def __init__(
        self,
        terms: BoundTerms,
        images: FixedImages,
        conditions: Conditions | None,
        columns: int,
        prior: NoiseLevel | None,
        seed: int,
        draws: int,
        batch_size: int,
        step_samples: int | None = None,
    ) -> None:
        self.terms, self.images, self.conditions, self.prior = terms, images, conditions, prior
        self.seed, self.draws, self.batch_size = seed, draws, batch_size
        if conditions is not None:
            conditions.check(terms.denoiser.classes)
        self.strata = None if step_samples is None else strata_of(terms.evaluations[:-1], step_samples)
        self.per_image = draws * (len(terms.evaluations) if self.strata is None else len(self.strata) + 1)
        # The sums over the chunks done, the last entry that of whole images; and the place in the present chunk.
        self.moments = RunningMoments(columns + 1)
        self.noise_variance = 0.0
        self.values = np.zeros((draws, min(_CHUNK, len(images)), columns))
        self.rows_done = 0
        self._network = NetworkRun(terms.denoiser)
        self._streams = Streams()
        schedule = terms.denoiser.schedule
        self._keys = [noise_key(schedule, evaluation.level) for evaluation in terms.evaluations]

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint, progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything; it is left in place."""
        with checkpoint.restoring(self._rules()) as saved:
            if saved is not None:
                self._continue_from(*saved)
        total = len(self.images) * self.per_image
        with (
            checkpoint.keeping(self._state),
            self._network,
            progress_bar(total, "likelihood", "eval", progress) as bar,
        ):
            bar.update(self.moments.count * self.per_image)
            for start in range(self.moments.count, len(self.images), _CHUNK):
                self._chunk(np.arange(start, min(start + _CHUNK, len(self.images))), checkpoint, bar)

    def _chunk(self, numbers: IntArray, checkpoint: Checkpoint, bar: Any) -> None:
        x_0 = self.images.take(numbers).to(self.terms.denoiser.device)
        rows = self._rows(numbers)
        bar.update(self.rows_done)
        while self.rows_done < len(rows):
            batch = rows.take(slice(self.rows_done, self.rows_done + self.batch_size))
            self._evaluate(batch, numbers, x_0)
            self.rows_done += len(batch)
            bar.update(len(batch))
            if checkpoint.due():
                checkpoint.save(self._state())
        if self.prior is not None:
            std = self.terms.denoiser.schedule.prior_std_at(self.prior)
            found = prior_kl(x_0, self.prior.alpha, self.prior.sigma, std)
            self.values[:, : len(numbers), 0] = found.cpu().numpy()
        with checkpoint.changing():
            self._merge(len(numbers))

    def _merge(self, count: int) -> None:
        """The chunk at hand into the sums."""
        values = self.values[:, :count]
        whole = values.sum(-1, keepdims=True)
        self.moments.add(np.concatenate([values, whole], -1).mean(0))
        if self.draws > 1:
            self.noise_variance += float(whole.var(0, ddof=1).sum())
        self.values[...] = 0.0
        self.rows_done = 0

    def _state(self) -> State:
        arrays = {"mean": self.moments.mean, "squares": self.moments.squares, "values": self.values}
        place = {"count": self.moments.count, "noise_variance": self.noise_variance, "rows_done": self.rows_done}
        return arrays, place

    def _rules(self) -> Rules:
        """What the arrays of this run's checkpoint must be like."""
        columns, values = self.moments.mean.shape, self.values.shape
        return {
            "mean": ArrayRule("float64", columns),
            "squares": ArrayRule("float64", columns, least=0.0),
            "values": ArrayRule("float64", values),
        }

    def _continue_from(self, arrays: dict[str, npt.NDArray[Any]], place: StateOfRun) -> None:
        total, mean = len(self.images), arrays["mean"]
        left = min(_CHUNK, total - place.count)
        wrong = place.count > total or (place.count % _CHUNK != 0 and place.count != total)
        refuse(wrong, f"it says that {place.count} of {total} images are done")
        wrong = place.rows_done > left * self.per_image
        refuse(wrong, f"it says that {place.rows_done} evaluations of a chunk of {left * self.per_image} are done")
        wrong = not np.isclose(mean[:-1].sum(), mean[-1], rtol=1e-6, atol=1e-6)
        refuse(wrong, "its terms do not add up to its bound")
        terms = np.delete(mean[:-1], self.terms.signed_columns())
        refuse(bool((terms < -1e-6).any()), f"it holds the divergence {terms.min():.3g}" if terms.size else "")
        self.moments.count, self.noise_variance = place.count, place.noise_variance
        self.moments.mean, self.moments.squares = mean.copy(), arrays["squares"].copy()
        self.values, self.rows_done = arrays["values"].copy(), place.rows_done

    @property
    def noise_error(self) -> float:
        """Standard error of the mean over these images, from the spread over draws; nan for one draw."""
        if self.draws < 2:
            return float("nan")
        return float(np.sqrt(self.noise_variance / self.draws)) / self.moments.count

    # ---- one batch --------------------------------------------------------------------------------------------

    def _rows(self, numbers: IntArray) -> Rows:
        """All evaluations of a chunk, sorted by place."""
        count = len(self.terms.evaluations)
        every = np.arange(count), np.ones(count)
        draws, places, images, weights = [], [], [], []
        for draw in range(self.draws):
            for image, number in enumerate(numbers):
                picked, weight = every if self.strata is None else self._choose(int(number), draw)
                draws.append(np.full(len(picked), draw))
                places.append(picked)
                images.append(np.full(len(picked), image))
                weights.append(weight)
        rows = Rows(*(np.concatenate(parts) for parts in (draws, places, images, weights)))
        return rows.take(np.argsort(rows.places, kind="stable"))

    def _choose(self, image: int, draw: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """One evaluation of each stratum, weighted by the stratum's size; and always the last."""
        assert self.strata is not None
        stream = generator(self.seed, "likelihood steps", image, draw)
        picked = [int(stratum[stream.integers(len(stratum))]) for stratum in self.strata]
        sizes = [float(len(stratum)) for stratum in self.strata]
        return np.array([*picked, len(self.terms.evaluations) - 1]), np.array([*sizes, 1.0])

    @torch.inference_mode()
    def _evaluate(self, batch: Rows, numbers: IntArray, chunk: torch.Tensor) -> None:
        denoiser, evaluations = self.terms.denoiser, self.terms.evaluations
        where = self._where(batch)
        x_0, eps = chunk[torch.from_numpy(batch.images)], self._noise(batch, numbers)
        alpha, sigma = denoiser.schedule.coefficients(where, x_0)
        posterior = self._network(alpha * x_0 + sigma * eps, where, self._condition(batch, numbers))
        # Clipping and the tails of the decoder would hide an infinite output.
        finite = torch.isfinite(posterior.eps).flatten(1).all(1).cpu().numpy()
        for k in np.unique(batch.places):
            found = np.flatnonzero(batch.places == k)
            part = slice(int(found[0]), int(found[-1]) + 1)  # sorted by place
            values = self.terms.at(evaluations[k], x_0[part], eps[part], posterior.rows(part)).numpy()
            values[~finite[part]] = np.nan
            rows, columns = batch.take(part), np.array([column for column, _ in evaluations[k].terms])
            self._refuse_nan(values, int(k), numbers[rows.images])
            self.values[rows.draws[:, None], rows.images[:, None], columns] = values * rows.weights[:, None]

    def _where(self, batch: Rows) -> Any:
        """The levels of a batch, as a denoiser takes them: indices (B,) where all are on its grid, else levels."""
        levels = [self.terms.evaluations[k].level for k in batch.places]
        indices = [self.terms.denoiser.schedule.index_of(level) for level in levels]
        return levels if None in indices else torch.tensor(indices)

    def _noise(self, batch: Rows, numbers: IntArray) -> torch.Tensor:
        shape = self.terms.denoiser.shape
        out = np.empty((len(batch), *shape), dtype=np.float32)
        for row, draw, k, image in zip(out, batch.draws, batch.places, numbers[batch.images], strict=True):
            stream = self._streams.at(self.seed, "likelihood noise", image, draw, self._keys[k])
            stream.standard_normal(out=row, dtype=np.float32)
        return torch.from_numpy(out).to(self.terms.denoiser.device)

    def _condition(self, batch: Rows, numbers: IntArray) -> Any:
        """Of each row; one drawn at random is the same at all steps of an image and draw."""
        if self.conditions is None:
            return None
        picked = [
            self.conditions.pick(numbers[[i]], self._streams.at(self.seed, "likelihood condition", numbers[i], draw))
            for draw, i in zip(batch.draws, batch.images, strict=True)
        ]
        return self.conditions.take(np.concatenate(picked), self.terms.denoiser.device)

    def _refuse_nan(self, values: npt.NDArray[np.float64], k: int, images: IntArray) -> None:
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            kernel = self.terms.evaluations[k].terms[column][1]
            raise NumericalError(
                f"the term of the step {kernel} is {values[row, column]} for image {images[row]}; check the network's "
                "weights and precision, and the covariance."
            )


def noise_key(schedule: NoiseSchedule, level: NoiseLevel) -> int:
    """What tells the noise of a level from that of others: its index, or off the grid the bits of its log SNR."""
    index = schedule.index_of(level)
    return index if index is not None else int.from_bytes(struct.pack("<d", level.log_snr), "little")
