"""One pass over images for terms of the likelihood bound: batches, random numbers, sums, and where it was interrupted.

Images are taken in chunks. Within a chunk the wanted (draw, index, image) triples are sorted by index and cut into
batches of one size, so that the network is always full. Processes that share a pass share the batches of as many chunks
as there are processes, tell each other what they found, and merge the chunks in order: so the sums are those of one
process. Every random number comes from (seed, purpose, image, draw, index): methods that are compared see the same
noise. Memory does not grow with the number of images.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from .. import parallel
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
from ..randomness import Streams
from ..resume import ANEW, Checkpoint, State, StateRecord
from .chunk import Batch, Chunk, Float64Array, IntArray
from .rows import RowPlan, Rows
from .running_moments import RunningMoments
from .terms import BoundTerms, prior_kl

_CHUNK = 64  # images whose terms are held at once: whatever the batch size, so that it may change on resuming


class StateOfRun(StateRecord):
    """Where a pass is: whole images done, how many rows of the chunks under way, and the noise's variance so far.

    Which rows these are, the array `done` marks. In version 1 there was one chunk under way, and they were its first.
    """

    marked: bool = False

    count: Annotated[int, Field(ge=0)]
    rows_done: Annotated[int, Field(ge=0)]
    noise_variance: Annotated[float, Field(ge=0)]


FORM = Form("diffusion_var.likelihood_checkpoint", 2, "likelihood checkpoint", StateOfRun, remedy=ANEW)


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
        self._plan = RowPlan(terms.evaluations, seed, draws, step_samples)
        self.per_image = self._plan.per_image
        # The sums over the chunks done, the last entry that of whole images; and the chunks that are under way.
        self.moments = RunningMoments(columns + 1)
        self.noise_variance = 0.0
        self.chunks: list[Chunk] = []
        self._columns = [np.array([column for column, _ in e.terms], dtype=np.int64) for e in terms.evaluations]
        self._inputs: tuple[Chunk, torch.Tensor] | None = None
        self._network = NetworkRun(terms.denoiser)
        self._streams = Streams()
        schedule = terms.denoiser.schedule
        self._keys = [noise_key(schedule, evaluation.level) for evaluation in terms.evaluations]

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint, progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything; it is left in place. All processes of a shared work
        come here."""
        team = parallel.team()
        with checkpoint.restoring(self._rules()) as saved:
            if saved is not None:
                self._continue_from(*saved)
        total, done = len(self.images), sum(int(chunk.done.sum()) for chunk in self.chunks)
        done += self.moments.count * self.per_image
        with (
            checkpoint.keeping(self._state),
            self._network,
            progress_bar(total * self.per_image, "likelihood", "eval", progress, initial=done) as bar,
        ):
            self._open(team.count)
            team.tell_idle(len(self._left()), "batches of evaluations")
            while self.chunks:
                self._stretch(team, checkpoint, bar)
                with checkpoint.changing():
                    while self.chunks and self.chunks[0].done.all():
                        self._merge(self.chunks.pop(0))
                    self._open(team.count)

    def _open(self, count: int) -> None:
        """Let so many chunks be under way, or all that are left."""
        start = self.moments.count + sum(len(chunk.numbers) for chunk in self.chunks)
        for first in range(start, len(self.images), _CHUNK)[: max(count - len(self.chunks), 0)]:
            self.chunks.append(self._chunk(first, min(first + _CHUNK, len(self.images))))

    def _chunk(self, start: int, stop: int) -> Chunk:
        numbers = np.arange(start, stop)
        columns = len(self.moments.mean) - 1
        return Chunk(numbers, self._plan.rows(numbers), self.draws, columns, self.prior is not None)

    def _left(self) -> list[Batch]:
        return [batch for chunk in self.chunks for batch in chunk.left(self.batch_size)]

    def _stretch(self, team: parallel.Team, checkpoint: Checkpoint, bar: Any) -> None:
        """Evaluate what is left of the chunks under way, or some of it if the state is to be saved, and tell it."""
        left, made = self._left(), []
        for k in np.array_split(np.arange(len(left)), team.count)[team.rank]:  # neighbours: few chunks are read by two
            self._evaluate(left[k])
            made.append(int(k))
            bar.update(len(left[k]))
            if checkpoint.due() or team.called:
                team.call()
                break
        found = [left[k].found(self._columns) for k in made]
        told = team.gather({"found": np.concatenate([np.zeros(0), *found])}, [made, checkpoint.due()])
        for arrays, (theirs, _) in told:
            rest = arrays["found"]
            for k in theirs:
                rest = left[k].take_over(rest, self._columns)
        if any(due for _, (_, due) in told):
            checkpoint.save(self._state())
        team.end_if_stopped()

    def _merge(self, chunk: Chunk) -> None:
        """A chunk that is done into the sums."""
        whole = chunk.values.sum(-1, keepdims=True)
        self.moments.add(np.concatenate([chunk.values, whole], -1).mean(0))
        if self.draws > 1:
            self.noise_variance += float(whole.var(0, ddof=1).sum())

    # ---- the state --------------------------------------------------------------------------------------------

    def _state(self) -> State:
        none = np.zeros((self.draws, 0, len(self.moments.mean) - 1))
        done = np.concatenate([np.zeros(0, dtype=bool), *(chunk.done for chunk in self.chunks)])
        arrays = {
            "mean": self.moments.mean,
            "squares": self.moments.squares,
            "values": np.concatenate([none, *(chunk.values for chunk in self.chunks)], axis=1),
            "done": done.astype(np.uint8),
        }
        place = {"count": self.moments.count, "noise_variance": self.noise_variance, "rows_done": int(done.sum())}
        return arrays, place | {"marked": True}

    def _rules(self) -> Rules:
        """What the arrays of this run's checkpoint must be like."""
        (columns,) = self.moments.mean.shape
        return {
            "mean": ArrayRule("float64", (columns,)),
            "squares": ArrayRule("float64", (columns,), least=0.0),
            "values": ArrayRule("float64", (self.draws, "images", columns - 1)),
            "done": ArrayRule("uint8", ("rows",), most=1, optional=True),
        }

    def _continue_from(self, arrays: dict[str, npt.NDArray[Any]], place: StateOfRun) -> None:
        total, mean = len(self.images), arrays["mean"]
        wrong = place.count > total or (place.count % _CHUNK != 0 and place.count != total)
        refuse(wrong, f"it says that {place.count} of {total} images are done")
        values, done = self._under_way(arrays, place)
        wrong = not np.isclose(mean[:-1].sum(), mean[-1], rtol=1e-6, atol=1e-6)
        refuse(wrong, "its terms do not add up to its bound")
        terms = np.delete(mean[:-1], self.terms.signed_columns())
        refuse(bool((terms < -1e-6).any()), f"it holds the divergence {terms.min():.3g}" if terms.size else "")
        self.moments.count, self.noise_variance = place.count, place.noise_variance
        self.moments.mean, self.moments.squares = mean.copy(), arrays["squares"].copy()
        self._open(-(-values.shape[1] // _CHUNK))
        for chunk in self.chunks:
            first = int(chunk.numbers[0]) - place.count
            chunk.values[...] = values[:, first : first + len(chunk.numbers)]
            chunk.done[...] = done[first * self.per_image :][: len(chunk.rows)]

    def _under_way(self, arrays: dict[str, npt.NDArray[Any]], place: StateOfRun) -> tuple[Float64Array, Any]:
        """The values (draws, images, columns) of a checkpoint's chunks under way, and which of their rows are done."""
        left, values = len(self.images) - place.count, arrays["values"]
        refuse(place.marked != ("done" in arrays), "its array done is missing, or not said to be there")
        if not place.marked:
            values = values[:, : min(_CHUNK, left)]
        images = values.shape[1]
        wrong = images > left or (images % _CHUNK != 0 and images != left)
        refuse(wrong, f"it says that {images} of {left} images are under way")
        rows = images * self.per_image
        refuse(place.rows_done > rows, f"it says that {place.rows_done} evaluations of {rows} are done")
        if not place.marked:
            done = np.arange(rows) < place.rows_done
            if rows and self.prior is not None:  # which the earlier version took after the last row
                done[-1] = False
            return values, done
        done = arrays["done"].astype(bool)
        wrong = len(done) != rows or int(done.sum()) != place.rows_done
        refuse(wrong, f"it says that {place.rows_done} of {rows} evaluations are done, but marks {int(done.sum())}")
        return values, done

    @property
    def noise_error(self) -> float:
        """Standard error of the mean over these images, from the spread over draws; nan for one draw."""
        if self.draws < 2:
            return float("nan")
        return float(np.sqrt(self.noise_variance / self.draws)) / self.moments.count

    # ---- one batch --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _evaluate(self, batch: Batch) -> None:
        denoiser, evaluations = self.terms.denoiser, self.terms.evaluations
        chunk, rows, numbers, inputs = batch.chunk, batch.rows, batch.chunk.numbers, self._read(batch.chunk)
        where = self._where(rows)
        x_0, eps = inputs[torch.from_numpy(rows.images)], self._noise(rows, numbers)
        alpha, sigma = denoiser.schedule.coefficients(where, x_0)
        posterior = self._network(alpha * x_0 + sigma * eps, where, self._condition(rows, numbers))
        # Clipping and the tails of the decoder would hide an infinite output.
        finite = torch.isfinite(posterior.eps).flatten(1).all(1).cpu().numpy()
        for k in np.unique(rows.places):
            found = np.flatnonzero(rows.places == k)
            part = slice(int(found[0]), int(found[-1]) + 1)  # sorted by place
            values = self.terms.at(evaluations[k], x_0[part], eps[part], posterior.rows(part)).numpy()
            values[~finite[part]] = np.nan
            at = rows.take(part)
            self._refuse_nan(values, int(k), numbers[at.images])
            chunk.values[at.draws[:, None], at.images[:, None], self._columns[k]] = values * at.weights[:, None]
        if batch.with_prior and self.prior is not None:
            std = denoiser.schedule.prior_std_at(self.prior)
            chunk.values[..., 0] = prior_kl(inputs, self.prior.alpha, self.prior.sigma, std).cpu().numpy()
        chunk.done[batch.which] = True

    def _read(self, chunk: Chunk) -> torch.Tensor:
        """x_0 of a chunk, (M, C, *spatial) on the device; of one at a time."""
        if self._inputs is None or self._inputs[0] is not chunk:
            self._inputs = chunk, self.images.take(chunk.numbers).to(self.terms.denoiser.device)
        return self._inputs[1]

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
