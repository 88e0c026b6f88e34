"""The cells of `restoration.py`, as a file keeps them and as tables show them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: deepinv's methods, whose names are those of tests/support/rivals.py.
RIVALS = ("dps", "diffpir", "ddrm", "pigdm", "mmps")


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


class Kept:
    """The finished cells of a data set, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path, self.cells = path, dict[Cell, Scores]()
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.cells[Cell(**entry["cell"])] = Scores(**entry["scores"])

    def make(self, cell: Cell, count: int, make: Callable[[], Scores]) -> None:
        """The cell, unless it is there with that `count` of images."""
        if cell in self.cells and len(self.cells[cell].psnr) >= count:
            return
        scores = self.cells[cell] = make()
        with self.path.open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "scores": asdict(scores)}, ensure_ascii=False) + "\n")
        found = f"{np.mean(scores.psnr):8.2f} dB{np.mean(scores.ssim):7.3f}{scores.seconds:8.1f} s"
        said = f"{cell.operator:<20s}σ_y {cell.noise:<6g}{cell.method:<28s}{cell.evaluations:>4d}"
        print(said, found, scores.settings or "", flush=True)


def row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def tables(kept: Kept, args: argparse.Namespace) -> None:
    """PSNR and SSIM of every cell, and paired differences of ours at 20 evaluations to rivals' at 100."""
    cells = kept.cells
    for noise in args.noise:
        print(f"\nσ_y = {noise:g}, PSNR in dB (SSIM)\n")
        row("method", "evaluations", *args.operators)
        row(*("---" for _ in range(len(args.operators) + 2)))
        there = dict.fromkeys((cell.method, cell.evaluations) for cell in cells if cell.noise == noise)
        for method, k in sorted(there, key=lambda pair: (not is_rival(pair[0]), pair[0], pair[1])):
            found = [cells.get(Cell(operator, noise, method, k)) for operator in args.operators]
            row(method, k, *("" if s is None else f"{np.mean(s.psnr):.2f} ({np.mean(s.ssim):.3f})" for s in found))
        paired(cells, args, noise)


def paired(cells: dict[Cell, Scores], args: argparse.Namespace, noise: float) -> None:
    """Mean over operators and images of PSNR differences, and the standard error over images."""
    print(f"\nσ_y = {noise:g}, ours with {args.ours_at} evaluations less deepinv's with {args.rivals_at}, dB\n")
    names = [name for name in dict.fromkeys(cell.method for cell in cells) if is_rival(name)]
    row("", *names)
    row(*("---" for _ in range(len(names) + 1)))
    for method in dict.fromkeys(cell.method for cell in cells if not is_rival(cell.method)):
        shown = []
        for name in names:
            pairs = [
                (Cell(o, noise, method, args.ours_at), Cell(o, noise, name, args.rivals_at)) for o in args.operators
            ]
            both = [(cells[a].psnr, cells[b].psnr) for a, b in pairs if a in cells and b in cells]
            least = min((len(part) for pair in both for part in pair), default=0)  # the first images of all
            each = np.array([np.subtract(a[:least], b[:least]) for a, b in both]).mean(0) if both else np.array([])
            shown.append(f"{each.mean():+.2f} ± {each.std(ddof=1) / len(each) ** 0.5:.2f}" if len(each) > 1 else "")
        if any(shown):
            row(method, *shown)


def is_rival(method: str) -> bool:
    """Whether it is one of deepinv's, or the mean of some draws of one."""
    return method.split(", ")[0] in RIVALS
