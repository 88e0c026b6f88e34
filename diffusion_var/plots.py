"""Pictures of tables, trajectories and training; all are returned as matplotlib figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .covariance.analytic import Analytic
from .covariance.diagnostics import StepDiagnosis, diagnose
from .errors import printable
from .files import write_atomic
from .process import steps as step_lists
from .process.kernel import ReverseKernel
from .variance.table import VarianceTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .training.head import HeadPoint

#: What spacings are called in text.
SPACING_NAMES = {"optimal": "optimal", "even": "even", "log_snr": "even in log-SNR"}
_BAND = 1.96
DPI = 110  # of every picture
#: Bits/dim of a step below which nothing is to be seen.
_LEAST_COST = 1e-4
_RUN = "diffusion-var run "
COLOURS = {
    "beta": "#d55e00",
    "beta_tilde": "#0072b2",
    "learned_range": "#56b4e9",
    "eps_square": "#999999",
    "isotropic": "black",
    "channel": "#cc79a7",
    "pixel": "#e69f00",
    "dct": "#009e73",
    "jacobian": "#332288",
    "lanczos": "#882255",
}


def plain(name: str) -> str:
    """A name as matplotlib shows it as it is: no formula between $ signs, no legend without those that begin with _."""
    text = printable(name, 60).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot (no global state, no display)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    return figure, figure.subplots(rows, columns)


def picture_format(path: str | Path) -> str:
    """The kind of picture that a path's suffix asks for; InputError for one that is not known."""
    kind = Path(path).suffix.lstrip(".").lower()
    checks.refuse(kind not in ("png", "pdf", "svg"), f"the plot {path} must end in .png, .pdf or .svg.")
    return kind


def save_figure(figure: Figure, path: str | Path, run: str | None = None) -> None:
    """Write a picture (png, pdf or svg), atomically; the same figure gives the same bytes.

    `run`, the name of the run that made it, is kept in the file (see `run_of_picture`).
    """
    import matplotlib

    kind = picture_format(path)
    metadata: dict[str, Any] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    if run is not None:
        metadata["Comment" if kind == "png" else "Keywords"] = _RUN + run
    with matplotlib.rc_context({"svg.hashsalt": "diffusion-var"}):
        write_atomic(path, lambda file: figure.savefig(file, format=kind, metadata=metadata))


def run_of_picture(path: Path) -> str | None:
    """The run that a picture names, see `save_figure`."""
    found = re.search(_RUN.encode() + rb"([0-9a-f]{64})", path.read_bytes())
    return None if found is None else found[1].decode()


def variance_curves(table: VarianceTable, num_steps: int = 25) -> Figure:
    """β, β̃ and the optimal isotropic variance (η = 1) with its 95 % band; where the optimum lies between the two; and
    what the steps cost.

    Args:
        num_steps: K of the even trajectory from 1 to N whose steps are shown (those within the measured indices).
    """
    inside = _steps_within(table, num_steps)
    if not inside[0]:
        return _no_step()
    kernels = [ReverseKernel(table.schedule, t, s) for s, t in pairwise(inside)]
    t = np.array([k.t for k in kernels])
    estimator = table.default_estimator
    optimal = np.array([float(Analytic(table, estimator).variance(k)) for k in kernels])
    large = np.array([k.beta for k in kernels])
    small = np.array([k.beta_tilde for k in kernels])
    error = _BAND * np.array([k.gain**2 * table.standard_error(k.level_t, estimator) for k in kernels])
    figure, (left, right, last) = new_figure(16, 4.2, columns=3)
    left.plot(t, large, ".-", label="β (upper choice)", color=COLOURS["beta"], linewidth=1.2)
    left.plot(t, small, ".-", label="β̃ (lower choice)", color=COLOURS["beta_tilde"], linewidth=1.2)
    left.plot(t, optimal, ".-", label="optimal, measured", color="black", linewidth=1.2)
    left.set_title(f"reverse variance at η = 1, K = {num_steps} even steps")
    left.set_yscale("log")
    left.set_ylabel("variance")
    left.legend(frameon=False)
    # On a linear axis, for on a logarithmic one of many decades an error of per cents is not to be seen.
    share, band = (optimal - small) / (large - small), error / (large - small)
    right.axhline(1.0, color=COLOURS["beta"], linewidth=1.2, label="β")
    right.axhline(0.0, color=COLOURS["beta_tilde"], linewidth=1.2, label="β̃")
    right.fill_between(t, share - band, share + band, color="#e69f00", alpha=0.45, label="95 % band of the optimum")
    right.plot(t, share, ".-", label="optimal, measured", color="black", linewidth=1.2)
    right.set_ylim(-0.25, 1.25)
    right.set_title("where it lies between β̃ and β")
    right.set_ylabel("(variance − β̃) / (β − β̃)")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("index t of the step t → s")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    if all(table.covers(n) for n in inside):
        _kl_panel(last, diagnose(table, inside))
    else:  # the costs need the variance at both ends
        last.set_axis_off()
    return figure


def _steps_within(table: VarianceTable, num_steps: int) -> list[int]:
    """The indices, two or more, whose steps a table can be shown by: those of an even trajectory that it covers; if
    they are too few, the measured ones; of one measured index, the step that leads on from it (to 0 from the first)."""
    N = table.schedule.num_steps
    even = step_lists.linspace(N, min(num_steps, N))
    inside = [n for n in even if table.covers(n)]
    if len(inside) < 2:
        inside = [int(n) for n in table.indices]
    if len(inside) < 2:
        last = inside[0]
        inside = [max((n for n in even if n < last), default=last // 2), last]
    return inside


def _no_step() -> Figure:
    figure, axes = new_figure(6, 2)
    axes.set_axis_off()
    axes.text(0.5, 0.5, "the table holds index 1 alone, whose step adds no noise", ha="center", va="center")
    return figure


def _kl_panel(axes: Any, steps: Sequence[StepDiagnosis]) -> None:
    """Expected KL of every step, and what each fixed choice adds to it."""
    t = [step.t for step in steps]
    curves = {
        "optimal variance": ([step.optimal for step in steps], "black", "-"),
        "… its part from an imperfect mean": ([step.imperfect or np.nan for step in steps], "black", ":"),
        "added by β": ([step.excess["beta"] for step in steps], COLOURS["beta"], "-"),
        "added by β̃": ([step.excess["beta_tilde"] for step in steps], COLOURS["beta_tilde"], "-"),
    }
    for name, (values, colour, line) in curves.items():
        if np.isfinite(values).any():
            axes.plot(t, values, ".", color=colour, linestyle=line, linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    most = max((v for values, *_ in curves.values() for v in values if np.isfinite(v)), default=1.0)
    axes.set_ylim(bottom=min(_LEAST_COST, 1e-3 * most), top=2.0 * most)  # less costs nothing that counts
    axes.set_xlabel("index t of the step t → s")
    axes.set_ylabel("bits/dim")
    axes.set_title("expected KL of the steps")
    axes.grid(alpha=0.3)
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
    right.set_title("expected bound, decoder and steps")
    right.grid(alpha=0.3, which="both")
    if priced:
        right.legend(frameon=False)
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
