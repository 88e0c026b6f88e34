"""What is advised for a model, as plain data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..variance.table import VarianceTable
from .diagnosis import Diagnosis
from .distances import Difference
from .mean import MeanAtLevel, in_words
from .samples import Samples


@dataclass(frozen=True)
class Bits:
    """One way to bound the likelihood, at one number of steps.

    Attributes:
        name: covariance and steps, in words.
        steps: K; `first` is the index that the path begins at.
        value, error: bits/dim of the held-out images, and its standard error over groups of them.
    """

    name: str
    steps: int
    first: int
    value: float
    error: float


@dataclass(frozen=True)
class Likelihood:
    """What the table does for likelihoods.

    Attributes:
        unit: "bits/dim", or "bits/dim of density".
        structure: the structure that is advised.
        rows: everything that was measured.
        gains: for every number of steps: the best bound without a table (β or β̃, even or log-SNR steps, these with a
            measured decoder) less the advised one.
        variance_gains: the same with the better of β and β̃ on the optimal path: what the variance alone is worth.
        paths: for every number of steps, the indices of the advised path.
        images: held out.
    """

    unit: str
    structure: str
    rows: tuple[Bits, ...] = field(repr=False)
    gains: dict[int, Difference]
    variance_gains: dict[int, Difference]
    paths: dict[int, tuple[int, ...]] = field(repr=False)
    images: int

    @property
    def worth_it(self) -> bool:
        """Whether the bound is better with the table at any number of steps, beyond doubt."""
        return any(gain.value > 0 and gain.told_apart(len(self.gains)) for gain in self.gains.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "worth_it": self.worth_it,
            "unit": self.unit,
            "structure": self.structure,
            "rows": [asdict(row) for row in self.rows],
            "gains": {str(k): asdict(gain) for k, gain in self.gains.items()},
            "variance_gains": {str(k): asdict(gain) for k, gain in self.variance_gains.items()},
            "paths": {str(k): [*path] for k, path in self.paths.items()},
            "images": self.images,
        }


@dataclass(frozen=True)
class Advice:
    """What is advised for a model; printed, it says what to do and why.

    Attributes:
        diagnosis: whether the network does what is declared.
        mean: how imperfect its mean is, by noise level.
        likelihood, samples: what the measured variance does for both; None where the diagnosis forbids to go on.
        table: the variance table that all of it is from.
        images: how many for the table, and how many held out.
        budget, evaluations: of the network; those that were made in this run.
        notes: what was warned of on the way.
    """

    diagnosis: Diagnosis
    mean: tuple[MeanAtLevel, ...] = field(repr=False)
    likelihood: Likelihood | None
    samples: Samples | None
    table: VarianceTable | None = field(repr=False)
    images: tuple[int, int]
    budget: int
    evaluations: int
    notes: tuple[str, ...] = field(repr=False, default=())

    @property
    def worth_it(self) -> bool | None:
        """Whether a measured variance is worth it at all; None where nothing could be said."""
        if self.likelihood is None or self.samples is None:
            return None
        return self.likelihood.worth_it or self.samples.worth_it

    @property
    def sentence(self) -> str:
        """The advice in one sentence."""
        if self.diagnosis.verdict == "none":
            return "no advice: the network makes no sense as declared, nor in any other way that was tried."
        if self.likelihood is None or self.samples is None:
            return "declare the network rightly first: a table of a mean that is misread is of no use."
        said = f"for likelihoods {'yes' if self.likelihood.worth_it else 'no'}, for samples "
        where = [str(t.steps) for t in self.samples.tested if t.verdict == "yes"]
        said += f"yes (at {', '.join(where)} steps)" if where else "no"
        return f"is the measured variance worth it? {said}."

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "sentence": self.sentence,
            "worth_it": self.worth_it,
            "diagnosis": self.diagnosis.to_dict(),
            "mean": [row.to_dict() for row in self.mean],
            "likelihood": None if self.likelihood is None else self.likelihood.to_dict(),
            "samples": None if self.samples is None else self.samples.to_dict(),
            "table": None if self.table is None else self.table.digest,
            "images": [*self.images],
            "budget": self.budget,
            "evaluations": self.evaluations,
            "notes": [*self.notes],
        }

    def __str__(self) -> str:
        parts = [self.sentence, f"\nConventions: {self.diagnosis.sentence}"]
        if self.mean:
            parts += ["\nThe mean: " + in_words(self.mean) + ".", *_mean_lines(self.mean)]
        if self.likelihood is not None:
            parts += _likelihood_lines(self.likelihood)
        if self.samples is not None:
            parts += _sample_lines(self.samples)
        parts.append(
            f"\n{self.images[0]} images for the table, {self.images[1]} held out; {self.evaluations:,} network "
            f"evaluations of {self.budget:,}"
        )
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def _mean_lines(rows: tuple[MeanAtLevel, ...]) -> list[str]:
    return [
        "       n   residual   / linear  estimators disagree  surely error",
        *(
            f"  {row.n:6d} {row.residual:10.4g} {row.residual / row.linear:10.3f} {row.disagreement:20.1%} "
            f"{row.surely:13.1%}"
            for row in rows
        ),
    ]


def _likelihood_lines(found: Likelihood) -> list[str]:
    answer = "yes" if found.worth_it else "no"
    lines = [
        f"\nLikelihoods ({found.images} held-out images, {found.unit}, ± standard error): {answer}; structure "
        f"{found.structure}, steps dv.steps.optimal with a measured decoder"
    ]
    for steps, gain in found.gains.items():
        alone = found.variance_gains[steps]
        lines.append(
            f"  {steps} steps: {gain.value:+.4f} ± {gain.error:.4f} better than without a table, of which the variance "
            f"itself {alone.value:+.4f} ± {alone.error:.4f}"
        )
        rows = sorted((row for row in found.rows if row.steps == steps), key=lambda row: row.value)
        lines += [f"    {row.value:10.4f} ± {row.error:.4f}  {row.name}, from index {row.first}" for row in rows]
    return lines


def _sample_lines(found: Samples) -> list[str]:
    floor = "" if found.floor is None else f"; real images {found.floor:.4g}"
    answer = "yes" if found.worth_it else "no"
    lines = [
        f"\nSamples ({found.count} with the best choices, Fréchet distance in {found.features} to {found.reference} "
        f"held-out images{floor}): {answer}"
    ]
    for tested in found.tested:
        gain = tested.gain
        apart = "" if tested.verdict != "not told apart" else ", which is not told apart from chance"
        apart += " (taken all the same: at another number of steps it is)" if tested.leaning else ""
        lines.append(
            f"  {tested.steps} steps: {tested.advised.name}; {tested.best.name} is {gain.value:+.3g} ± "
            f"{gain.error:.2g} better than {tested.rival.name}{apart}"
        )
        rows = sorted(tested.distances, key=lambda row: row[1])
        lines += [f"    {value:10.4g} ± {error:.2g}  {name}" for name, value, error in rows]
        if tested.spacing != "linspace" and tested.spacing_gain is not None:
            better = tested.spacing_gain
            lines.append(
                f"    {tested.spacing} steps are {better.value:.3g} ± {better.error:.2g} better than even ones"
            )
        lines.append(f"    {tested.advised.code(tested.steps)}")
    return lines
