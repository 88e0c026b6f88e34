"""The cells of `restoration.py`, as a file keeps them and as tables show them."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kept_cells import Kept
from table_rows import header, row

#: deepinv's methods: their names in tests/support/rivals.py, and in papers.
RIVALS = {
    "dps": "DPS",
    "diffpir": "DiffPIR",
    "ddrm": "DDRM",
    "pigdm": "ΠGDM (deepinv's)",
    "mmps": "MMPS (deepinv's)",
}


@dataclass(frozen=True)
class Cell:
    """One operator, σ_y, method and number of evaluations of the network."""

    operator: str
    noise: float
    method: str
    evaluations: int


@dataclass
class Scores:
    """What is kept of a cell: PSNR in dB and SSIM of every image, and what an image has cost."""

    psnr: list[float]
    ssim: list[float]
    runs: float
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)


Cells = Kept[Cell, Scores]


def keep(kept: Cells, cell: Cell, count: int, make: Callable[[], Scores]) -> None:
    """The cell, unless it is there with that `count` of images."""
    if cell in kept.cells and len(kept.cells[cell].psnr) >= count:
        return
    scores = make()
    kept.add(cell, scores)
    found = f"{np.mean(scores.psnr):8.2f} dB{np.mean(scores.ssim):7.3f}{scores.seconds:8.1f} s"
    said = f"{cell.operator:<20s}σ_y {cell.noise:<6g}{cell.method:<28s}{cell.evaluations:>4d}"
    print(said, found, scores.settings or "", flush=True)


def tables(kept: Cells, args: argparse.Namespace) -> None:
    """Of each σ_y: the mean over operators by evaluations, the operators at the numbers of evaluations that are
    compared, and paired differences of ours to rivals' there; of all methods, or of those that are asked for."""
    for noise in args.noise:
        cells = {cell: scores for cell, scores in kept.cells.items() if cell.noise == noise}
        there = dict.fromkeys(cell.method for cell in cells)
        methods = [method for method in args.methods or there if method in there]
        methods.sort(key=lambda method: not is_rival(method))
        cells = {cell: scores for cell, scores in cells.items() if cell.method in methods}
        by_evaluations(cells, methods, args.operators, noise)
        by_operator(cells, methods, args, noise)
        paired(cells, methods, args, noise)


def by_evaluations(cells: dict[Cell, Scores], methods: list[str], operators: list[str], noise: float) -> None:
    """The mean over operators; where a method cannot do all, over those that it can, and how many they are."""
    print(f"\nσ_y = {noise:g}, the mean over operators: PSNR in dB (SSIM)\n")
    numbers = sorted({cell.evaluations for cell in cells})
    header("evaluations", *numbers)
    for method in methods:
        able = [o for o in operators if any(cell.operator == o and cell.method == method for cell in cells)]
        shown = [mean_of([cells.get(Cell(o, noise, method, k)) for o in able]) for k in numbers]
        row(label(method) + f" (of {len(able)})" * (len(able) < len(operators)), *shown)


def by_operator(cells: dict[Cell, Scores], methods: list[str], args: argparse.Namespace, noise: float) -> None:
    at = args.rivals_at, args.ours_at
    print(f"\nσ_y = {noise:g}, deepinv's with {at[0]} evaluations and ours with {at[1]}, PSNR in dB (SSIM)\n")
    header("", *args.operators, "mean")
    for method in methods:
        k = at[0] if is_rival(method) else at[1]
        closed = Cell(args.operators[0], noise, method, 0) in cells
        found = [cells.get(Cell(operator, noise, method, 0 if closed else k)) for operator in args.operators]
        if any(found):
            row(label(method), *(mean_of([scores]) + fewer(scores, args.count) for scores in found), mean_of(found))


def mean_of(found: list[Scores | None]) -> str:
    """PSNR and SSIM, over cells that are all there, and of the same images."""
    there = [scores for scores in found if scores is not None]
    if len(there) < max(len(found), 1) or len({len(scores.psnr) for scores in there}) > 1:
        return ""
    psnr, ssim = (np.mean([np.mean(getattr(scores, key)) for scores in there]) for key in ("psnr", "ssim"))
    return f"{psnr:.2f} ({ssim:.3f})"


def fewer(scores: Scores | None, count: int) -> str:
    """Of how many images, where they are fewer than asked for."""
    return f", {len(scores.psnr)}" if scores is not None and len(scores.psnr) < count else ""


def paired(cells: dict[Cell, Scores], methods: list[str], args: argparse.Namespace, noise: float) -> None:
    """Mean over operators and images of PSNR differences, the standard error over images, and how many operators."""
    print(f"\nσ_y = {noise:g}, ours with {args.ours_at} evaluations less deepinv's with {args.rivals_at}, dB\n")
    names = [name for name in methods if is_rival(name)]
    header("", *map(label, names))
    for method in (name for name in methods if not is_rival(name)):
        shown = []
        for name in names:
            pairs = [
                (Cell(o, noise, method, args.ours_at), Cell(o, noise, name, args.rivals_at)) for o in args.operators
            ]
            both = [(cells[a].psnr, cells[b].psnr) for a, b in pairs if a in cells and b in cells]
            least = min((len(part) for pair in both for part in pair), default=0)  # the first images of all
            each = np.array([np.subtract(a[:least], b[:least]) for a, b in both]).mean(0) if both else np.array([])
            error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else math.nan
            shown.append(f"{each.mean():+.2f} ± {error:.2f} ({len(both)})" if len(each) > 1 else "")
        if any(shown):
            row(label(method), *shown)


def write_csv(kept: Cells, path: Path) -> None:
    """Every cell: operator, σ_y, method, evaluations, images, the mean PSNR and SSIM, and the settings."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["operator", "noise", "method", "evaluations", "images", "psnr", "ssim", "settings"])
        for cell, scores in sorted(kept.cells.items(), key=lambda item: astuple(item[0])):
            means = f"{np.mean(scores.psnr):.3f}", f"{np.mean(scores.ssim):.4f}"
            settings = " ".join(f"{key}={value}" for key, value in scores.settings.items())
            lines.writerow([*astuple(cell), len(scores.psnr), *means, settings])


def is_rival(method: str) -> bool:
    """Whether it is one of deepinv's, or the mean of some draws of one."""
    return method.split(", ")[0] in RIVALS


def label(method: str) -> str:
    """As papers call it."""
    first, *said = method.split(", ")
    return ", ".join([RIVALS.get(first, first), *said])
