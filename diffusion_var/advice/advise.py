"""Advice for a model of one's own, from one table and a few hundred held-out images, within a budget of evaluations.

    1   the doctor (`diagnose`): a mean that is misread is nothing to measure
    2   half of the images: a variance table, and what decoders cost
    3   the other half: bounds of the likelihood with and without the table, on the same noise
    4   and the Fréchet distance of a few hundred samples with and without it, from the same noise

Each stage takes what the ones before have left. What follows of the numbers is stated in docs/advise.md, rule by rule.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import checks
from ..data.fixed_images import FixedImages
from ..errors import DiffusionVarWarning, InputError
from ..files import expanded
from ..likelihood.bound import Bound
from ..likelihood.decoder_costs import DecoderCosts, decoder_costs
from ..metrics.frechet import frechet_of_rows
from ..metrics.networks import FeatureNetwork
from ..models.conditions import as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..process import steps as step_lists
from ..process.schedule import Float64Array
from ..progress import progress_bar
from ..randomness import generator
from ..variance.estimate import estimate
from ..variance.table import VarianceTable
from .advice import Advice, Likelihood
from .doctor import diagnose
from .kept import Kept, beside
from .likelihoods import STRUCTURES, compared_bounds, evaluations_of, likelihood_of, shared_bits
from .mean import imperfection
from .samples import GROUPS, Features, Samples, SampleTrial, choices, conditions_of, drawn_images, leaning

LEAST_IMAGES = 100
BUDGET = 60_000
STEPS = (5, 10)
_DOCTOR = 600  # evaluations of a doctor who finds nothing
_DRAWS = 256  # at least, of an index of a table
_LEAST_INDICES, _MOST_INDICES = 16, 64
_LEAST_DECODED, _MOST_DECODED, _DECODER_INDICES = 32, 200, 24
_LEAST_SCORED, _LEAST_SAMPLES, _MOST_SAMPLES = 40, 60, 400
_TABLE, _DECODERS, _BOUNDS = 0.25, 0.05, 0.15  # shares of the budget; samples get the rest
_TOLERANCE = 0.02
_LISTS = 5  # step lists of a number of steps: even, log-SNR, and an optimal one for each structure


def advise(
    denoiser: Denoiser,
    images: Any,
    budget: int = BUDGET,
    *,
    steps: Sequence[int] = STEPS,
    features: str | FeatureNetwork = "pixels",
    table: VarianceTable | None = None,
    trained_on: Any = None,
    conditions: Any = None,
    seed: int = 0,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Advice:
    """What is advised for a model: structure, η, cap and steps, and whether a measured variance is worth it at all.

    Args:
        denoiser: the network and its conventions.
        images: a few hundred (at least 100) that the network was not trained on, as `estimate` takes them. A random
            half is for the table, the other for likelihoods and as what samples are compared with.
        budget: network evaluations in all. A budget that is too small is refused, saying how much it takes at least.
        steps: the numbers of steps that are of interest, each of at least 2.
        features: what samples are compared in: "pixels", or a feature network as `metrics.fid` takes it ("inception",
            "digits", a file, an object). For pictures a feature network is the better judge.
        table: of this model, made on other images; None: one is measured.
        trained_on: images that the network was trained on, to make sure that none of them is among `images`.
        conditions: None, or one per image, as `estimate` takes them.
        seed: of every random number.
        batch_size: network evaluations at once.
        checkpoint: file that the table is resumed from (see `estimate`); other finished parts are kept beside it, in
            CHECKPOINT.parts and CHECKPOINT.decoders. All are left in place.
        progress: progress bars over network evaluations.

    Returns: an `Advice`; printed, it says what to do and why. Where the doctor finds another convention it ends there.
    Raises InputError for unusable arguments, too few images, images that the network was trained on, a budget that is
    too small, and a table of another model.
    """
    check_denoiser(denoiser, "advise")
    budget = checks.whole("budget", budget, least=1)
    wanted = _checked_steps(steps, denoiser)
    batch_size, seed = checks.whole("batch_size", batch_size, least=1), checks.seed(seed)
    whole = FixedImages(images, denoiser.shape, denoiser.data_range)
    found = len(whole)
    checks.refuse(
        found < LEAST_IMAGES,
        f"images holds {found}, but at least {LEAST_IMAGES} are needed, half of them for the table and half held out; "
        "give more (a few hundred tell more apart).",
    )
    least = least_budget(wanted, denoiser, table is None)
    checks.refuse(
        budget < least,
        f"budget={budget} is too small: for steps={[*wanted]} it takes at least {least} network evaluations; give as "
        "many, or fewer and smaller numbers of steps.",
    )
    if table is not None:
        checks.instance("table", table, VarianceTable, "a variance table, or None").check(denoiser)
    if trained_on is not None:
        refuse_trained_on(whole, FixedImages(trained_on, denoiser.shape, denoiser.data_range))
    judge = Features(features, denoiser.data_range, denoiser.codec)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DiffusionVarWarning)
        run = _Run(denoiser, whole, conditions, seed, batch_size, checkpoint, progress, budget)
        advice = run.advise(wanted, judge, table)
    # That a table falls short of its tolerance is meant: the budget is shared.
    notes = dict.fromkeys(
        str(w.message)
        for w in said
        if issubclass(w.category, DiffusionVarWarning) and "raise max_evaluations" not in str(w.message)
    )
    for other in said:
        if not issubclass(other.category, DiffusionVarWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return Advice(**{**vars(advice), "notes": tuple(note for note in notes if note != advice.diagnosis.sentence)})


def _checked_steps(steps: Any, denoiser: Denoiser) -> tuple[int, ...]:
    if isinstance(steps, str | bytes | dict) or not hasattr(steps, "__iter__"):
        raise InputError(f"steps={checks.brief(steps)} must be a list of numbers of steps, such as (5, 10).")
    most = denoiser.schedule.num_steps
    found = sorted({checks.whole("steps", k, 2, most) for k in steps})
    checks.refuse(not found, "steps is empty; give at least one number of steps.")
    return tuple(found)


def least_budget(steps: Sequence[int], denoiser: Denoiser, with_table: bool = True) -> int:
    """The least number of evaluations that advice for these numbers of steps takes."""
    indices = min(_LEAST_INDICES, denoiser.schedule.num_steps)
    table = indices * _DRAWS if with_table else 0
    tried = len(choices(denoiser.data_range is not None))
    bounds = _LISTS * sum(steps) * _LEAST_SCORED
    samples = sum(steps) * drawn_images(_LEAST_SAMPLES, tried, spacings=False)
    return _DOCTOR + table + indices * _LEAST_DECODED + bounds + samples


def refuse_trained_on(images: FixedImages, trained_on: FixedImages) -> None:
    """Refuse images some of which the network was trained on: of those its residual is too small."""
    seen = {digest for start, raw in trained_on.chunks() for digest in _digests(trained_on, raw)}
    known = sum(digest in seen for start, raw in images.chunks() for digest in _digests(images, raw))
    checks.refuse(
        known > 0,
        f"images: {known} of {len(images)} are among those that the network was trained on. There its mean is closer "
        "to the images than it is to others, so that the variance would come out too small, and every bound too good; "
        "give images that it has not seen.",
    )


def _digests(images: FixedImages, raw: torch.Tensor) -> list[bytes]:
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).digest() for row in images.to_float(raw)]


class _Run:
    """The stages, and what they have left of the budget."""

    def __init__(
        self,
        denoiser: Denoiser,
        whole: FixedImages,
        conditions: Any,
        seed: int,
        batch_size: int,
        checkpoint: str | Path | None,
        progress: bool,
        budget: int,
    ) -> None:
        self.denoiser, self.seed, self.batch_size, self.budget = denoiser, seed, batch_size, budget
        self.checkpoint = None if checkpoint is None else expanded(checkpoint)
        self.progress, self.spent = progress, 0
        order = generator(seed, "advice images").permutation(len(whole))
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        self.quantised = whole.quantised and denoiser.data_range is not None
        #: For the table, and held out; in the data range.
        self.measured, self.held_out = (whole.take(half) for half in halves)
        given = as_conditions(conditions, len(whole))
        self.conditions = [None if given is None else given.part(half) for half in halves]
        self.whole = torch.cat([self.measured, self.held_out])
        self.order = np.concatenate(halves)
        self.given = given

    @property
    def left(self) -> int:
        """Evaluations that are left."""
        return self.budget - self.spent

    def advise(self, steps: tuple[int, ...], judge: Features, table: VarianceTable | None) -> Advice:
        """All stages."""
        diagnosis = diagnose(
            self.denoiser,
            self.whole,
            conditions=None if self.given is None else self.given.part(self.order),
            seed=self.seed,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        self.spent += diagnosis.evaluations
        counts = len(self.measured), len(self.held_out)
        if diagnosis.verdict in ("another", "none"):
            return Advice(diagnosis, (), None, None, table, counts, self.budget, self.spent)
        table = table or self._table(steps)
        decoders = self._decoders(table)
        identity = {**self.denoiser.identity().plain(), "table": table.digest, "seed": self.seed}
        identity |= {"held_out": hashlib.sha256(self.held_out.numpy().tobytes()).hexdigest()}
        kept = Kept(None if self.checkpoint is None else beside(self.checkpoint, "parts"), identity)
        likelihood = self._likelihood(table, decoders, steps, kept)
        samples = self._samples(table, steps, judge, kept)
        mean = imperfection(table) if table.data is not None and table.guided_by is None else ()
        return Advice(diagnosis, mean, likelihood, samples, table, counts, self.budget, self.spent)

    # ---- the table and the decoders ---------------------------------------------------------------------------

    def _table(self, steps: tuple[int, ...]) -> VarianceTable:
        share = int(_TABLE * self.budget)
        schedule = self.denoiser.schedule
        count = min(max(share // (2 * _DRAWS), _LEAST_INDICES), _MOST_INDICES, schedule.num_steps)
        table = estimate(
            self.denoiser,
            self.measured,
            _TOLERANCE,
            self.seed,
            step_lists.log_snr(schedule, count),
            STRUCTURES,
            self.conditions[0],
            max(share, count * _DRAWS),
            self.batch_size,
            self.checkpoint,
            self.progress,
        )
        self.spent += table.evaluations
        return table

    def _decoders(self, table: VarianceTable) -> DecoderCosts:
        indices = step_lists.log_snr(self.denoiser.schedule, min(_DECODER_INDICES, self.denoiser.schedule.num_steps))
        share = int(_DECODERS * self.budget) // len(indices)
        images = self.measured[: min(max(share, _LEAST_DECODED), _MOST_DECODED)]
        conditions = self.conditions[0]
        self.spent += len(images) * len(indices)
        return decoder_costs(
            self.denoiser,
            images,
            table,
            indices,
            self.seed,
            levels=256 if self.quantised else None,
            conditions=None if conditions is None else conditions.part(np.arange(len(images))),
            batch_size=self.batch_size,
            checkpoint=None if self.checkpoint is None else beside(self.checkpoint, "decoders"),
            progress=self.progress,
        )

    # ---- likelihoods ------------------------------------------------------------------------------------------

    def _likelihood(
        self, table: VarianceTable, decoders: DecoderCosts, steps: tuple[int, ...], kept: Kept
    ) -> Likelihood:
        levels = 256 if self.quantised else None
        named = [row for k in steps for row in compared_bounds(self.denoiser, table, decoders, k, levels)]
        bounds = [bound for _, _, bound in named]
        share = int(_BOUNDS * self.budget) // evaluations_of(bounds)
        images = self.held_out[: max(share, _LEAST_SCORED)]
        groups = min(GROUPS, len(images) // 4)
        total = len(images) * evaluations_of(bounds)
        self.spent += total
        with progress_bar(total, "likelihood", "eval", self.progress) as bar:
            name = f"likelihood_{len(images)}_{'_'.join(map(str, steps))}"
            measure = partial(self._shared, bounds, images, groups, bar.update)
            values = kept.get(name, (groups, len(bounds)), measure)
        return likelihood_of(named, values, steps, len(images), self.quantised)

    def _shared(
        self, bounds: Sequence[Bound], images: torch.Tensor, groups: int, told: Callable[[int], object]
    ) -> Float64Array:
        conditions = self.conditions[1]
        part = None if conditions is None else conditions.part(np.arange(len(images)))
        data_range = self.denoiser.data_range
        return shared_bits(self.denoiser, bounds, images, part, groups, self.seed, self.batch_size, data_range, told)

    # ---- samples ----------------------------------------------------------------------------------------------

    def _samples(self, table: VarianceTable, steps: tuple[int, ...], judge: Features, kept: Kept) -> Samples:
        tried = len(choices(self.denoiser.data_range is not None))
        room = self.left // sum(steps)
        # Other spacings are tried where that leaves enough images for the choice itself.
        spacings = drawn_images(2 * _LEAST_SAMPLES, tried, spacings=True) <= room
        count = max(
            m
            for m in range(_LEAST_SAMPLES, _MOST_SAMPLES + 1, GROUPS)
            if m == _LEAST_SAMPLES or drawn_images(m, tried, spacings) <= room
        )
        reference = judge(self.held_out)
        real = judge(self.measured)
        conditions = conditions_of(self.conditions[1], count, self.seed)
        total = sum(steps) * drawn_images(count, tried, spacings)
        self.spent += total
        with progress_bar(total, "sample", "eval", self.progress) as bar:
            trial = SampleTrial(
                self.denoiser,
                table,
                reference,
                judge,
                count,
                conditions,
                self.seed,
                self.batch_size,
                kept,
                bar.update,
            )
            tested = leaning([trial.test(k, spacings) for k in steps])
        return Samples(tested, judge.name, count, len(reference), frechet_of_rows(real, reference))
