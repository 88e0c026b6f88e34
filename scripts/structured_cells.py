"""The cells of `structured.py`, as a file keeps them and as tables show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from kept_cells import Kept
from table_rows import header, row

#: What a part's methods are compared to, and in which part its cells are.
RIVAL, TABLE = "DPM-Solver++(2M)", "dct"


@dataclass(frozen=True)
class Cell:
    """One method at one budget, with one seed."""

    part: str
    method: str
    budget: int
    seed: int
    count: int


@dataclass
class Found:
    """What is kept of a cell: a Fréchet distance, or bits/dim of groups of images; steps; what they cost."""

    values: list[float]
    steps: int
    equivalents: float
    seconds: float


Cells = Kept[Cell, Found]


def tables(kept: Cells, count: int) -> None:
    """Of every part with so many samples or images."""
    for part in dict.fromkeys(cell.part for cell in kept.cells if cell.count == count):
        cells = [cell for cell in kept.cells if cell.part == part and cell.count == count]
        budgets = sorted({cell.budget for cell in cells})
        of_bits = part.startswith("bits")
        what = f"bits/dim, steps; above {TABLE}'s" if of_bits else f"distance, steps; ratio to {RIVAL}"
        print(f"\n{part}, {count} {'images' if of_bits else 'samples'}: {what}\n")
        header("", *(f"K = {budget}" if part.endswith("steps") else f"{budget} equivalents" for budget in budgets))
        for method in dict.fromkeys(cell.method for cell in cells):
            shown = above if of_bits else ratio
            row(method, *(shown(kept, Cell(part, method, budget, 0, count)) for budget in budgets))


def ratio(kept: Cells, like: Cell) -> str:
    """The mean of a cell's seeds ± its standard error, the steps, and the ratio to the rival's of the same seeds."""
    found = of_seeds(kept, like)
    if not found:
        return ""
    values = np.array([one.values[0] for one in found.values()])
    text = f"{values.mean():.2f}{plus_minus(values, 2)}, {next(iter(found.values())).steps}"
    rival = of_seeds(kept, Cell("frechet", RIVAL, like.budget, 0, like.count))
    if found.keys() <= rival.keys():
        text += f"; {values.mean() / np.mean([rival[seed].values[0] for seed in found]):.2f}"
    return text


def above(kept: Cells, like: Cell) -> str:
    """The mean over groups of images, the steps, and the paired difference to the table's ± its standard error."""
    found = kept.cells.get(like)
    if found is None:
        return ""
    values = np.array(found.values)
    table = kept.cells.get(Cell(like.part, TABLE, like.budget, like.seed, like.count))
    text = f"{values.mean():.3f}, {found.steps}"
    if table is None or like.method == TABLE:
        return text
    difference = values - np.array(table.values)
    return f"{text}; {difference.mean():+.3f}{plus_minus(difference, 3)}"


def of_seeds(kept: Cells, like: Cell) -> dict[int, Found]:
    """The cells that differ from one in their seeds alone."""
    key = (like.part, like.method, like.budget, like.count)
    return {c.seed: one for c, one in kept.cells.items() if (c.part, c.method, c.budget, c.count) == key}


def plus_minus(values: npt.NDArray[np.float64], digits: int) -> str:
    return f" ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
