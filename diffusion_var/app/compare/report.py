"""The report of one comparison or of several: results.json, results.csv, report.md and a self-contained report.html.

It opens with a few sentences and one figure, goes on with what to take, and has the details folded. Every number
and every sentence about who wins is made from this run's scores.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import write_together
from ...manifest import Manifest
from ...metrics.score import HIGHER_IS_BETTER
from ...plots import variance_curves
from ..options import BITS
from ..rendering import png, render, spreadsheet_cell
from .decisions import decisions, headline, solver_findings
from .findings import TITLES, baseline_text, findings, score_rows, short_of
from .folder import remove_report
from .pictures import Panel, part_panels, sample_sheet, score_curves
from .result import Comparison
from .words import words


@dataclass
class Part:
    """One comparison of a report.

    Attributes:
        name: of its files, where there are several parts.
        title, text: what it is, for people; empty for a report of one comparison.
        remarks: what has to be known of its numbers.
        floor: what its baseline is.
    """

    result: Comparison
    name: str = ""
    title: str = ""
    text: str = ""
    remarks: list[str] = field(default_factory=list)
    floor: str = "real images"

    @property
    def suffix(self) -> str:
        """Of the names of its pictures."""
        return f"_{self.name}" if self.name else ""


def write_report(
    parts: Comparison | Sequence[Part], folder: Path, run: str, title: str = "Which reverse variance?"
) -> None:
    """Write all files of the report into `folder`, and then the manifest that names the run and holds their hashes."""
    held = [Part(parts)] if isinstance(parts, Comparison) else list(parts)
    pictures = _pictures(held)
    shown: dict[str, Any] = as_json(held[0].result)
    if held[0].name:
        shown = {"parts": {part.name: as_json(part.result) for part in held}}
    files = {
        "results.json": (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode(),
        "results.csv": _csv(held).encode(),
        **{f"{name}.png": picture for name, picture in pictures.items()},
    }
    content = {
        "title": title,
        "model": "" if held[0].name else held[0].result.options.model,
        "sentences": [sentence for part in held for sentence in opening(part)],
        "figure": "figure" if held[0].name else f"scores_{held[0].result.options.metrics[0]}",
        "advice": [(part.title, advice(part)) for part in held],
        "words": words([part.result for part in held]),
        "parts": [_content(part) for part in held],
        "pictures": {name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
    }
    files |= {
        name: render("diffusion_var.app.compare", name, content).encode() for name in ("report.md", "report.html")
    }
    manifest = Manifest(folder, run)
    manifest.remove()
    write_together({folder / name: content for name, content in files.items()})
    remove_report(folder, but=frozenset(files))
    manifest.end(list(files))


def opening(part: Part) -> list[str]:
    """The first sentences: who is best, by each kind of metric; of a report of its own also what it cost."""
    result = part.result
    first = result.options.metrics[0]
    if part.name:
        return [f"{part.title}. {headline(result, first)}"]
    kinds = dict.fromkeys((first, *(m for m in result.options.metrics if m == BITS)))
    sentences = [headline(result, metric) for metric in kinds]
    if result.table is not None:
        sentences.append(f"The variances come from one table, of {result.table.evaluations:,} network evaluations.")
    return sentences


def advice(part: Part) -> list[str]:
    """What to take, by each kind of metric, where solvers win, and what has to be known of the numbers."""
    result = part.result
    kinds = [m for m in result.options.metrics if m in (result.options.metrics[0], BITS)]
    out = [line for metric in kinds for line in decisions(result, metric)]
    out += [line for metric in kinds if metric != BITS for line in solver_findings(result, metric)]
    if len(result.options.seeds) < 2:
        out.append("With one seed no two methods can be told apart; give more seeds.")
    return out + part.remarks


def _content(part: Part) -> dict[str, Any]:
    """What the details of a part are made of."""
    result = part.result
    return {
        "title": part.title or "Scores",
        "text": part.text,
        "floor": part.floor,
        "single": not part.name,
        "suffix": part.suffix,
        "options": result.options,
        "metrics": [
            {
                "name": metric,
                "of_images": metric != BITS,
                "title": TITLES.get(metric, metric),
                "best": "higher" if metric in HIGHER_IS_BETTER else "lower",
                "rows": score_rows(result, metric),
                "baseline": baseline_text(result.baseline.get(metric, []), metric),
                "picture": f"scores{part.suffix}_{metric}",
                "protocol": _flat(result.protocols[metric]),
            }
            for metric in result.options.metrics
        ],
        "steps": result.options.all_steps,
        "short": short_of(result),
        "images": result.options.count * len(result.options.seeds),
        "findings": findings(result),
        "table": result.table,
        "summary": None if result.table is None else result.table.summary(),
    }


def _pictures(parts: Sequence[Part]) -> dict[str, bytes]:
    """All pictures, by name."""
    out: dict[str, bytes] = {}
    if parts[0].name:
        panels = [
            Panel(part.result, part.result.options.metrics[0], part.title, part.result.options.methods, part.floor)
            for part in parts
        ]
        out["figure"] = png(part_panels(panels))
    for part in parts:
        result, options = part.result, part.result.options
        if not part.name:
            out |= {f"scores_{metric}": png(score_curves(result, metric)) for metric in options.metrics}
        if result.table is not None:
            out[f"variance{part.suffix}"] = png(variance_curves(result.table, max(options.all_steps)))
        if options.image_metrics:
            for k in options.all_steps:
                real = part.floor if part.name else "real images"
                out[f"samples{part.suffix}_{k}"] = png(sample_sheet(result, k, real), tight=False)
    return out


def as_json(result: Comparison) -> dict[str, Any]:
    """The scores as plain data; the same in every run with the same options and seed."""
    return {
        "cells": [
            {
                "method": c.method.label,
                "sampler": c.method.sampler,
                "covariance": c.method.covariance,
                "estimator": c.method.estimator if c.method.covariance == "analytic" else None,
                "structure": c.method.structure if c.method.covariance == "analytic" else None,
                "eta": c.method.eta,
                "final_noise_cap": c.method.final_noise_cap,
                "spacing": c.method.spacing,
                "steps": c.steps,
                "evaluations": c.steps if c.evaluations is None else c.evaluations,
                **({} if c.equivalents is None else {"equivalents": round(c.equivalents, 4)}),
                **({} if c.path is None else {"path": list(c.path), "decoder": c.path.decoder}),
                "images": result.options.count * len(result.options.seeds),
                "scores": {
                    metric: {
                        "values": c.values(metric),
                        "mean": c.mean(metric),
                        "spread": None if math.isnan(c.spread(metric)) else c.spread(metric),
                    }
                    for metric in c.scores
                },
            }
            for c in result.cells
        ],
        "baseline": result.baseline,
        "seeds": result.options.seeds,
        **_prices(result),
        "evaluations_of_the_table": None if result.table is None else result.table.evaluations,
        "protocols": result.protocols,
        "findings": findings(result),
    }


def _prices(result: Comparison) -> dict[str, Any]:
    """What a product counts for, by the derivative; nothing where no method takes any."""
    costs = {how: {"with_mean": cost.with_mean, "alone": cost.alone} for how, cost in result.costs.items()}
    return {"product_costs": costs} if costs else {}


def text_table(result: Comparison, metric: str, floor: str = "real images") -> str:
    """The scores as text for a terminal, the best of each column and all that are not told apart from it starred."""
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    head = f"{TITLES.get(metric, metric)} ({better} is better)"
    rows = [
        (label, [("* " if best else "") + text for text, best in cells]) for label, cells in score_rows(result, metric)
    ]
    if metric in result.baseline:
        rows.append((floor, [baseline_text(result.baseline[metric], metric)]))
    width = max(len(head), *(len(label) for label, _ in rows)) + 2
    lines = [head.ljust(width) + "".join(f"{f'K = {k}':>20s}" for k in result.options.all_steps)]
    lines += [label.ljust(width) + "".join(f"{text:>20s}" for text in texts) for label, texts in rows]
    return "\n".join(["", *lines])


def _flat(protocol: dict[str, Any]) -> dict[str, str]:
    """The protocol as lines of text: nested fields in one line, empty ones left out."""
    return {
        key.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
        for key, value in protocol.items()
        if value not in (None, {})
    }


def _csv(parts: Sequence[Part]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = list(dict.fromkeys(metric for part in parts for metric in part.result.options.metrics))
    several = bool(parts[0].name)
    # A column of its own where a method takes Jacobian-vector products; other reports stay as they were.
    counted = any(part.result.costs for part in parts)
    priced = ["equivalents"] if counted else []
    writer.writerow([*(["part"] if several else []), "method", "steps", *priced, "seed", "images", *metrics])
    for part in parts:
        options = part.result.options
        for cell in part.result.cells:
            for i, seed in enumerate(options.seeds):
                scores = [repr(cell.values(metric)[i]) if metric in cell.scores else "" for metric in metrics]
                images = options.count if options.image_metrics else ""
                images = images if several else options.count
                spent = [f"{cell.spent:g}"] if counted else []
                row = [spreadsheet_cell(cell.method.label), cell.steps, *spent, seed, images, *scores]
                writer.writerow([*([part.name] if several else []), *row])
    return out.getvalue()
