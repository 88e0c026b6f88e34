"""Step lists, as users see them: spacings that need a schedule alone (`process.steps`), and optimal trajectories, which
need a variance table or measured costs (`likelihood.trajectories`)."""

from .likelihood.paths import OptimalPaths, Trajectory, least_costs
from .likelihood.trajectories import kl_costs, optimal, optimal_paths
from .process.steps import (
    SPACINGS,
    Grid,
    HasSchedule,
    StepList,
    check_spacing,
    explicit,
    karras,
    leading,
    linspace,
    log_snr,
    log_snr_levels,
    power,
    quadratic,
    resolve,
    respaced,
    shifted,
    sigmas,
    spaced,
    trailing,
)

__all__ = [
    "SPACINGS",
    "Grid",
    "HasSchedule",
    "OptimalPaths",
    "StepList",
    "Trajectory",
    "check_spacing",
    "explicit",
    "karras",
    "kl_costs",
    "leading",
    "least_costs",
    "linspace",
    "log_snr",
    "log_snr_levels",
    "optimal",
    "optimal_paths",
    "power",
    "quadratic",
    "resolve",
    "respaced",
    "shifted",
    "sigmas",
    "spaced",
    "trailing",
]
