"""The report of a comparison: results.json, results.csv, report.md and a self-contained report.html.

Every number and every sentence about who wins is made from this run's scores.
"""

from __future__ import annotations

import base64
import csv
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
    figures = {"variance": plots.variance_curves(result.table), "scores": plots.score_curves(result)}
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
    """Sentences that say who wins at each number of steps, and where the analytic variance does not help."""
    return [*(_winner(result, k) for k in result.options.steps), *_family_findings(result), *_cap_findings(result)]


def _winner(result: Comparison, steps: int) -> str:
    ranked = sorted((c for c in result.cells if c.steps == steps), key=lambda c: c.mean)
    first = ranked[0]
    near = [c.method.label for c in ranked[1:] if c.mean - first.mean <= _noise(c, first)]
    tie = f"; within the spread of it: {', '.join(near)}" if near else "; no other method is within the spread of it"
    fixed = [c for c in ranked if c.method.covariance != "analytic"]
    who = ""
    if fixed and first.method.covariance != "analytic" and len(fixed) < len(ranked):
        who = " Here a fixed variance wins: the measured one does not help."
    elif fixed and fixed[0] is not first:
        who = f" The best fixed choice is {fixed[0].method.label} with {_score_text(fixed[0].scores)}."
    return f"K = {steps}: {first.method.label} wins with {_score_text(first.scores)}{tie}.{who}"


def _family_findings(result: Comparison) -> list[str]:
    """Within one η, each analytic row against the best fixed row."""
    out = []
    for eta in sorted({m.eta for m in result.options.methods}, reverse=True):
        methods = [m for m in result.options.methods if m.eta == eta]
        fixed = [m for m in methods if m.covariance != "analytic"]
        losses, comparisons = [], 0
        for k in result.options.steps if fixed else []:
            reference = min((result.cell(m, k) for m in fixed), key=lambda c: c.mean)
            for cell in (result.cell(m, k) for m in methods if m.covariance == "analytic"):
                comparisons += 1
                if cell.mean > reference.mean:
                    losses.append(f"{cell.method.label} at K = {k} ({cell.mean:.2f} against {reference.mean:.2f})")
        if comparisons:
            family = "DDPM" if eta == 1 else "DDIM" if eta == 0 else f"η = {eta:g}"
            won = comparisons - len(losses)
            text = (
                f"{family}: {won} of {comparisons} analytic cells are better than the best fixed variance of the same η"
            )
            out.append(f"{text}; worse are {', '.join(losses)}." if losses else f"{text}.")
    return out


def _cap_findings(result: Comparison) -> list[str]:
    """Where the last-step noise cap helps and where it harms."""
    helped = harmed = undecided = 0
    for method in result.options.methods:
        if method.final_noise_cap is None:
            continue
        twins = [
            m
            for m in result.options.methods
            if m.final_noise_cap is None
            and (m.covariance, m.eta, m.estimator, m.structure)
            == (method.covariance, method.eta, method.estimator, method.structure)
        ]
        for k in result.options.steps if twins else []:
            with_cap, without = result.cell(method, k), result.cell(twins[0], k)
            if abs(with_cap.mean - without.mean) <= _noise(with_cap, without):
                undecided += 1
            elif with_cap.mean < without.mean:
                helped += 1
            else:
                harmed += 1
    if not helped + harmed + undecided:
        return []
    text = f"The cap on the last noise helps in {helped} cells and harms in {harmed}"
    return [f"{text}; {undecided} are within the spread."]


def _noise(a: Cell, b: Cell) -> float:
    spreads = [0.0 if math.isnan(c.spread) else c.spread for c in (a, b)]
    return math.hypot(*spreads)


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
    figure.savefig(out, format="png", metadata={"Software": None})
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
