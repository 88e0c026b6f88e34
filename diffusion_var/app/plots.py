"""Pictures: variance curves, scores against steps, and sample grids. All are returned as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..process import steps as step_lists
from ..process.kernel import ReverseKernel
from ..variance.bounds import Estimator
from ..variance.covariance import Analytic, FixedLarge
from ..variance.table import VarianceTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .compare import Comparison

_BAND = 1.96


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot (no global state, no display)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns)


def variance_curves(table: VarianceTable, num_steps: int = 25) -> Figure:
    """β, β̃ and the optimal isotropic variance (η = 1) with its 95 % band: left as they are, right divided by β̃.

    Args:
        num_steps: K of the even trajectory from 1 to N whose steps are shown (those within the measured indices).
    """
    N = table.schedule.num_steps
    inside = [n for n in step_lists.linspace(N, min(num_steps, N)) if table.indices[0] <= n <= table.indices[-1]]
    kernels = [ReverseKernel(table.schedule, t, s) for s, t in pairwise(inside)]
    t = np.array([k.t for k in kernels])
    estimator: Estimator = "residual" if table.data is not None else "score_norm"
    optimal = np.array([float(Analytic(table, estimator).variance(k)) for k in kernels])
    large = np.array([FixedLarge().variance(k) for k in kernels])
    small = np.array([k.beta_tilde for k in kernels])
    error = np.array([k.gain**2 * table.standard_error(k.t, estimator) for k in kernels])
    figure, (left, right) = new_figure(11, 4.2, columns=2)
    for axes, scale in ((left, np.ones_like(small)), (right, small)):
        axes.plot(t, large / scale, ".-", label="β (upper choice)", color="#d55e00", linewidth=1.2)
        axes.plot(t, small / scale, ".-", label="β̃ (lower choice)", color="#0072b2", linewidth=1.2)
        axes.plot(t, optimal / scale, ".-", label="optimal, measured", color="black", linewidth=1.2)
        low, high = (optimal - _BAND * error) / scale, (optimal + _BAND * error) / scale
        axes.fill_between(t, low, high, color="black", alpha=0.25, label="its 95 % band")
        axes.set_xlabel("index t of the step t → s")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    left.set_title(f"reverse variance at η = 1, K = {num_steps} even steps")
    right.set_title("the same, divided by β̃")
    left.set_ylabel("variance")
    right.legend(frameon=False)
    return figure


def score_curves(result: Comparison) -> Figure:
    """Score against number of steps, one line a method, with the spread over seeds; DDPM left, DDIM right."""
    from matplotlib.ticker import ScalarFormatter

    etas = sorted({m.eta for m in result.options.methods}, reverse=True)
    figure, axes = new_figure(6.2 * len(etas), 4.6, columns=len(etas))
    colours = {
        "beta": "#d55e00",
        "beta_tilde": "#0072b2",
        "isotropic": "black",
        "channel": "#cc79a7",
        "pixel": "#e69f00",
        "dct": "#009e73",
    }
    for eta, panel in zip(etas, np.atleast_1d(axes), strict=True):
        methods = [m for m in result.options.methods if m.eta == eta]
        # Side by side, so that error bars do not hide each other.
        for shift, method in zip(np.geomspace(0.96, 1.04, len(methods)), methods, strict=True):
            cells = [result.cell(method, k) for k in result.options.steps]
            panel.errorbar(
                [c.steps * shift for c in cells],
                [c.mean for c in cells],
                yerr=None if len(result.options.seeds) < 2 else [c.spread for c in cells],
                label=method.label,
                color=colours[method.structure if method.covariance == "analytic" else method.covariance],
                linestyle="-" if method.final_noise_cap is None else "--",
                marker="o",
                markersize=4,
                capsize=2,
            )
        if result.baseline:
            panel.axhline(np.mean(result.baseline), color="grey", linestyle=":", label="real images")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(result.options.steps, [str(k) for k in result.options.steps])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(ScalarFormatter())
        ends = [c.mean for c in result.cells] + result.baseline
        ticks = [v for v in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(ends) * 0.8 <= v <= max(ends) * 1.2]
        panel.set_yticks(ticks)
        panel.set_ylim(min(ends) * 0.85, max(ends) * 1.15)
        panel.set_xlabel("steps K")
        panel.set_title("DDPM (η = 1)" if eta == 1 else "DDIM (η = 0)" if eta == 0 else f"η = {eta:g}")
        panel.grid(alpha=0.3, which="both")
        panel.legend(frameon=False, fontsize=8, loc="upper right")
    np.atleast_1d(axes)[0].set_ylabel("Fréchet distance (lower is better)")
    return figure


def sample_grid(result: Comparison, num_steps: int, methods: Sequence[Any] | None = None) -> Figure:
    """One row of images per method at one number of steps, all from the same first noise."""
    rows = [result.cell(m, num_steps) for m in (methods or result.options.methods)]
    columns = min(len(rows[0].grid), 12)
    channels, height = rows[0].grid.shape[1:3]
    figure, axes = new_figure(3.4 + columns * 0.52, 0.3 + len(rows) * 0.58, rows=len(rows))
    for cell, axis in zip(rows, np.atleast_1d(axes), strict=True):
        gap = np.full((channels, height, 1), 255, dtype=np.uint8)
        strip = np.concatenate([part for image in cell.grid[:columns].numpy() for part in (image, gap)], axis=2)
        axis.imshow(strip.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, cell.method.label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"K = {num_steps}, the same noise in every row", fontsize=10)
    return figure
