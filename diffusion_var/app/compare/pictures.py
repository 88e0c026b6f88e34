"""Pictures of comparisons: scores against evaluations, and sheets of samples. All are matplotlib figures.

What needs no table (fixed variances, DDIM, solvers) is grey; measured variances and heads have colours, by structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...metrics.score import HIGHER_IS_BETTER
from ...plots import COLOURS, new_figure, plain
from ..options import BITS
from ..sheets import picture_sheet
from .decisions import needs_measuring
from .findings import TITLES, short_of
from .options import Method
from .result import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD_COLOURS = ("#8c564b", "#9467bd", "#e377c2", "#17becf", "#bcbd22", "#d62728", "#aec7e8")
_ISOTROPIC = "#7b3294"  # black is the floor's here
_GREYS = ("#555555", "#888888", "#aaaaaa")
_MARKERS = "osD^v<>pX"  # for methods that would look the same otherwise
#: More lines than these in one panel are told apart by nobody: they get a panel for each η.
_MOST_LINES = 10


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: a metric of a comparison, of all methods or some."""

    result: Comparison
    metric: str
    title: str
    methods: Sequence[Method]
    floor: str = "real images"


def score_curves(result: Comparison, metric: str, floor: str = "real images") -> Figure:
    """Score against evaluations, one line a method, with the spread over seeds; many methods in a panel for each η."""
    methods = [m for m in result.options.methods if any(c.method == m and metric in c.scores for c in result.cells)]
    if len(methods) <= _MOST_LINES:
        return part_panels([Panel(result, metric, TITLES.get(metric, metric), methods, floor)])
    families = list(dict.fromkeys(m.family for m in sorted(methods, key=_by_eta)))
    names = {"DDPM": "DDPM (η = 1)", "DDIM": "DDIM (η = 0)"}
    return part_panels(
        [
            Panel(result, metric, names.get(f, f.replace("=", " = ")), [m for m in methods if m.family == f], floor)
            for f in families
        ],
        share=True,
    )


def part_panels(panels: Sequence[Panel], share: bool = False) -> Figure:
    """One figure of several panels; `share`: one axis of scores for all of them."""
    figure, axes = new_figure(5.6 if len(panels) == 1 else 4.2 * len(panels), 5.2, columns=len(panels))
    every = np.atleast_1d(axes)
    for k, (panel, axis) in enumerate(zip(panels, every, strict=True)):
        if share and k:
            axis.sharey(every[0])
        _draw(axis, panel)
    return figure


def _draw(axis: Any, panel: Panel) -> None:
    result, metric = panel.result, panel.metric
    drawn: list[tuple[str, str]] = []
    # Side by side, so that error bars do not hide each other.
    for shift, method in zip(np.geomspace(0.97, 1.03, max(len(panel.methods), 2)), panel.methods, strict=False):
        cells = [c for c in result.cells if c.method == method and metric in c.scores]
        ours = needs_measuring(method)
        drawn.append((_colour(method, result.options.methods), _line(method)))
        axis.errorbar(
            [c.spent * shift for c in cells],
            [c.mean(metric) for c in cells],
            yerr=None if len(result.options.seeds) < 2 else [c.spread(metric) for c in cells],
            label=plain(method.label),
            color=drawn[-1][0],
            linestyle=drawn[-1][1],
            linewidth=2.2 if ours else 1.3,
            marker=_MARKERS[(drawn.count(drawn[-1]) - 1) % len(_MARKERS)],
            markersize=5,
            capsize=2,
            zorder=3 if ours else 2,
        )
    if metric in result.baseline:
        floor = float(np.mean(result.baseline[metric]))
        axis.axhline(floor, color="black", linestyle=(0, (5, 3)), linewidth=1.2, label=plain(panel.floor))
    axis.set_title(panel.title, fontsize=11)
    _score_axes(axis, result, metric)
    direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
    axis.set_ylabel(f"{TITLES.get(metric, metric)} ({direction} is better)")


def _by_eta(method: Method) -> tuple[bool, bool, float, float]:
    """DDPM first, then falling η, then τ, then solvers."""
    return method.sampler is not None, method.tau is not None, -method.eta, method.tau or 0.0


def _line(method: Method) -> str:
    """By what the samplers are: DDIM and solvers are drawn through; where noise is new it is dashed."""
    if method.final_noise_cap is not None:
        return ":"
    return "-." if method.sampler is not None else "-" if method.eta == 0 or method.spacing == "optimal" else "--"


def _colour(method: Method, methods: Sequence[Method]) -> str:
    if method.covariance == "head":  # each head one of its own, the same in every panel
        heads = list(dict.fromkeys(m.head for m in methods if m.covariance == "head"))
        return _HEAD_COLOURS[heads.index(method.head) % len(_HEAD_COLOURS)]
    if not needs_measuring(method):
        free = [m for m in methods if not needs_measuring(m)]
        return _GREYS[free.index(method) % len(_GREYS)]
    name = method.structure if method.covariance == "analytic" else str(method.covariance)
    return _ISOTROPIC if name == "isotropic" else COLOURS[name]


def _score_axes(panel: Any, result: Comparison, metric: str) -> None:
    """Logarithmic axes, the evaluations as ticks; scores that are shares, or not positive, on a linear one."""
    from matplotlib.ticker import NullFormatter

    steps = result.options.all_steps
    values = [c.mean(metric) for c in result.cells if metric in c.scores] + result.baseline.get(metric, [])
    panel.set_xscale("log")
    panel.set_xticks(steps, [str(k) for k in steps])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("network evaluations an image" if short_of(result) else "network evaluations an image, K")
    panel.grid(alpha=0.3, which="major")
    if metric == BITS:
        # β̃ is so far off at few steps that no other two could be told apart.
        high = min(max(values), 2.0 * float(np.median(values)))
        margin = 0.05 * max(high - min(values), 0.01)
        panel.set_ylim(min(values) - margin, high + margin)
        if max(values) > high:
            panel.set_title(f"{panel.get_title()}\n(cut at twice the median)", fontsize=11)
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
    panel.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def sample_sheet(result: Comparison, num_steps: int, real: str = "real images") -> Figure:
    """One row of images per method at one number of evaluations, all from one first noise, below one of real images."""
    cells = [c for c in result.cells if c.steps == num_steps and len(c.grid)]
    rows = [(c.method.label, c.grid.numpy()) for c in cells]
    if len(result.real):
        rows = [(real, result.real.numpy()), *rows]
    return picture_sheet(rows, slanted=1 if len(result.real) else 0)
