"""Images restored from measurements: draws of x_0 given y, their mean, and how far they are apart.

Draw r of measurement b is image r·B + b of a sampler's run, so that it depends on the seed and on nothing else. Over
the draws of one measurement the mean estimates E[x_0|y], which has the least squared error, and the standard deviation
says pixel by pixel how much is left unknown: where the model and its covariance are right, the squared error of the
mean of R draws is (1 + 1/R) times their variance, on average. A single draw has all the detail, and twice the squared
error of E[x_0|y].

Batches are the units of work: a checkpoint keeps those that are done, and processes share those that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .. import checks, parallel
from ..array_rules import ArrayRule, Rules
from ..covariance.fixed import FixedSmall
from ..covariance.reverse import ReverseCovariance, report_of_all
from ..documents import Arrays, Form
from ..models.conditions import as_nest, batch_of, digest_of, map_leaves
from ..process.level import NoiseLevel
from ..process.steps import linspace, log_snr
from ..progress import progress_bar
from ..resume import ANEW, Checkpoint, State, StateRecord
from ..sampling.conditions import check_conditions
from ..sampling.sampler import Sampler
from .conditioned import ConditionedDenoiser

FORM = Form("diffusion_var.restoration_checkpoint", 1, "restoration checkpoint", StateRecord, remedy=ANEW)
Spacing = Literal["log_snr", "linspace"]
RENOISING = 10.0  # τ where neither η nor τ is given: as good as infinity for steps of any length
_COUNTS = 4  # numbers that a conditioned denoiser counts


@dataclass(frozen=True, repr=False)
class Restoration:
    """Images restored from B measurements.

    Attributes:
        draws: (B, R, C, *spatial) float32 on the CPU, in the model's data range: R of each measurement.
        evaluations: of the network for one draw (each with a backward pass for guidance I).
        solves: systems S u = y − A x̂_0 that were solved, one for each image and step.
        not_converged, not_positive: how many of them did not reach their tolerance, and met a direction in which S is
            not positive.
        products: with S that they took; 0 where they have a closed form.
    """

    draws: torch.Tensor
    evaluations: int
    solves: int = 0
    not_converged: int = 0
    not_positive: int = 0
    products: int = 0

    def __repr__(self) -> str:
        told = {name: value for name, value in vars(self).items() if name != "draws"}
        counts = ", ".join(f"{name}={value}" for name, value in told.items())
        return f"Restoration(draws={tuple(self.draws.shape)}, {counts})"

    @property
    def mean(self) -> torch.Tensor:
        """The mean over the draws, (B, C, *spatial) float32."""
        return self.draws.double().mean(1).float()

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation of the draws (over R − 1), (B, C, *spatial) float32; nan for one draw."""
        if self.draws.shape[1] == 1:
            return torch.full_like(self.draws[:, 0], torch.nan)
        return self.draws.double().std(1).float()


def restore(
    denoiser: ConditionedDenoiser,
    steps: int | Sequence[int] | Sequence[NoiseLevel] = 20,
    *,
    covariance: ReverseCovariance | None = None,
    eta: float | None = None,
    tau: float | None = None,
    spacing: Spacing = "log_snr",
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    conditions: Any = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Restoration:
    """Draw images given the measurements of a conditioned denoiser.

    Args:
        denoiser: the model with the measurements.
        steps: K, or indices or levels as they are; see `Sampler`.
        covariance: of the steps' noise; None: β̃ (λ² I alone). `denoiser.posterior_noise()` adds what is left unknown
            given y as well.
        eta, tau: how much noise a step adds, one of the two; see `Sampler`. Neither: τ = 10, which re-noises at every
            step: what one got wrong the next forgets. Images gain a decibel or more by it (results/restoration.md).
        spacing: of K steps: "log_snr", or "linspace", evenly over 1…N.
        draws: R, how many for each measurement; two or more tell how far they are apart.
        seed: of every random number.
        batch_size: images at once.
        conditions: None, or one condition for each measurement, see `Sampler.stream`.
        checkpoint: a file that an interrupted run goes on from (to the byte, with the same batch size), which is left
            there; None: nothing is kept.
        progress: whether a bar is shown.

    Processes share the batches, and each gets all images. Raises InputError for arguments that do not fit together, and
    a checkpoint of another run; NumericalError where the network or a solve gives NaN.
    """
    checks.instance("denoiser", denoiser, ConditionedDenoiser, "a dv.ConditionedDenoiser, a model with a measurement")
    count = checks.whole("draws", draws, least=1)
    sampler = restoring_sampler(denoiser, covariance, steps, eta, tau, spacing)
    run = _Run(sampler, count, checks.seed(seed), batch_size, conditions)
    with (
        parallel.sharing("restore", lambda: run.facts),
        Checkpoint(checkpoint, FORM, {} if checkpoint is None else run.facts) as kept,
    ):
        run.finish(kept, progress)
    return run.result()


def restoring_sampler(
    denoiser: ConditionedDenoiser,
    covariance: ReverseCovariance | None,
    steps: int | Sequence[int] | Sequence[NoiseLevel],
    eta: float | None,
    tau: float | None,
    spacing: Spacing,
) -> Sampler:
    """The sampler of `restore`, by its arguments."""
    checks.one_of("spacing", spacing, ("log_snr", "linspace"))
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool):
        steps = (log_snr if spacing == "log_snr" else linspace)(denoiser.schedule, steps)
    tau = RENOISING if eta is None and tau is None else tau
    return Sampler(denoiser, FixedSmall() if covariance is None else covariance, steps, eta, tau=tau)


class _Run:
    """The state of a run: the images that are done, and what the solves of those came to."""

    def __init__(self, sampler: Sampler, draws: int, seed: int, batch_size: int, conditions: Any) -> None:
        self.sampler, self.draws, self.seed = sampler, draws, seed
        self.batch_size = checks.whole("batch_size", batch_size, least=1)
        denoiser = sampler.denoiser
        assert isinstance(denoiser, ConditionedDenoiser)
        self.denoiser, self.rows = denoiser, denoiser.measurement.rows
        self.conditions = None
        if conditions is not None:
            found = check_conditions(conditions, self.rows, denoiser.classes)[slice(0, self.rows)]
            self.conditions = as_nest(found)
            batch_of(self.conditions, self.rows)
        total = self.rows * draws
        self.images = np.zeros((total, *denoiser.shape), dtype=np.float32)
        self.done = np.zeros(total, dtype=bool)
        self.counts = np.zeros(_COUNTS, dtype=np.int64)  # of all that is done
        self._own = np.zeros(_COUNTS, dtype=np.int64)  # of what this process has done now

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the result, as plain data; it reads the network's weights."""
        given = {} if self.conditions is None else {"conditions": digest_of(self.conditions)}
        operator = self.denoiser.measurement.probe(self.denoiser.shape)
        return {**self.sampler.facts(), "operator": operator, "draws": self.draws, "seed": self.seed, **given}

    def result(self) -> Restoration:
        """What came of it, once it is finished."""
        images = self.images.reshape(self.draws, self.rows, *self.images.shape[1:]).swapaxes(0, 1)
        draws = torch.from_numpy(np.ascontiguousarray(images))
        return Restoration(draws, self.sampler.evaluations, *map(int, self.counts))

    # ---- the loop ---------------------------------------------------------------------------------------------

    def finish(self, checkpoint: Checkpoint, progress: bool) -> None:
        """Draw what is left, from the checkpoint if it holds anything; all processes of a shared work come here."""
        team = parallel.team()
        with checkpoint.restoring(self._rules()) as saved:
            if saved is not None:
                self._continue_from(saved[0])
        each, total, done = self.sampler.evaluations, len(self.done), int(self.done.sum())
        with (
            checkpoint.keeping(self._state),
            progress_bar(each * total, "restore", "eval", progress, initial=each * done) as bar,
        ):
            team.tell_idle(len(self._left()), "batches of images")
            while left := self._left():
                self._stretch(left, team, checkpoint, bar)
        self.denoiser.add_counts([int(n) for n in self.counts - self._own])
        self.denoiser.report()
        report_of_all(self.sampler.covariance)

    def _left(self) -> list[range]:
        """The batches that are not done, of those that a run is cut into: their size may move an image by a
        rounding."""
        starts = range(0, len(self.done), self.batch_size)
        parts = [range(start, min(start + self.batch_size, len(self.done))) for start in starts]
        return [part for part in parts if not self.done[part.start : part.stop].all()]

    def _stretch(self, left: list[range], team: parallel.Team, checkpoint: Checkpoint, bar: Any) -> None:
        """Draw batches, or some of them if the state is to be saved, and tell them."""
        mine, before = left[team.rank :: team.count], np.array(self.denoiser.counts())
        made: dict[str, Any] = {}
        counted: dict[str, list[int]] = {}
        for part, images in zip(mine, self._drawn(mine, bar), strict=True):
            now = np.array(self.denoiser.counts())
            with checkpoint.changing():
                self._take(part, images.numpy(), now - before)
            self._own += now - before
            made[str(part.start)], counted[str(part.start)] = images.numpy(), [int(n) for n in now - before]
            before = now
            if checkpoint.due() or team.called:
                team.call()
                break
        told = team.gather(made if team.count > 1 else {}, [counted, checkpoint.due()])
        with checkpoint.changing():
            for arrays, (counts, _) in told:
                for part in left:
                    if (name := str(part.start)) in arrays and not self.done[part.start]:
                        self._take(part, arrays[name], np.array(counts[name]))
        if any(due for _, (_, due) in told):
            checkpoint.save(self._state())
        team.end_if_stopped()

    def _drawn(self, parts: list[range], bar: Any) -> Iterator[torch.Tensor]:
        """The images of some batches, (len, C, *spatial) each."""
        wanted = [i for part in parts for i in part]
        if not wanted:
            return
        conditions = None if self.conditions is None else _OfMeasurements(self.conditions, wanted, self.rows)
        yield from self.sampler.stream(wanted, self.seed, self.batch_size, conditions, bar)

    def _take(self, part: range, images: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> None:
        self.images[part.start : part.stop] = images
        self.done[part.start : part.stop] = True
        self.counts += counts

    # ---- the state --------------------------------------------------------------------------------------------

    def _state(self) -> State:
        arrays: Arrays = {"images": self.images[self.done], "done": self.done.astype(np.uint8), "counts": self.counts}
        return arrays, {}

    def _rules(self) -> Rules:
        """What the arrays of this run's checkpoint must be like."""
        return {
            "images": ArrayRule("float32", ("done", *self.images.shape[1:])),
            "done": ArrayRule("uint8", (len(self.done),), most=1),
            "counts": ArrayRule("int64", (_COUNTS,), least=0),
        }

    def _continue_from(self, arrays: Arrays) -> None:
        done = arrays["done"].astype(bool)
        found, marked = len(arrays["images"]), int(done.sum())
        checks.refuse(found != marked, f"it holds {found} images, but marks {marked} as done")
        self.done[...] = done
        self.images[done] = arrays["images"]
        self.counts[...] = arrays["counts"]


class _OfMeasurements:
    """The conditions of a run's images, each that of its measurement, made when they are sliced."""

    def __init__(self, of_rows: Any, images: Sequence[int], rows: int) -> None:
        self._of_rows, self._images, self._rows = of_rows, images, rows

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, part: slice) -> Any:
        which = [i % self._rows for i in self._images[part]]
        return map_leaves(lambda leaf: leaf[which], self._of_rows)
