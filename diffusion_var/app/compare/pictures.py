"""Pictures of a comparison: scores against steps, and sample grids. All are returned as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...metrics.score import HIGHER_IS_BETTER
from ...plots import COLOURS, new_figure, plain
from ..options import BITS
from .options import Method
from .result import Cell, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"fid": "Fréchet distance", "kid": "kernel distance", BITS: "bits/dim"}
_HEAD_COLOURS = ("#8c564b", "#9467bd", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f", "#d62728", "#aec7e8")
_MARKERS = "osD^v"  # for methods that would look the same otherwise


def score_curves(result: Comparison, metric: str) -> Figure:
    """Score against number of steps, one line a method, with the spread over seeds; a panel for each η."""
    families = list(dict.fromkeys(c.method.family for c in _by_eta(result.cells) if metric in c.scores))
    figure, axes = new_figure(6.2 * len(families), 4.9, columns=len(families))
    panels = np.atleast_1d(axes)
    for panel in panels[1:]:
        panel.sharey(panels[0])
    for family, panel in zip(families, panels, strict=True):
        methods = [m for m in result.options.methods if m.family == family]
        drawn: list[tuple[str, str]] = []
        # Side by side, so that error bars do not hide each other.
        for shift, method in zip(np.geomspace(0.97, 1.03, max(len(methods), 2)), methods, strict=False):
            cells = [c for c in result.cells if c.method == method and metric in c.scores]
            drawn.append((_colour(method, result.options.methods), "-" if method.final_noise_cap is None else "--"))
            panel.errorbar(
                [c.steps * shift for c in cells],
                [c.mean(metric) for c in cells],
                yerr=None if len(result.options.seeds) < 2 else [c.spread(metric) for c in cells],
                label=plain(method.label),
                color=drawn[-1][0],
                linestyle=drawn[-1][1],
                marker=_MARKERS[(drawn.count(drawn[-1]) - 1) % len(_MARKERS)],
                markersize=4,
                capsize=2,
            )
        if metric in result.baseline:
            panel.axhline(np.mean(result.baseline[metric]), color="grey", linestyle=":", label="real images")
        panel.set_title({"DDPM": "DDPM (η = 1)", "DDIM": "DDIM (η = 0)"}.get(family, family.replace("=", " = ")))
        _score_axes(panel, result, metric)
    direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
    panels[0].set_ylabel(f"{TITLES.get(metric, metric)} ({direction} is better)")
    return figure


def _by_eta(cells: Sequence[Cell]) -> list[Cell]:
    """DDPM first, then falling η, then τ."""
    return sorted(cells, key=lambda cell: (cell.method.tau is not None, -cell.method.eta, cell.method.tau or 0.0))


def _colour(method: Method, methods: Sequence[Method]) -> str:
    if method.covariance == "head":  # each head one of its own, the same in every panel
        heads = list(dict.fromkeys(m.head for m in methods if m.covariance == "head"))
        return _HEAD_COLOURS[heads.index(method.head) % len(_HEAD_COLOURS)]
    return COLOURS[method.structure if method.covariance == "analytic" else str(method.covariance)]


def _score_axes(panel: Any, result: Comparison, metric: str) -> None:
    """Logarithmic axes, the numbers of steps as ticks; scores that are shares, or not positive, on a linear one."""
    from matplotlib.ticker import NullFormatter

    steps = result.options.all_steps
    values = [c.mean(metric) for c in result.cells if metric in c.scores] + result.baseline.get(metric, [])
    panel.set_xscale("log")
    panel.set_xticks(steps, [str(k) for k in steps])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("steps K")
    panel.grid(alpha=0.3, which="both")
    if metric == BITS:
        # β̃ is so far off at few steps that no other two could be told apart.
        high = min(max(values), 2.0 * float(np.median(values)))
        margin = 0.05 * max(high - min(values), 0.01)
        panel.set_ylim(min(values) - margin, high + margin)
        if max(values) > high:
            panel.set_title(f"{panel.get_title()}, cut at twice the median")
    elif metric not in HIGHER_IS_BETTER and min(values) > 0:
        panel.set_yscale("log")
        low, high = min(values) * 0.85, max(values) * 1.15
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        for steps_of_ten in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), np.arange(1, 10, 0.25)):
            ticks = [m * decade for decade in decades for m in steps_of_ten if low <= m * decade <= high]
            if len(ticks) > 2:
                break
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(low, high)
    # Below the axes, where it hides no line.
    panel.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def sample_grid(result: Comparison, num_steps: int) -> Figure:
    """One row of images per method at one number of steps, all from the same first noise."""
    rows = [c for c in result.cells if c.steps == num_steps]
    columns = min(len(rows[0].grid), 12)
    channels, height = rows[0].grid.shape[1:3]
    figure, axes = new_figure(3.4 + columns * 0.52, 0.3 + len(rows) * 0.58, rows=len(rows))
    for cell, axis in zip(rows, np.atleast_1d(axes), strict=True):
        gap = np.full((channels, height, max(1, height // 16)), 255, dtype=np.uint8)
        strip = np.concatenate([part for image in cell.grid[:columns].numpy() for part in (image, gap)], axis=2)
        axis.imshow(strip.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_axis_off()
        axis.text(-0.01, 0.5, plain(cell.method.label), transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"K = {num_steps}, the same noise in every row", fontsize=10)
    return figure
