"""The report of a comparison: results.json, results.csv, report.md and a self-contained report.html.

Every number and every sentence about who wins is made from this run's scores.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomic
from . import plots
from .compare import Cell, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(result: Comparison, folder: Path) -> None:
    """Write all files of the report into `folder`."""
    rows = score_rows(result)
    write_atomic(folder / "results.json", (json.dumps(as_json(result), indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(folder / "results.csv", _csv(result).encode())
    figures = {
        "variance": plots.variance_curves(result.table, max(result.options.steps)),
        "scores": plots.score_curves(result),
    }
    figures |= {f"samples_{k}": plots.sample_grid(result, k) for k in result.options.steps}
    pictures = {name: _png(figure) for name, figure in figures.items()}
    for name, picture in pictures.items():
        write_atomic(folder / f"{name}.png", picture)
    content = {
        "result": result,
        "options": result.options,
        "rows": rows,
        "findings": findings(result),
        "baseline": _score_text(result.baseline),
        "summary": result.table.summary(),
        "pictures": {name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        "protocol": result.protocol,
    }
    for name in ("report.md", "report.html"):
        write_atomic(folder / name, _render(name, content).encode())


def as_json(result: Comparison) -> dict[str, Any]:
    """The scores as plain data; the same in every run with the same options and seed."""
    return {
        "cells": [
            {
                "method": c.method.label,
                "covariance": c.method.covariance,
                "estimator": c.method.estimator if c.method.covariance == "analytic" else None,
                "structure": c.method.structure if c.method.covariance == "analytic" else None,
                "eta": c.method.eta,
                "final_noise_cap": c.method.final_noise_cap,
                "steps": c.steps,
                "images": result.options.count * len(c.scores),
                "scores": c.scores,
                "mean": c.mean,
                "spread": None if math.isnan(c.spread) else c.spread,
            }
            for c in result.cells
        ],
        "baseline": result.baseline,
        "seeds": result.options.seeds,
        "evaluations_of_the_table": result.table.evaluations,
        "protocol": result.protocol,
    }


def score_rows(result: Comparison) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(method, [(score text, best of its column), …]) for the table."""
    best = {k: min(c.mean for c in result.cells if c.steps == k) for k in result.options.steps}
    return [
        (
            method.label,
            [
                (_score_text(cell.scores), cell.mean == best[k])
                for k in result.options.steps
                for cell in [result.cell(method, k)]
            ],
        )
        for method in result.options.methods
    ]


def findings(result: Comparison) -> list[str]:
    """Sentences that say who wins at each number of steps, and where the analytic variance does not help.

    All methods start from the same noise, so that two of them are compared by the differences of their scores seed by
    seed: one is better if the mean difference is larger than the differences' own standard deviation over the seeds.
    """
    return [*(_winner(result, k) for k in result.options.steps), *_family_findings(result), *_cap_findings(result)]


def verdict(a: Cell, b: Cell) -> int:
    """-1: a is better (lower) than b; 1: worse; 0: the seeds do not tell."""
    difference = np.subtract(a.scores, b.scores)
    spread = float(np.std(difference, ddof=1)) if len(difference) > 1 else 0.0
    return 0 if abs(difference.mean()) <= spread else int(np.sign(difference.mean()))


def _winner(result: Comparison, steps: int) -> str:
    ranked = sorted((c for c in result.cells if c.steps == steps), key=lambda c: c.mean)
    first = ranked[0]
    near = [c.method.label for c in ranked[1:] if verdict(c, first) == 0]
    tie = f"not told apart from it: {', '.join(near)}" if near else "every other method is worse beyond the spread"
    fixed = [c for c in ranked if c.method.covariance != "analytic"]
    who = ""
    if fixed and fixed[0] is first:
        who = " A fixed variance wins here: the measured one does not help."
    elif fixed:
        who = f" The best fixed choice is {fixed[0].method.label} with {_score_text(fixed[0].scores)}."
    return f"K = {steps}: {first.method.label} has the lowest score, {_score_text(first.scores)}; {tie}.{who}"


def _family_findings(result: Comparison) -> list[str]:
    """Within one η and number of steps, each analytic row against the best fixed row."""
    out = []
    for eta in sorted({m.eta for m in result.options.methods}, reverse=True):
        methods = [m for m in result.options.methods if m.eta == eta]
        fixed = [m for m in methods if m.covariance != "analytic"]
        analytic = [m for m in methods if m.covariance == "analytic"]
        for k in result.options.steps if fixed and analytic else []:
            best = min((result.cell(m, k) for m in fixed), key=lambda c: c.mean)
            cells = [result.cell(m, k) for m in analytic]
            counts = [sum(verdict(c, best) == sign for c in cells) for sign in (-1, 0, 1)]
            worse = [f"{c.method.label} ({_score_text(c.scores)})" for c in cells if verdict(c, best) == 1]
            family = "DDPM" if eta == 1 else "DDIM" if eta == 0 else f"η = {eta:g}"
            text = (
                f"{family}, K = {k}: against {best.method.label} ({_score_text(best.scores)}), {counts[0]} of "
                f"{len(cells)} analytic rows are better, {counts[1]} not told apart, {counts[2]} worse"
            )
            out.append(f"{text}: {', '.join(worse)}." if worse else f"{text}.")
    return out


def _cap_findings(result: Comparison) -> list[str]:
    """Where the last-step noise cap helps and where it harms."""
    verdicts = []
    for method in (m for m in result.options.methods if m.final_noise_cap is not None):
        twin = dataclasses.replace(method, final_noise_cap=None)
        if twin in result.options.methods:
            verdicts += [verdict(result.cell(method, k), result.cell(twin, k)) for k in result.options.steps]
    if not verdicts:
        return []
    helped, undecided, harmed = (verdicts.count(sign) for sign in (-1, 0, 1))
    return [
        f"The cap on the last noise helps in {helped} cells, harms in {harmed}; in {undecided} the seeds do not tell."
    ]


def _score_text(scores: list[float]) -> str:
    if not scores:
        return "–"
    return f"{np.mean(scores):.2f}" + (f" ± {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else "")


def _csv(result: Comparison) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "steps", "seed", "images", "frechet_distance"])
    for cell in result.cells:
        for seed, score in zip(result.options.seeds, cell.scores, strict=True):
            writer.writerow([cell.method.label, cell.steps, seed, result.options.count, repr(score)])
    return out.getvalue()


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None}, bbox_inches="tight")
    return out.getvalue()


def _render(name: str, content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffusion_var.app"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{name}.j2").render(content)
