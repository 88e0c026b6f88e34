"""What a restoration's cells say, as numbers with errors: scores of images, and differences on the same images.

A score of a cell is the mean over images (of an image's mean over its draws) ± its standard error. Two cells restore
the same measurements from the same noise, so that the difference of two is taken image by image: told apart are those
whose mean difference a paired t-test finds at 5 % (two-sided, each pair by itself).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .calibration import Calibration
from .cells import Cell
from .options import OF_DERIVATIVES

TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "misfit": "misfit"}
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "misfit": 2}
_LOWER_IS_BETTER = frozenset({"lpips"})


@dataclass(frozen=True)
class Mean:
    """A mean over images and its standard error (nan for one image)."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Mean:
        """Of one number an image, (B,)."""
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), error, len(values))

    @property
    def is_told(self) -> bool:
        """Whether a t-test tells it from 0 at 5 %."""
        from scipy.special import stdtrit

        return self.count > 1 and bool(abs(self.value) > stdtrit(self.count - 1, 0.975) * self.error)

    def text(self, metric: str, signed: bool = False) -> str:
        """For a table."""
        digits = _DIGITS[metric]
        shown = f"{self.value:+.{digits}f}" if signed else f"{self.value:.{digits}f}"
        return shown if math.isnan(self.error) else f"{shown} ± {self.error:.{digits}f}"

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON, which has no nan and no infinity."""
        return {
            name: number if math.isfinite(number) else None for name, number in vars(self).items() if name != "count"
        }


def score(cell: Cell, metric: str) -> Mean:
    """A metric of a cell's draws."""
    return Mean.of(cell.scores[metric].mean(1))


def of_mean(cell: Cell, metric: str) -> Mean:
    """A metric of the mean of a cell's draws."""
    return Mean.of(cell.of_mean[metric])


def difference(cell: Cell, base: Cell, metric: str) -> Mean:
    """How much higher a metric is than in another cell, on the same images."""
    return Mean.of(cell.scores[metric].mean(1) - base.scores[metric].mean(1))


def spread(cell: Cell) -> float | None:
    """(1 + 1/R) times the draws' variance over the squared error of their mean: 1 where the draws are as far apart as
    the truth is from their mean; None for one draw, and where no truth is known."""
    draws = cell.draws.shape[1]
    if draws < 2 or "squared error" not in cell.of_mean:
        return None
    variance = np.square(cell.std.astype(np.float64)).reshape(len(cell.std), -1).mean()
    return float((1.0 + 1.0 / draws) * variance / max(float(cell.of_mean["squared error"].mean()), 1e-30))


def at_steps(cells: Sequence[Cell], k: int) -> list[Cell]:
    """The cells of a number of steps, in their order: the first is what the others are compared with."""
    return [cell for cell in cells if cell.steps == k]


def best(cells: Sequence[Cell], metric: str) -> list[Cell]:
    """The best of some cells by a metric, and those that the images do not tell apart from it."""
    sign = 1 if metric in _LOWER_IS_BETTER else -1
    first = min(cells, key=lambda cell: sign * score(cell, metric).value)
    return [cell for cell in cells if cell is first or not difference(cell, first, metric).is_told]


def rows(cells: Sequence[Cell], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a report's table, of cells of one number of steps: texts by column, and the columns that they are best
    in."""
    found = []
    leaders = {metric: best(cells, metric) for metric in metrics}
    for cell in cells:
        texts: dict[str, str] = {}
        for metric in metrics:
            texts[TITLES[metric]] = score(cell, metric).text(metric)
            if metric == "psnr":
                texts["against the first"] = (
                    "–" if cell is cells[0] else difference(cell, cells[0], metric).text(metric, True)
                )
                texts["PSNR of the mean"] = of_mean(cell, metric).text(metric)
        if "misfit" in cell.scores:
            texts[TITLES["misfit"]] = score(cell, "misfit").text("misfit")
        if (wide := spread(cell)) is not None:
            texts["spread / error"] = f"{wide:.2f}"
        beside = " + backward" * (cell.guidance == "I") + " + products" * (cell.covariance in OF_DERIVATIVES)
        texts["evaluations"] = f"{cell.evaluations}{beside}"
        texts["not converged, not positive"] = f"{cell.not_converged}, {cell.not_positive} of {cell.solves}"
        bold = [TITLES[metric] for metric in metrics if any(cell is one for one in leaders[metric])]
        found.append({"label": cell.label, "texts": texts, "best": bold})
    return found


def opening(cells: Sequence[Cell], steps: Sequence[int]) -> list[str]:
    """Who has the best PSNR at each number of steps, and how far it is from the first row."""
    out = []
    for k in steps:
        at = at_steps(cells, k)
        if len(at) < 2 or "psnr" not in at[0].scores:
            continue
        ranked = best(at, "psnr")
        first = max(ranked, key=lambda cell: score(cell, "psnr").value)
        text = f"At {k} steps {first.label} has the best PSNR of single draws, {score(first, 'psnr').text('psnr')} dB"
        if first is not at[0]:
            apart = difference(first, at[0], "psnr")
            told = "" if apart.is_told else ", which the images do not tell apart"
            text += f", {apart.text('psnr', True)} dB against {at[0].label}{told}"
        others = [cell.label for cell in ranked if cell is not first and cell is not at[0]]
        text += f"; not told apart from it: {', '.join(others)}" if others else ""
        out.append(f"{text}.")
    return out


def calibrated(found: Sequence[Calibration]) -> list[str]:
    """Which covariance's residual is nearest to 1, over all levels."""
    if not found:
        return []
    apart = {one.covariance: float(np.abs(np.log(np.maximum(one.residual.mean(1), 1e-30))).mean()) for one in found}
    ranked = sorted(apart, key=lambda name: apart[name])
    listed = ", ".join(f"{name} {np.exp(apart[name]):.2f}" for name in ranked)
    return [f"How far rᵀS⁻¹r/dim(y) is from 1, as a factor, over all levels (1 is right): {listed}."]


def calibration_rows(found: Sequence[Calibration]) -> list[dict[str, Any]]:
    """Rows of a report's table: a noise level, the residual of each covariance, and which of them is nearest to 1."""
    out = []
    for level, n in enumerate(found[0].indices):
        means = [Mean.of(one.residual[level]) for one in found]
        far = [abs(math.log(max(mean.value, 1e-30))) for mean in means]
        texts = [mean.text("misfit") for mean in means]
        out.append({"n": n, "ratio": f"{found[0].ratio[level]:.3g}", "texts": texts, "best": far.index(min(far))})
    return out


def as_json(cells: Sequence[Cell], found: Sequence[Calibration]) -> dict[str, Any]:
    """All numbers as plain data; the same in every run with the same options and seed."""
    plain = []
    for cell in cells:
        base = at_steps(cells, cell.steps)[0]
        images = {metric: _numbers(values.mean(1)) for metric, values in cell.scores.items()}
        truths = [metric for metric in cell.scores if metric in cell.of_mean]
        plain.append(
            {
                "covariance": cell.covariance,
                "guidance": cell.guidance,
                "steps": cell.steps,
                "evaluations": cell.evaluations,
                "backward_passes": cell.evaluations if cell.guidance == "I" else 0,
                "images": len(cell.mean),
                "draws": cell.draws.shape[1],
                "scores": {metric: score(cell, metric).plain for metric in cell.scores},
                "of_the_mean": {metric: of_mean(cell, metric).plain for metric in truths},
                "against_the_first": {metric: difference(cell, base, metric).plain for metric in cell.scores},
                "spread_over_error": spread(cell),
                "solves": cell.solves,
                "not_converged": cell.not_converged,
                "not_positive": cell.not_positive,
                "by_image": images,
            }
        )
    levels = [
        {
            "covariance": one.covariance,
            "indices": one.indices,
            "sigma_over_alpha": _numbers(one.ratio),
            "residual": [Mean.of(values).plain for values in one.residual],
        }
        for one in found
    ]
    return {"cells": plain, "calibration": levels}


def _numbers(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
