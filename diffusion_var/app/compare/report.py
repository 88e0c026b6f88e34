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

from ...errors import printable
from ...files import write_together
from ...manifest import Manifest
from ...metrics.score import HIGHER_IS_BETTER
from ...plots import variance_curves
from ..options import BITS
from .findings import baseline_text, findings, score_rows
from .folder import remove_report
from .markdown import code_block, code_span, markdown, strong
from .pictures import TITLES, sample_grid, score_curves
from .result import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(result: Comparison, folder: Path, run: str) -> None:
    """Write all files of the report into `folder`, and then the manifest that names the run and holds their hashes."""
    pictures = {name: _png(figure) for name, figure in _figures(result).items()}
    files = {
        "results.json": (json.dumps(as_json(result), indent=2, ensure_ascii=False) + "\n").encode(),
        "results.csv": _csv(result).encode(),
        **{f"{name}.png": picture for name, picture in pictures.items()},
    }
    content = {
        "options": result.options,
        "metrics": [
            {
                "name": metric,
                "of_images": metric != BITS,
                "title": TITLES.get(metric, metric),
                "best": "higher" if metric in HIGHER_IS_BETTER else "lower",
                "rows": score_rows(result, metric),
                "baseline": baseline_text(result.baseline.get(metric, []), metric),
                "picture": f"scores_{metric}",
                "protocol": _flat(result.protocols[metric]),
            }
            for metric in result.options.metrics
        ],
        "steps": result.options.all_steps,
        "images": result.options.count * len(result.options.seeds),
        "findings": findings(result),
        "table": result.table,
        "summary": None if result.table is None else result.table.summary(),
        "pictures": {name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
    }
    files |= {name: _render(name, content).encode() for name in ("report.md", "report.html")}
    manifest = Manifest(folder, run)
    manifest.remove()
    write_together({folder / name: content for name, content in files.items()})
    remove_report(folder, but=frozenset(files))
    manifest.end(list(files))


def _figures(result: Comparison) -> dict[str, Figure]:
    figures = {f"scores_{metric}": score_curves(result, metric) for metric in result.options.metrics}
    if result.table is not None:
        figures["variance"] = variance_curves(result.table, max(result.options.all_steps))
    if result.options.image_metrics:
        figures |= {f"samples_{k}": sample_grid(result, k) for k in result.options.all_steps}
    return figures


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
                "spacing": c.method.spacing,
                "steps": c.steps,
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
        "evaluations_of_the_table": None if result.table is None else result.table.evaluations,
        "protocols": result.protocols,
        "findings": findings(result),
    }


def text_table(result: Comparison, metric: str) -> str:
    """The scores as text for a terminal, the best of each column starred."""
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    head = f"{TITLES.get(metric, metric)} ({better} is better)"
    rows = [
        (label, [("* " if best else "") + text for text, best in cells]) for label, cells in score_rows(result, metric)
    ]
    if metric in result.baseline:
        rows.append(("real images", [baseline_text(result.baseline[metric], metric)]))
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


def _csv(result: Comparison) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "steps", "seed", "images", *result.options.metrics])
    for cell in result.cells:
        for i, seed in enumerate(result.options.seeds):
            scores = [
                repr(cell.values(metric)[i]) if metric in cell.scores else "" for metric in result.options.metrics
            ]
            writer.writerow([_cell(cell.method.label), cell.steps, seed, result.options.count, *scores])
    return out.getvalue()


def _cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.lstrip().startswith(("=", "+", "-", "@")) else name


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None}, bbox_inches="tight")
    return out.getvalue()


def _printable_lines(value: Any) -> Any:
    return "\n".join(printable(line, None) for line in value.split("\n")) if isinstance(value, str) else value


def _render(name: str, content: dict[str, Any]) -> str:
    import jinja2

    is_html = name.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffusion_var.app.compare"),
        autoescape=is_html,
        finalize=_printable_lines if is_html else markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code_span, "strong": strong, "block": code_block}
    return environment.get_template(f"{name}.j2").render(content)
