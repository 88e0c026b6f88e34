"""Pictures: variance curves, scores against steps, and sample grids. All are returned as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .app.options import BITS, SPACING_NAMES
from .covariance.diagnostics import StepDiagnosis, diagnose
from .covariance.reverse import Analytic, FixedLarge
from .metrics.score import HIGHER_IS_BETTER
from .process import steps as step_lists
from .process.kernel import ReverseKernel
from .variance.table import VarianceTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .app.compare.result import Comparison
    from .app.options import Method
    from .training.head import HeadPoint

_BAND = 1.96
TITLES = {"fid": "Fréchet distance", "kid": "kernel distance", BITS: "bits/dim"}
_COLOURS = {
    "beta": "#d55e00",
    "beta_tilde": "#0072b2",
    "learned_range": "#56b4e9",
    "isotropic": "black",
    "channel": "#cc79a7",
    "pixel": "#e69f00",
    "dct": "#009e73",
}
_HEAD_COLOURS = ("#8c564b", "#9467bd", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f", "#d62728", "#aec7e8")
_MARKERS = "osD^v"  # for methods that would look the same otherwise


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot (no global state, no display)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns)


def variance_curves(table: VarianceTable, num_steps: int = 25) -> Figure:
    """β, β̃ and the optimal isotropic variance (η = 1) with its 95 % band, as they are and divided by β̃; and what the
    steps cost.

    Args:
        num_steps: K of the even trajectory from 1 to N whose steps are shown (those within the measured indices).
    """
    N = table.schedule.num_steps
    inside = [n for n in step_lists.linspace(N, min(num_steps, N)) if table.indices[0] <= n <= table.indices[-1]]
    if len(inside) < 2:  # one step, or a table of few indices: what was measured can be shown all the same
        inside = [int(n) for n in table.indices] if len(table.indices) > 1 else [0, int(table.indices[0])]
    kernels = [ReverseKernel(table.schedule, t, s) for s, t in pairwise(inside)]
    t = np.array([k.t for k in kernels])
    estimator = table.default_estimator
    optimal = np.array([float(Analytic(table, estimator).variance(k)) for k in kernels])
    large = np.array([FixedLarge().variance(k) for k in kernels])
    small = np.array([k.beta_tilde for k in kernels])
    error = np.array([k.gain**2 * table.standard_error(k.t, estimator) for k in kernels])
    figure, (left, right, last) = new_figure(16, 4.2, columns=3)
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
    if inside[0] > 0:
        _kl_panel(last, diagnose(table, inside))
    else:  # no step between measured indices
        last.set_axis_off()
    return figure


def _kl_panel(axes: Any, steps: Sequence[StepDiagnosis]) -> None:
    """Expected KL of every step, and what each fixed choice adds to it."""
    t = [step.t for step in steps]
    curves = {
        "optimal variance": ([step.optimal for step in steps], "black", "-"),
        "… its part from an imperfect mean": ([step.imperfect or np.nan for step in steps], "black", ":"),
        "added by β": ([step.excess["beta"] for step in steps], _COLOURS["beta"], "-"),
        "added by β̃": ([step.excess["beta_tilde"] for step in steps], _COLOURS["beta_tilde"], "-"),
    }
    for name, (values, colour, line) in curves.items():
        if np.isfinite(values).any():
            axes.plot(t, values, ".", color=colour, linestyle=line, linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("index t of the step t → s")
    axes.set_ylabel("bits/dim")
    axes.set_title("expected KL of the steps")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)


def trajectories(found: Sequence[dict[str, Any]], N: int) -> Figure:
    """Optimal step lists, a row each; beside them what they cost and what other spacings cost.

    Args:
        found: "steps", "indices" and "bits_per_dim" by spacing, for each number of steps.
        N: of the schedule.
    """
    from matplotlib.ticker import NullFormatter

    figure, (left, right) = new_figure(11, 1.6 + 0.5 * max(len(found), 4), columns=2)
    for row, facts in enumerate(found):
        left.plot(facts["indices"], [row] * len(facts["indices"]), "|", markersize=12, color="black")
    left.set_yticks(range(len(found)), [f"K = {facts['steps']}" for facts in found])
    left.set_xscale("log")
    left.set_xlim(0.9, 1.1 * N)
    left.set_xlabel("index n")
    left.set_title("optimal trajectories")
    priced = [facts for facts in found if "bits_per_dim" in facts]
    for name, colour in (("optimal", "black"), ("log_snr", "#009e73"), ("even", "#d55e00")):
        rows = [facts for facts in priced if name in facts["bits_per_dim"]]
        values = [facts["bits_per_dim"][name] for facts in rows]
        if rows:
            right.plot([facts["steps"] for facts in rows], values, ".-", color=colour, label=SPACING_NAMES[name])
    right.set_xscale("log")
    right.set_xticks([facts["steps"] for facts in priced], [str(facts["steps"]) for facts in priced])
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_xlabel("steps K")
    right.set_ylabel("bits/dim")
    right.set_title("the steps' share of the bound")
    right.grid(alpha=0.3, which="both")
    if priced:
        right.legend(frameon=False)
    return figure


def score_curves(result: Comparison, metric: str) -> Figure:
    """Score against number of steps, one line a method, with the spread over seeds; a panel for each η."""
    etas = sorted({c.method.eta for c in result.cells if metric in c.scores}, reverse=True)
    figure, axes = new_figure(6.2 * len(etas), 4.9, columns=len(etas))
    panels = np.atleast_1d(axes)
    for panel in panels[1:]:
        panel.sharey(panels[0])
    for eta, panel in zip(etas, panels, strict=True):
        methods = [m for m in result.options.methods if m.eta == eta]
        drawn: list[tuple[str, str]] = []
        # Side by side, so that error bars do not hide each other.
        for shift, method in zip(np.geomspace(0.97, 1.03, max(len(methods), 2)), methods, strict=False):
            cells = [c for c in result.cells if c.method == method and metric in c.scores]
            drawn.append((_colour(method, result.options.methods), "-" if method.final_noise_cap is None else "--"))
            panel.errorbar(
                [c.steps * shift for c in cells],
                [c.mean(metric) for c in cells],
                yerr=None if len(result.options.seeds) < 2 else [c.spread(metric) for c in cells],
                label=method.label,
                color=drawn[-1][0],
                linestyle=drawn[-1][1],
                marker=_MARKERS[(drawn.count(drawn[-1]) - 1) % len(_MARKERS)],
                markersize=4,
                capsize=2,
            )
        if metric in result.baseline:
            panel.axhline(np.mean(result.baseline[metric]), color="grey", linestyle=":", label="real images")
        panel.set_title("DDPM (η = 1)" if eta == 1 else "DDIM (η = 0)" if eta == 0 else f"η = {eta:g}")
        _score_axes(panel, result, metric)
    direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
    panels[0].set_ylabel(f"{TITLES.get(metric, metric)} ({direction} is better)")
    return figure


def _colour(method: Method, methods: Sequence[Method]) -> str:
    if method.covariance == "head":  # each head one of its own, the same in every panel
        heads = list(dict.fromkeys(m.head for m in methods if m.covariance == "head"))
        return _HEAD_COLOURS[heads.index(method.head) % len(_HEAD_COLOURS)]
    return _COLOURS[method.structure if method.covariance == "analytic" else method.covariance]


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
        axis.text(-0.01, 0.5, cell.method.label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"K = {num_steps}, the same noise in every row", fontsize=10)
    return figure


def loss_curve(curve: Sequence[tuple[int, float, float]]) -> Figure:
    """Training and held-out loss of the averaged network against the step."""
    figure, axes = new_figure(6, 4)
    steps, train, held_out = np.array(curve).T
    axes.plot(steps, train, ".-", label="training images", color="#0072b2")
    if np.isfinite(held_out).any():
        axes.plot(steps, held_out, ".-", label="held-out images", color="#d55e00")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the averaged weights")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure


def head_curve(curve: Sequence[HeadPoint]) -> Figure:
    """Losses of a head and, where they are known, the bits/dim of held-out images against the step."""
    panels = [("loss of the averaged weights", {"train": "training images", "held_out": "held-out images"})]
    if any(np.isfinite(point.bits_per_dim) for point in curve):
        panels.append(("bits/dim of the averaged weights", {"bits_per_dim": "held-out images"}))
    figure, axes = new_figure(6 * len(panels), 4, columns=len(panels))
    for panel, (title, lines) in zip(np.atleast_1d(axes), panels, strict=True):
        for name, label in lines.items():
            values = np.array([getattr(point, name) for point in curve])
            if np.isfinite(values).any():
                colour = "#0072b2" if name == "train" else "#d55e00"
                panel.plot([point.step for point in curve], values, ".-", label=label, color=colour)
        panel.set_xlabel("step")
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    return figure
