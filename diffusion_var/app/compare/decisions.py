"""Which variance to take, decided from a comparison's scores alone.

At each number K of network evaluations, the methods that the seeds do not tell apart from the best one are equals (the
paired t-test of `findings`). Of equals the simplest is taken: one that needs no table and no head, if there is any.
So "no variance needs to be measured" is an answer, and so is a solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...metrics.score import HIGHER_IS_BETTER
from ..options import BITS
from .findings import TITLES, equals, score_text, verdict
from .options import Method
from .result import Cell, Comparison

#: A ratio to the next other variance that is worth a word.
_NOTEWORTHY = 1.5


@dataclass(frozen=True)
class Decision:
    """What to take at one number of evaluations.

    Attributes:
        taken: the method to take.
        free, measured: the best that needs no table or head, and the best that does; None where there is none.
        kind: "measured" (better than all that is free), "free" (better than all that is measured), "tie" (what is free
            is not told apart from the best), or "alone" (nothing to choose from).
    """

    taken: Cell
    free: Cell | None
    measured: Cell | None
    kind: str

    @property
    def other(self) -> Cell | None:
        """The best of the other kind."""
        return self.measured if self.taken is self.free else self.free


def needs_measuring(method: Method) -> bool:
    """Whether a method needs a variance table or a trained head."""
    return method.takes_table or method.covariance == "head" or method.spacing == "optimal"


def choose(result: Comparison, steps: int, metric: str) -> Decision | None:
    """What to take at one number of evaluations; None where no cell has the metric."""
    ranked = result.column(steps, metric)
    if not ranked:
        return None
    best = equals(result, steps, metric)
    free = next((cell for cell in ranked if not needs_measuring(cell.method)), None)
    measured = next((cell for cell in ranked if needs_measuring(cell.method)), None)
    if free is None or measured is None:
        return Decision(ranked[0], free, measured, "alone")
    if free not in best:
        return Decision(measured, free, measured, "measured")
    told = not any(needs_measuring(cell.method) for cell in best)
    return Decision(free, free, measured, "free" if told else "tie")


def headline(result: Comparison, metric: str) -> str:
    """One sentence: who is best by a metric, with numbers, and what the best of the other kind has."""
    title = TITLES.get(metric, metric)
    title = title[0].upper() + title[1:]
    parts = []
    for choices in _runs(result, metric):
        one = choices[0]
        text = f"{_at(choices)} {one.taken.method.label} has {_values([c.taken for c in choices], metric)}"
        others = [c.other for c in choices if c.other is not None]
        if others:
            kind = "the best without a table" if needs_measuring(one.taken.method) else "the best measured variance"
            tie = ", not told apart from" if one.kind == "tie" else ", against"
            text += f"{tie} {_values(others, metric)} of {kind} ({_labels(others)})"
        parts.append(text)
    direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
    return f"{title} ({direction} is better): {'; '.join(parts)}." if parts else f"{title}: nothing was measured."


def decisions(result: Comparison, metric: str) -> list[str]:
    """What to take, a sentence for each run of numbers of evaluations with the same answer."""
    what = "likelihoods" if metric == BITS else "samples"
    out = []
    for choices in _runs(result, metric):
        taken, others = [c.taken for c in choices], [c.other for c in choices if c.other is not None]
        begin = f"For {what} {_at(choices)} take {taken[0].method.label}"
        values, kind = _values(taken, metric), choices[0].kind
        if kind == "measured":
            end = f": {values}, where the best that needs no table ({_labels(others)}) has {_values(others, metric)}"
        elif kind == "free":
            end = (
                f", which needs no table: {values}. The best measured variance ({_labels(others)}) has "
                f"{_values(others, metric)} and is worse"
            )
        elif kind == "tie":
            end = (
                f", which needs no table: {values}. The best measured variance ({_labels(others)}) has "
                f"{_values(others, metric)}, which {len(result.options.seeds)} seeds do not tell apart"
            )
        else:
            end = f": {values}"
        out.append(f"{begin}{end}{_margin(result, choices, metric)}.")
    return out


def solver_findings(result: Comparison, metric: str) -> list[str]:
    """Where solvers are better than every measured variance, and where they are worse than one."""
    out = []
    for method in (m for m in result.options.methods if m.sampler is not None):
        signs: dict[int, list[int]] = {-1: [], 0: [], 1: []}
        for k in result.options.all_steps:
            cell = result.cell(method, k)
            best = next((c for c in result.column(k, metric) if needs_measuring(c.method)), None)
            if cell is not None and best is not None and metric in cell.scores:
                signs[verdict(cell, best, metric)].append(k)
        said = {-1: "better than the best measured variance", 0: "not told apart from it", 1: "worse than it"}
        said |= {0: "not told apart from the best measured variance"} if not signs[-1] else {}
        said |= {1: "worse than the best measured variance"} if not signs[-1] + signs[0] else {}
        parts = [f"{said[sign]} at {listed(ks)}" for sign, ks in signs.items() if ks]
        if parts:
            out.append(f"{method.label} is {', '.join(parts)} evaluations.")
    return out


def listed(numbers: Sequence[object]) -> str:
    """3, 5 and 10."""
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _runs(result: Comparison, metric: str) -> list[list[Decision]]:
    """The choices, in runs of the same answer of the same kind."""
    found = [choice for k in result.options.all_steps if (choice := choose(result, k, metric)) is not None]
    return [list(run) for _, run in groupby(found, key=lambda c: (c.taken.method.label, c.kind))]


def _at(choices: Sequence[Decision]) -> str:
    ks = [c.taken.steps for c in choices]
    return f"at {listed(ks)} evaluation{'s' if ks != [1] else ''}"


def _values(cells: Sequence[Cell], metric: str) -> str:
    return listed([score_text(c.mean(metric), float("nan"), metric) for c in cells])


def _labels(cells: Sequence[Cell]) -> str:
    return listed(list(dict.fromkeys(c.method.label for c in cells)))


def _margin(result: Comparison, choices: Sequence[Decision], metric: str) -> str:
    """How far the next other variance is, where it is far; solvers and other steps of one variance are no variances."""
    if choices[0].kind != "measured" or metric == BITS or metric in HIGHER_IS_BETTER:
        return ""
    ratios = []
    for choice in choices:
        others = [
            c for c in result.column(choice.taken.steps, metric)
            if c is not choice.taken and c.method.sampler is None
        ]  # fmt: skip
        if not others or choice.taken.mean(metric) <= 0 or verdict(choice.taken, others[0], metric) >= 0:
            return ""
        ratios.append(others[0].mean(metric) / choice.taken.mean(metric))
    return f"; every other variance has at least {min(ratios):.1f} times as much" if min(ratios) > _NOTEWORTHY else ""
