"""The doctor: whether a network does what its denoiser declares, and if not, which convention fits.

A wrong convention is seldom loud: an output read as ε where it is v still gives images, tables and bounds. It shows in
the residual E‖x_0 − x̂_0‖², which for the right reading of a trained network is at most about that of the best linear
denoiser. Evaluations are dear, so that it goes in stages:

    1   the declared question at seven noise levels, its output read in every way; and, if the network counts indices,
        whether one index more or less fits better near the data. Where that leaves no doubt it ends.
    2   every other question (schedules, what the network is told, the direction of time) at three levels on few
        images, then the best of them at all levels on more; then other scales of the data for the best few
    3   the best on all the images of stage 1, beside what is declared

An imperfect network, declared rightly, is not to be talked into another convention. With an exact network the right
one has the least residual at every level, and at most the linear denoiser's. So another one is named only where it is
better by 5 % and by four standard errors over images, nowhere worse by more than a tenth, and makes sense itself: its
residual at most about the linear denoiser's, up to where nearly all is noise (there small networks are worse than
that), and somewhere below it, unless it is the linear denoiser's everywhere, as of Gaussian data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import checks
from ..errors import warn
from ..models.denoiser import Denoiser, check_denoiser
from ..progress import progress_bar
from .conventions import AS_GIVEN, Convention, askings, declared_convention, scales
from .diagnosis import WORSE, Diagnosis, Verdict, fit_of
from .trial import LEVELS, Place, Trial, Tried, gain_of, least_gain

LEAST_IMAGES = 16
_IMAGES = 32  # of stages 1 and 3
_SCREEN_LEVELS, _SCREEN_IMAGES = (-2.5, 0.5, 3.5), 4
_KEPT, _MORE_IMAGES, _FINAL = 6, 12, 2
_GAIN, _ERRORS = 0.05, 4.0  # of another convention, to be named: mean log ratio, and in standard errors
_APART = 0.005  # of two that are better than what is declared; below, the one with fewer changes is named
_WORSE_SOMEWHERE = 0.1  # log ratio, at the worst level of one that is named
_NOISY, _MOST_NOISY, _MOST, _BELOW, _LINEAR = -2.0, 2.5, 1.15, 0.9, 1.03  # ratios to the linear denoiser's
_AT_LOW = 0.08  # an index more or less: mean log ratio over the lowest indices
_LOWEST = (1, 2, 4)
_HOPELESS = 2.0


def diagnose(
    denoiser: Denoiser,
    images: Any,
    *,
    conditions: Any = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Diagnosis:
    """Whether a network does what is declared of it: some 300 evaluations where it does, some 2,000 where it does not.

    Args:
        denoiser: the network and what is declared of it; guidance, if any, is left out.
        images: at least 16, of the kind that the network was trained on, as `estimate` takes them.
        conditions: None, or one per image, as `estimate` takes them.
        seed: of the choice of images and of the noise.
        batch_size: network evaluations at once.
        progress: a progress bar over network evaluations.

    Returns: a `Diagnosis`; printed, it says in a sentence whether all is well, and what fits better if not. It warns
    where another convention fits better, and where none makes sense.
    Raises InputError for unusable arguments and too few images, NetworkError where the network fails as declared.
    """
    check_denoiser(denoiser, "diagnose")
    batch_size = checks.whole("batch_size", batch_size, least=1)
    trial = Trial(_unguided(denoiser), images, conditions, checks.seed(seed), batch_size)
    found = len(trial.images)
    checks.refuse(
        found < LEAST_IMAGES,
        f"images holds {found}, but at least {LEAST_IMAGES} are needed to tell conventions apart; give more.",
    )
    with progress_bar(0, "diagnose", "eval", progress) as bar:
        diagnosis = _Doctor(trial, bar).diagnose()
    if not diagnosis.ok:
        warn(diagnosis.sentence)
    return diagnosis


def _unguided(denoiser: Denoiser) -> Denoiser:
    """The network alone: a guided mean is another one than the posterior's."""
    plain = denoiser if denoiser.guidance is None else denoiser.with_guidance(1.0)
    if plain.classifier is not None:
        plain = copy.copy(plain)
        plain.classifier = None
        plain.conditional = denoiser.classifier is not None and denoiser.classifier.shared
    return plain


class _Doctor:
    def __init__(self, trial: Trial, bar: Any) -> None:
        self.trial, self.bar = trial, bar
        self.convention = declared_convention(trial.denoiser)
        self.places = trial.places(self.convention, LEVELS)
        checks.refuse(
            not any(self.places),
            "the schedule has no noise level between those where nothing is known of such images and where all is; "
            "check it, and the scale of the images.",
        )
        self.tried = 0
        #: What an index more or less gains near the data, and its error; None where it was not told apart.
        self.at_low: tuple[float, float] | None = None

    def diagnose(self) -> Diagnosis:
        """All stages, as far as they are needed."""
        trial, exact = self.trial, self.trial.denoiser.exact
        declared = trial.declared(self.convention, self.places, _IMAGES)
        self._told()
        if exact:
            self.tried = 1
            return self._result(declared, [])
        found = [tried for tried in self._read(self.convention, _IMAGES) if tried.convention != self.convention]
        best = self._best([declared, *found], declared)
        if best is declared:
            found += self._neighbours(declared)
            best = self._best([declared, *found], declared)
        if not self._sound(best):
            found += self._search()
        return self._result(declared, found)

    # ---- stages -----------------------------------------------------------------------------------------------

    def _read(self, convention: Convention, count: int, levels: Sequence[float] = LEVELS) -> list[Tried]:
        """A convention's question, read in every way."""
        found = self.trial.read(convention, self.trial.places(convention, levels), count)
        self.tried += len(found)
        self._told()
        return found

    def _neighbours(self, declared: Tried) -> list[Tried]:
        """One index more, and one less, where these tell most: near the data, on a schedule of indices."""
        schedule, trial = self.convention.schedule, self.trial
        n = np.arange(1, schedule.num_steps + 1)
        counted = {"n - 1": n - 1, "n": n}
        own = next((name for name, told in counted.items() if np.array_equal(schedule.timestep[1:], told)), None)
        if own is None or schedule.num_steps < 2 * max(_LOWEST):
            return []
        (other,) = set(counted) - {own}
        lowest = [Place(k, len(LEVELS) + k) for k in _LOWEST]
        convention = replace(self.convention, told=other)
        here = trial.declared(self.convention, lowest, _IMAGES // 2)
        there = next(t for t in trial.read(convention, lowest, _IMAGES // 2) if t.convention == convention)
        self._told()
        self.tried += 1
        gain, error = gain_of(there, here)
        if gain < max(_AT_LOW, _ERRORS * error):
            return []
        # Elsewhere an index more or less is nothing: what was seen near the data stands beside the other levels.
        elsewhere = next(t for t in self._read(convention, _IMAGES) if t.convention == convention)
        if not gain_of(elsewhere, declared)[0] > -0.01:
            return []
        self.at_low = gain, error
        return [elsewhere]

    def _search(self) -> list[Tried]:
        """Every other question: a first look at all, a second at the best, other scales of the data for these."""
        screened = [
            min(self._read(asking, _SCREEN_IMAGES, _SCREEN_LEVELS), key=lambda tried: tried.score)
            for asking in self._distinct()
        ]
        screened += self._scaled([self.convention], _SCREEN_IMAGES, _SCREEN_LEVELS)
        looked = [self._again(tried, _MORE_IMAGES) for tried in self._least(screened, _KEPT)]
        best = self._least(looked, 1)[0].convention
        if best.data == AS_GIVEN:
            scaled = self._least(self._scaled([best], _SCREEN_IMAGES, _SCREEN_LEVELS), 1)
            looked += [self._again(tried, _MORE_IMAGES) for tried in scaled]
        return [again for tried in self._least(looked, _FINAL) for again in self._read(tried.convention, _IMAGES)]

    def _distinct(self) -> list[Convention]:
        """The other questions, without those that are the same for the network as one before."""
        seen = [self._asked(self.convention)]
        out = []
        for asking in askings(self.convention):
            asked = self._asked(asking)
            if not any(np.array_equal(asked, other, equal_nan=True) for other in seen):
                seen.append(asked)
                out.append(asking)
        return out

    def _asked(self, asking: Convention) -> Any:
        """What tells a question from others: noise level and timestep where it is asked, and what is shown."""
        places = self.trial.places(asking, LEVELS)
        told = [
            (math.nan, math.nan) if p is None else (asking.timestep(p.n), asking.schedule.alpha[p.n]) for p in places
        ]
        return np.array([*np.ravel(told), float(asking.shown == "edm")])

    def _scaled(self, conventions: Sequence[Convention], count: int, levels: Sequence[float]) -> list[Tried]:
        """The best reading of each with each other scale of the data."""
        trial = self.trial
        others = scales(trial.denoiser.data_range, trial.centre, trial.deviation)
        return [
            min(self._read(replace(convention, data=data), count, levels), key=lambda tried: tried.score)
            for convention in conventions
            for data in others
        ]

    def _again(self, tried: Tried, count: int) -> Tried:
        """The best reading of a question at all levels, on more images."""
        return min(self._read(tried.convention, count), key=lambda other: other.score)

    def _least(self, tried: Sequence[Tried], count: int) -> list[Tried]:
        """The best of these, those that differ least from what is declared first where they are alike."""
        return sorted(tried, key=lambda t: (round(t.score, 2), t.convention.changes(self.convention)))[:count]

    # ---- verdict ----------------------------------------------------------------------------------------------

    def _sound(self, tried: Tried) -> bool:
        """Whether nothing about a convention asks for a search: nowhere worse than a linear denoiser."""
        ratio = tried.ratio[~np.isnan(tried.ratio)]
        return bool(len(ratio) and (ratio <= WORSE).all())

    def _gain(self, tried: Tried, declared: Tried) -> tuple[float, float]:
        """What it gains over what is declared; of an index more or less, near the data."""
        neighbour = tried.convention.told in ("n - 1", "n") and tried.convention.changes(self.convention) == 1
        return self.at_low if neighbour and self.at_low is not None else gain_of(tried, declared)

    def _best(self, tried: Sequence[Tried], declared: Tried) -> Tried:
        """The best of some, or the declared one where none is better beyond doubt."""
        gains = {id(t): self._gain(t, declared) for t in tried if t is not declared}
        better = [
            t
            for t in tried
            if id(t) in gains
            and _is_better(*gains[id(t)])
            and least_gain(t, declared) > -_WORSE_SOMEWHERE
            and _makes_sense(t)
        ]
        if not better:
            return declared
        top = max(better, key=lambda t: gains[id(t)][0])
        alike = [t for t in better if t is top or not _is_told_apart(*gain_of(top, t))]
        return min(alike, key=lambda t: (t.convention.changes(self.convention), -gains[id(t)][0]))

    def _result(self, declared: Tried, found: list[Tried]) -> Diagnosis:
        best, trial = self._best([declared, *found], declared), self.trial
        verdict: Verdict = "fits" if self._sound(declared) else "poor"
        if best is not declared:
            verdict = "another"
        elif bool((declared.ratio > _HOPELESS).sum() * 2 > len(LEVELS)):
            verdict = "none"
        rest = [t for t in self._least(found, 3) if t is not best]
        return Diagnosis(
            verdict,
            fit_of(declared, declared, (0.0, 0.0)),
            fit_of(best, declared, self._gain(best, declared) if best is not declared else (0.0, 0.0)),
            tuple(fit_of(t, declared, self._gain(t, declared)) for t in rest[:2]),
            LEVELS,
            tuple(0 if place is None else place.n for place in self.places),
            self.tried,
            min(_IMAGES, len(trial.images)),
            trial.evaluations,
        )

    def _told(self) -> None:
        self.bar.n = self.trial.evaluations
        self.bar.refresh()


def _is_better(gain: float, error: float) -> bool:
    return gain > max(_GAIN, _ERRORS * error)


def _makes_sense(tried: Tried) -> bool:
    """Whether a trained network could have these residuals, rightly read (module docstring)."""
    known = ~np.isnan(tried.residual.mean(1))
    ratio, noisy = tried.ratio[known], (np.array(LEVELS) < _NOISY)[known]
    if not len(ratio) or (ratio > np.where(noisy, _MOST_NOISY, _MOST)).any():
        return False
    return bool(ratio.min() < _BELOW or ratio.max() < _LINEAR)


def _is_told_apart(gain: float, error: float) -> bool:
    return gain > max(_APART, 2.0 * error)
