"""What a comparison says of who wins, in sentences made from its scores alone.

All methods start from the same noise, so that two of them are compared by the differences of their scores seed by seed:
one is better if a paired t-test over the seeds says so at the 5 % level (two-sided, each pair by itself).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ...metrics.score import HIGHER_IS_BETTER
from ...models.product_cost import ProductCost
from ..options import BITS, WITH_TABLE
from .options import Method
from .result import Cell, Comparison

TITLES = {"fid": "Fréchet distance", "kid": "kernel distance", BITS: "bits/dim"}
_MOST_NAMES = 3  # in one sentence


def findings(result: Comparison) -> list[str]:
    """Who wins at each number of steps by the first metric, and where the analytic variance does not help."""
    first, *others = result.options.metrics
    found = _winners(result, first)
    if len(result.options.seeds) > 1:
        found += [*_family_findings(result, first), *([] if first == BITS else _cap_findings(result, first))]
    # Likelihoods and images often disagree, so that neither speaks for the other.
    found += [f"Bits/dim, {line}" for line in _winners(result, BITS)] if BITS in others else []
    if len(result.options.seeds) < 2:
        found.append("With one seed no two methods can be told apart; give more seeds.")
    return found


def _winners(result: Comparison, metric: str) -> list[str]:
    return [_winner(result, k, metric) for k in result.options.all_steps if result.column(k, metric)]


def verdict(a: Cell, b: Cell, metric: str) -> int:
    """-1: a is better than b; 1: worse; 0: the seeds do not tell (one seed tells nothing)."""
    from scipy.special import stdtrit

    difference = np.subtract(a.values(metric), b.values(metric))
    count = len(difference)
    if count < 2:
        return 0
    least = stdtrit(count - 1, 0.975) * np.std(difference, ddof=1) / np.sqrt(count)
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    return 0 if abs(difference.mean()) <= least else sign * int(np.sign(difference.mean()))


def equals(result: Comparison, steps: int, metric: str) -> list[Cell]:
    """The best cell of a column and those that the seeds do not tell apart from it; with one seed the best alone."""
    ranked = result.column(steps, metric)
    told = len(result.options.seeds) > 1
    return [cell for cell in ranked if cell is ranked[0] or (told and verdict(cell, ranked[0], metric) == 0)]


def score_text(value: float, spread: float, metric: str) -> str:
    """A score ± its spread (nan: none); a KID's size depends on the network's features, so it gets three digits."""
    parts = [value, *([] if math.isnan(spread) else [spread])]
    if metric == "kid":
        return " ± ".join(f"{part:.0f}" if abs(part) >= 100 else f"{part:.3g}" for part in parts)
    digits = 4 if metric == BITS else 3 if metric in HIGHER_IS_BETTER else 2
    return " ± ".join(f"{part:.{digits}f}" for part in parts)


def baseline_text(scores: list[float], metric: str) -> str:
    """Mean ± standard deviation of the real images' scores; a dash where there are none."""
    if not scores:
        return "–"
    return score_text(float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan, metric)


def score_rows(result: Comparison, metric: str) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Rows (label, [(score text, whether no other is told apart from it as better), …]); "–" where there is none.

    A † marks a cell that spends fewer evaluations than its column has, see `short_of`.
    """
    steps = result.options.all_steps
    best = {k: equals(result, k, metric) for k in steps}
    rows = []
    for method in result.options.methods:
        cells = [(k, result.cell(method, k)) for k in steps]
        rows.append(
            (
                method.label,
                [
                    ("–", False)
                    if c is None or metric not in c.scores
                    else (_text(c, metric) + ("" if c.spent == k else " †"), any(c is one for one in best[k]))
                    for k, c in cells
                ],
            )
        )
    return rows


def short_of(result: Comparison) -> list[str]:
    """Methods whose steps do not make up the evaluations of a column, and what they spend."""
    out = []
    for method in result.options.methods:
        cells = [c for c in result.cells if c.method == method and c.spent != c.steps]
        if cells:
            spent = ", ".join(f"{c.spent:.4g} of {c.steps}" for c in cells)
            why = "no more of its steps fit"
            if any(c.spent > c.steps for c in cells):
                why = "fewer of its steps do not exist, or the levels are its own"
            out.append(f"† {method.label} spends {spent} evaluations: {why}.")
    return out + [price for cost in result.costs.values() if (price := price_text(cost))]


def price_text(cost: ProductCost) -> str:
    """What a Jacobian-vector product counts for, in a sentence."""
    if cost.derivative == "difference":
        return "A Jacobian-vector product as a difference counts for one evaluation."
    how = "as it was given" if cost.seconds is None else "measured on this network"
    return (
        f"A Jacobian-vector product counts for {cost.with_mean:.2f} evaluations where it comes with the mean, and for "
        f"{cost.alone:.2f} by itself ({how})."
    )


def _fixed_and_measured(cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Those whose variance took no images to know (β, β̃, DDIM, the network's own range), and tables and heads."""
    known = (*WITH_TABLE, "head")
    fixed, measured = ([c for c in cells if (c.method.covariance in known) == wanted] for wanted in (False, True))
    return fixed, measured


def _winner(result: Comparison, steps: int, metric: str) -> str:
    ranked = result.column(steps, metric)
    first = ranked[0]
    near = [c.method.label for c in ranked[1:] if verdict(c, first, metric) == 0]
    who = ""
    if len(ranked) > 1 and len(first.scores[metric]) > 1:
        more = f" and {len(near) - _MOST_NAMES} others" if len(near) > _MOST_NAMES else ""
        tie = (
            f"not told apart from it: {', '.join(near[:_MOST_NAMES])}{more}" if near else "every other method is worse"
        )
        who = f"; {'no other method is told apart from it' if len(near) == len(ranked) - 1 else tie}"
    fixed, measured = _fixed_and_measured(ranked)
    who += "."
    if fixed and measured and fixed[0] is first and verdict(measured[0], first, metric) == 1:
        who += " A fixed variance wins here: the measured one does not help."
    elif fixed and measured and fixed[0] is not first:
        who += f" The best fixed choice is {fixed[0].method.label} with {_text(fixed[0], metric)}."
    return f"K = {steps}: {first.method.label} has the best score, {_text(first, metric)}{who}"


def _family_findings(result: Comparison, metric: str) -> list[str]:
    """Within one η and number of steps, each analytic row or head against the best fixed row."""
    out = []
    for family in _families(result.options.methods):
        for k in result.options.all_steps:
            cells = [c for c in result.column(k, metric) if c.method.family == family]
            fixed, measured = _fixed_and_measured(cells)
            if not fixed or not measured:
                continue
            signs = [verdict(c, fixed[0], metric) for c in measured]
            worse = [f"{c.method.label} ({_text(c, metric)})" for c, s in zip(measured, signs, strict=True) if s == 1]
            if len(worse) > _MOST_NAMES:
                worse = [*worse[:_MOST_NAMES], f"and {len(worse) - _MOST_NAMES} others"]
            kinds = {"head" if c.method.covariance == "head" else c.method.takes_products for c in measured}
            rows = (
                "measured rows" if True in kinds else "analytic rows and heads" if "head" in kinds else "analytic rows"
            )
            text = (
                f"{family}, K = {k}: against {fixed[0].method.label} ({_text(fixed[0], metric)}), "
                f"{signs.count(-1)} of {len(measured)} {rows} are better, {signs.count(0)} not told apart, "
                f"{signs.count(1)} worse"
            )
            out.append(f"{text}: {', '.join(worse)}." if worse else f"{text}.")
    return out


def _families(methods: list[Method]) -> list[str]:
    """DDPM first, then falling η, then τ."""
    ordered = sorted(methods, key=lambda m: (m.tau is not None, -m.eta, m.tau or 0.0))
    return list(dict.fromkeys(m.family for m in ordered))


def _cap_findings(result: Comparison, metric: str) -> list[str]:
    """Where the last-step noise cap helps and where it harms."""
    verdicts = []
    for cell in (c for c in result.cells if c.method.final_noise_cap is not None and metric in c.scores):
        wanted = _plain(cell.method, final_noise_cap=None, capped_steps=1)
        twin = next((c for c in result.cells if c.steps == cell.steps and _plain(c.method) == wanted), None)
        if twin is not None:
            verdicts.append(verdict(cell, twin, metric))
    if not verdicts:
        return []
    helped, undecided, harmed = (verdicts.count(sign) for sign in (-1, 0, 1))
    return [
        f"The cap on the last noise helps in {helped} of {len(verdicts)} cells and harms in {harmed}; "
        f"in {undecided} the seeds do not tell."
    ]


def _plain(method: Method, **changes: Any) -> Method:
    """The method without its name and its own steps, which do not decide a cell."""
    return dataclasses.replace(method, name=None, steps=None, **changes)


def _text(cell: Cell, metric: str) -> str:
    return score_text(cell.mean(metric), cell.spread(metric), metric)
