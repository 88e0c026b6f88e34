"""The report of a restoration: report.md with sheets, results.json, results.csv, and pictures of every image."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...files import make_folder, sweep
from ...manifest import Manifest, write_files
from ...restoration.restore import RENOISING
from ..rendering import png, render, spreadsheet_cell
from . import tables
from .calibration import Calibration
from .cells import Cell
from .pictures import calibration_curves, given_files, image_files, png_files, sheet
from .setting import Setting

#: What a report consists of.
_OURS = (
    *("report.md", "results.*", "sheet_*.png", "calibration.png"),
    *("truth/*.png", "measured/*.png", "restored/*/*/*.png"),
)
_AT_ONCE = 256  # files


def write_report(setting: Setting, cells: Sequence[Cell], found: Sequence[Calibration], folder: Path, run: str) -> None:
    """Write all files into `folder`, and then the manifest that names the run and holds their hashes."""
    manifest = Manifest(folder, run)
    manifest.remove()
    for place in sorted({path.parent for path in folder.rglob("*.tmp")}):
        sweep(place)  # what writers left that were killed
    written: set[str] = set()

    def write(files: dict[str, bytes]) -> None:
        for parent in {Path(name).parent for name in files}:
            make_folder(folder / parent)
        write_files(folder, files)
        written.update(files)

    count = setting.rows if setting.options.pictures is None else min(setting.options.pictures, setting.rows)
    batch: dict[str, bytes] = {}
    for images in (given_files(setting, count), *(image_files(setting, cell, count) for cell in cells)):
        for name, content in png_files(images):
            batch[name] = content
            if len(batch) == _AT_ONCE:
                write(batch)
                batch = {}
    write(batch)
    write(_pages(setting, cells, found))
    _remove_others(folder, written)
    manifest.end(sorted(written))


def _noise(eta: float | None, tau: float | None) -> str:
    """The setting of the steps' noise that a run has."""
    return f"η = {eta:g}" if eta is not None else f"τ = {RENOISING if tau is None else tau:g}"


def _pages(setting: Setting, cells: Sequence[Cell], found: Sequence[Calibration]) -> dict[str, bytes]:
    options = setting.options
    files = {f"sheet_{k}.png": png(sheet(setting, tables.at_steps(cells, k)), tight=False) for k in options.steps}
    if found:
        files["calibration.png"] = png(calibration_curves(found))
    content = {
        "options": options,
        "noise": _noise(options.eta, options.tau),
        "rows": setting.rows,
        "numbers": math.prod(setting.measurement.shape),
        "metrics": " and ".join(tables.TITLES[name].partition(" ")[0] for name in setting.metrics[0]),
        "is_scored": setting.truth is not None,
        "sentences": [*tables.opening(cells, options.steps), *tables.calibrated(found)],
        "steps": [{"count": k, "rows": _rows(setting, cells, k)} for k in options.steps],
        "without": setting.metrics[1],
        "covariances": [one.covariance for one in found],
        "levels": tables.calibration_rows(found) if found else [],
        "pictures": options.pictures != 0,
    }
    numbers: dict[str, Any] = {
        "model": options.model,
        "operator": options.operator,
        "noise": options.noise,
        "measured": list(setting.measurement.shape),
        **tables.as_json(cells, found),
    }
    files["report.md"] = render("diffusion_var.app.restore", "report.md", content).encode()
    files["results.json"] = (json.dumps(numbers, indent=2, ensure_ascii=False) + "\n").encode()
    files["results.csv"] = _csv(cells).encode()
    return files


def _rows(setting: Setting, cells: Sequence[Cell], k: int) -> list[dict[str, Any]]:
    return tables.rows(tables.at_steps(cells, k), setting.metrics[0])


def _csv(cells: Sequence[Cell]) -> str:
    """One line an image and draw of each cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    metrics = list(cells[0].scores)
    writer.writerow(["covariance", "guidance", "steps", "evaluations", "image", "draw", *metrics])
    for cell in cells:
        for i in range(len(cell.draws)):
            for r in range(cell.draws.shape[1]):
                scores = [repr(float(cell.scores[metric][i, r])) for metric in metrics]
                first = [spreadsheet_cell(cell.covariance), cell.guidance, cell.steps, cell.evaluations]
                writer.writerow([*first, i, r, *scores])
    return out.getvalue()


def text_table(setting: Setting, cells: Sequence[Cell], k: int) -> str:
    """The scores of a number of steps as text for a terminal, the best and what is not told apart from it starred."""
    rows = _rows(setting, cells, k)
    heads = [*rows[0]["texts"]]
    lines = [["K = " + str(k), *heads]]
    for row in rows:
        lines.append([row["label"], *(("* " if head in row["best"] else "") + row["texts"][head] for head in heads)])
    widths = [max(len(line[column]) for line in lines) + 2 for column in range(len(lines[0]))]
    shown = ["".join(text.ljust(width) if c == 0 else text.rjust(width) for c, (text, width) in
                     enumerate(zip(line, widths, strict=True))) for line in lines]  # fmt: skip
    return "\n".join(["", *shown])


def _remove_others(folder: Path, written: set[str]) -> None:
    """Files of an earlier report in this folder, which are no part of this one."""
    for pattern in _OURS:
        for file in sorted(folder.glob(pattern)):
            if str(file.relative_to(folder)) not in written and file.is_file():
                file.unlink()
    for pattern in ("restored/*/*", "restored/*", "restored", "truth", "measured"):
        for place in sorted(folder.glob(pattern)):
            with suppress(OSError):  # where something is in it
                place.rmdir()
