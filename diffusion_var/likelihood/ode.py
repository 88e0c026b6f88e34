"""The likelihood of continuous data under the probability flow [E20]: no bound, but the density itself, up to the
errors of the solver and of the trace's probes.

The flow takes an image x_0, as x_t/α_t of the least noisy level, to noise; then −log p(x_0) is that noise's under the
prior, less what the flow has spread the density by on the way:

    −log p(x_0) = −log p(z_N) − ∫ div dτ − d log a_1

It is the density of data with the least noisy level's noise (of standard deviation σ_1/α_1) on them. 8-bit images are
points, which have no density: with `levels` each is spread evenly over its level's width w, and the mean of −log₂ p per
dimension, less log₂ w, is an upper bound of their bits/dim (Theis et al., arXiv:1511.01844). It is another model than
the one that `bits_per_dim` bounds, the flow's instead of the steps'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from .. import checks, parallel
from ..array_rules import ArrayRule
from ..data.fixed_images import FixedImages
from ..documents import Form
from ..errors import NumericalError
from ..models.conditions import Conditions, as_conditions
from ..models.denoiser import Denoiser, check_denoiser
from ..models.network_run import NetworkRun
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.steps import describe, resolve
from ..progress import progress_bar
from ..randomness import Streams
from ..resume import ANEW, Checkpoint, StateRecord
from .flow import TABLEAUS, Method, ProbabilityFlow, Trace, integrate, prior_nats

Float64Array = npt.NDArray[np.float64]
_MOST_STEPS = 1_000_000
_MOST_EXACT = 4096  # elements of an image, each a vector–Jacobian product at every stage


class StateOfOde(StateRecord):
    """Where a pass is: how many rows (image and draw) are done.

    Which they are, the array `done` marks; in version 1 they were the first.
    """

    marked: bool = False

    count: Annotated[int, Field(ge=0)]


FORM = Form("diffusion_var.ode_likelihood_checkpoint", 2, "likelihood checkpoint", StateOfOde, remedy=ANEW)


@dataclass(frozen=True)
class OdeLikelihood:
    """−log₂ p(x_0) per dimension under the probability flow, averaged over images.

    Attributes:
        value: bits/dim: of a density, which depends on the data's unit and may be negative, or, with `levels`, of
            dequantised images.
        standard_error: of the mean over images like these. nan for one image.
        noise_error: of the mean over exactly these images: probes and dequantisation alone. nan with one draw an image,
            0 where nothing is random.
        per_image: (M,) bits/dim of each image, the mean over its draws.
        images, draws, evaluations: how many images, draws for each, and network evaluations (each with a
            vector–Jacobian product, or d of them with an exact trace).
        settings: what else it was computed with (plain data).
    """

    value: float
    standard_error: float
    noise_error: float
    per_image: Float64Array = field(repr=False)
    images: int
    draws: int
    evaluations: int
    settings: dict[str, Any] = field(repr=False)

    def __float__(self) -> float:
        return self.value

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return "bits/dim of density" if self.settings["levels"] is None else "bits/dim, dequantised"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; nan becomes None."""
        numbers = {"value": self.value, "standard_error": self.standard_error, "noise_error": self.noise_error}
        counts = {"images": self.images, "draws": self.draws, "evaluations": self.evaluations}
        finite = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return {"unit": self.unit, **finite, **counts, **self.settings}

    def __str__(self) -> str:
        errors = [] if math.isnan(self.standard_error) else [f"standard error {self.standard_error:.2g}"]
        errors += [] if math.isnan(self.noise_error) else [f"of the noise alone {self.noise_error:.2g}"]
        return f"{self.value:.4f} {self.unit} ({', '.join([f'{self.images:,} images', *errors])})"


def ode_likelihood(
    denoiser: Denoiser,
    data: Any,
    steps: int | Sequence[int] | Sequence[NoiseLevel] = 50,
    seed: int = 0,
    *,
    method: Method = "heun",
    trace: Trace = "rademacher",
    draws: int = 1,
    levels: int | None = None,
    conditions: Any = None,
    batch_size: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> OdeLikelihood:
    """−log₂ p(x_0) per dimension under the probability flow, p a density [E20].

    Args:
        denoiser: the model; its network must be differentiable by its input. The ε̂ of the flow is the network's own,
            whether or not x̂_0 is clipped.
        data: Dataset, tensor or array of (C, *spatial): floats, or uint8 with `levels`.
        steps: number of solver steps, even in log SNR between 1 and the noisiest level that holds signal; or the
            indices (ascending) or levels (the noisiest first) between which they go.
        seed: of every random number; those of image i and draw j are the same whatever the batch size.
        method: "euler", "heun" or "rk4": 1, 2 or 4 evaluations a step, and an error of that order.
        trace: "rademacher" (signs: the least variance) or "gaussian" probes, one for each image and draw, held fast
            along the flow; or "exact", d vector–Jacobian products instead of one.
        draws: of probes, and of the dequantisation, for each image; two or more tell their error.
        levels: number of values a pixel can have, for quantised images, e.g. 256; None: continuous data.
        conditions: None, one per image, or a `Conditions`.
        batch_size: network evaluations at once.
        checkpoint: file to resume from if it exists, and to write every 30 s and on any interruption.
        progress: a progress bar over network evaluations.

    Returns: an `OdeLikelihood`; `float()` of it is the value.
    Raises InputError for arguments that do not fit together; NumericalError, naming the image, for NaN or Inf.
    """
    check_denoiser(denoiser, "ode_likelihood")
    checks.one_of("method", method, tuple(TABLEAUS))
    checks.one_of("trace", trace, get_args(Trace))
    draws, batch_size = checks.whole("draws", draws, least=1), checks.whole("batch_size", batch_size, least=1)
    width = None if levels is None else _level_width(denoiser, checks.whole("levels", levels, least=2))
    _check_trace(trace, draws, width, math.prod(denoiser.shape))
    source = FixedImages(data, denoiser.shape, denoiser.data_range)
    images = as_conditions(conditions, len(source))
    run = OdeRun(
        denoiser,
        source,
        images,
        rising_levels(denoiser.schedule, steps),
        checks.seed(seed),
        method,
        trace,
        draws,
        width,
    )
    settings: dict[str, Any] = {"steps": _described(denoiser.schedule, run.levels), "method": method, "trace": trace}
    settings |= {"levels": levels, "seed": run.seed}
    with parallel.sharing("ode_likelihood"):
        scanned = source.scan()

        @cache
        def identity() -> dict[str, Any]:  # what tells the network takes time
            of_images = {"images": scanned, "conditions": None if images is None else images.fingerprint}
            return {**denoiser.identity().plain(), **settings, "draws": draws, **of_images}

        with (
            parallel.sharing("the likelihood", lambda: {**identity(), "batch_size": batch_size}),
            Checkpoint(checkpoint, FORM, {} if checkpoint is None else identity()) as kept,
        ):
            run.finish(kept, batch_size, progress)
    return _result(run, width, settings)


def rising_levels(schedule: NoiseSchedule, steps: Any) -> list[NoiseLevel]:
    """The levels between which the solver's steps go, the least noisy first."""
    whole = checks.is_whole(steps) and not isinstance(steps, float)
    if whole:
        count = checks.whole("steps", steps, 1, _MOST_STEPS)
        top = schedule.num_steps - schedule.zero_terminal_snr
        checks.refuse(top < 2, "the schedule has one level that holds signal, and the flow needs two to go between.")
        places = np.linspace(schedule.log_snr[1], schedule.log_snr[top], count + 1)
        return [schedule.level_at(float(place)) for place in places]
    found = resolve(schedule, steps)
    rising = [n if isinstance(n, NoiseLevel) else schedule.level(n) for n in found]
    rising = sorted(rising, key=lambda level: -level.log_snr)
    checks.refuse(len(rising) < 2, "the flow needs at least two levels to go between; give more steps.")
    checks.refuse(
        rising[-1].alpha == 0.0,
        f"the flow cannot end at {rising[-1].name}, which holds no signal and is infinitely far in log SNR; let the "
        "steps begin below it.",
    )
    return rising


def _described(schedule: NoiseSchedule, rising: list[NoiseLevel]) -> list[Any]:
    """As plain data: indices, ascending, or levels, the noisiest first."""
    indices = [schedule.index_of(level) for level in rising]
    return describe(rising[::-1]) if None in indices else indices


class OdeRun:
    """One pass over images; see `ode_likelihood` for the arguments. `width` is of a level, to spread images over."""

    def __init__(
        self,
        denoiser: Denoiser,
        images: FixedImages,
        conditions: Conditions | None,
        levels: list[NoiseLevel],
        seed: int,
        method: Method,
        trace: Trace,
        draws: int,
        width: float | None,
    ) -> None:
        self.denoiser, self.images, self.conditions, self.levels = denoiser, images, conditions, levels
        self.seed, self.method, self.trace, self.draws, self.width = seed, method, trace, draws, width
        if conditions is not None:
            conditions.check(denoiser.classes)
        self.per_row = (len(levels) - 1) * len(TABLEAUS[method][0])
        self.nats = np.zeros((len(images), draws))
        self.done = np.zeros(self.nats.size, dtype=bool)
        self._network, self._streams = NetworkRun(denoiser), Streams()

    def finish(self, checkpoint: Checkpoint, batch_size: int, progress: bool) -> None:
        """Run to the end, from the checkpoint if it holds anything; it is left in place. All processes of a shared work
        come here."""
        team, total = parallel.team(), self.nats.size
        rules = {"nats": ArrayRule("float64", self.nats.shape)}
        rules["done"] = ArrayRule("uint8", self.done.shape, most=1, optional=True)
        with checkpoint.restoring(rules) as saved:
            if saved is not None:
                self._continue_from(*saved)
        done = int(self.done.sum()) * self.per_row
        with (
            checkpoint.keeping(self._state),
            self._network,
            progress_bar(total * self.per_row, "likelihood", "eval", progress, initial=done) as bar,
        ):
            team.tell_idle(-(-int((~self.done).sum()) // batch_size), "batches of evaluations")
            while not self.done.all():
                self._stretch(team, checkpoint, batch_size, bar)

    def _stretch(self, team: parallel.Team, checkpoint: Checkpoint, batch_size: int, bar: Any) -> None:
        """Do what is left, or some of it if the state is to be saved, and tell it."""
        left, made = np.flatnonzero(~self.done), []
        batches = [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
        for k in np.array_split(np.arange(len(batches)), team.count)[team.rank]:
            rows = batches[k]
            found = self._batch(rows // self.draws, rows % self.draws)
            with checkpoint.changing():
                self._note(rows, found)
            made.append(rows)
            bar.update(len(rows) * self.per_row)
            if checkpoint.due() or team.called:
                team.call()
                break
        mine = np.concatenate([np.zeros(0, dtype=np.int64), *made])
        told = team.gather({"rows": mine, "nats": self.nats.reshape(-1)[mine]}, checkpoint.due())
        with checkpoint.changing():
            for theirs, _ in told:
                self._note(theirs["rows"], theirs["nats"])
        if any(due for _, due in told):
            checkpoint.save(self._state())
        team.end_if_stopped()

    def _note(self, rows: npt.NDArray[np.int64], nats: Float64Array) -> None:
        self.nats.reshape(-1)[rows] = nats
        self.done[rows] = True

    def _state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        return {"nats": self.nats, "done": self.done.astype(np.uint8)}, {"count": int(self.done.sum()), "marked": True}

    def _continue_from(self, arrays: dict[str, npt.NDArray[Any]], place: StateOfOde) -> None:
        total, first = self.nats.size, np.arange(self.nats.size) < place.count
        missing = place.marked != ("done" in arrays)
        checks.refuse(missing, "its array done is missing, or not said to be there")
        done = arrays["done"].astype(bool) if place.marked else first
        wrong = place.count > total
        checks.refuse(wrong, f"it says that {place.count} of {total} rows are done")
        wrong = int(done.sum()) != place.count
        checks.refuse(wrong, f"it says that {place.count} of {total} rows are done, but marks {int(done.sum())}")
        self.nats, self.done = arrays["nats"].copy(), done

    def _batch(self, images: npt.NDArray[np.int64], draws: npt.NDArray[np.int64]) -> Float64Array:
        """−log p of images, one draw each, in nats."""
        device, d = self.denoiser.device, math.prod(self.denoiser.shape)
        x_0 = self.images.take(images).double()
        if self.width is not None:
            x_0 = x_0 + self.width * self._drawn("ode likelihood dequantisation", images, draws, _uniform)
        probe = None
        if self.trace != "exact":
            draw = _signs if self.trace == "rademacher" else _normal
            probe = self._drawn("ode likelihood probe", images, draws, draw).to(device)
        first, last = self.levels[0], self.levels[-1]
        a = first.alpha / math.hypot(first.alpha, first.sigma)
        flow = ProbabilityFlow(self._network, self._condition(images, draws), probe)
        z, divergence = integrate(flow, a * x_0.to(device), self.levels, self.denoiser.schedule, self.method)
        nats = prior_nats(z, last, self.denoiser.schedule.prior_std_at(last)) - divergence - d * math.log(a)
        found: Float64Array = nats.cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(found))
        if len(bad):
            raise NumericalError(
                f"the flow of image {images[bad[0]]} gives a likelihood of {found[bad[0]]}; check the network's "
                "weights and precision, or take more steps."
            )
        return found

    def _drawn(self, purpose: str, images: Any, draws: Any, draw: Any) -> torch.Tensor:
        """(B, C, *spatial) float64: numbers of each row's own."""
        shape = self.denoiser.shape
        rows = [draw(self._streams.at(self.seed, purpose, i, j), shape) for i, j in zip(images, draws, strict=True)]
        return torch.from_numpy(np.stack(rows))

    def _condition(self, images: Any, draws: Any) -> Any:
        if self.conditions is None:
            return None
        picked = [
            self.conditions.pick(images[[k]], self._streams.at(self.seed, "likelihood condition", images[k], draws[k]))
            for k in range(len(images))
        ]
        return self.conditions.take(np.concatenate(picked), self.denoiser.device)


def _signs(stream: np.random.Generator, shape: tuple[int, ...]) -> Float64Array:
    return np.asarray(2.0 * stream.integers(2, size=shape) - 1.0, dtype=np.float64)


def _normal(stream: np.random.Generator, shape: tuple[int, ...]) -> Float64Array:
    return stream.standard_normal(shape)


def _uniform(stream: np.random.Generator, shape: tuple[int, ...]) -> Float64Array:
    return stream.random(shape) - 0.5


def _result(run: OdeRun, width: float | None, settings: dict[str, Any]) -> OdeLikelihood:
    bits = run.nats / (math.log(2.0) * math.prod(run.denoiser.shape)) - (0.0 if width is None else math.log2(width))
    per_image, (count, draws) = bits.mean(1), bits.shape
    error, noise = math.nan, math.nan
    if count > 1:
        error = float(per_image.std(ddof=1)) / math.sqrt(count)
    if run.trace == "exact" and width is None:
        noise = 0.0
    elif draws > 1:
        noise = math.sqrt(float(bits.var(1, ddof=1).sum()) / draws) / count
    evaluations = run.nats.size * run.per_row
    return OdeLikelihood(float(per_image.mean()), error, noise, per_image, count, draws, evaluations, settings)


# ---- what is refused ------------------------------------------------------------------------------------------------


def _level_width(denoiser: Denoiser, levels: int) -> float:
    missing = "levels needs a data range, which is None (unbounded data, such as latents); leave it out."
    low, high = checks.given(denoiser.data_range, missing)
    return (high - low) / (levels - 1)


def _check_trace(trace: str, draws: int, width: float | None, d: int) -> None:
    exact = trace == "exact"
    checks.refuse(
        exact and width is None and draws > 1,
        f"draws={draws} would all be the same: with trace='exact' nothing is random; leave it out.",
    )
    checks.refuse(
        exact and d > _MOST_EXACT,
        f"trace='exact' takes a vector-Jacobian product for each of {d} elements, which is for at most {_MOST_EXACT}; "
        "use 'rademacher'.",
    )
