"""Step lists, as users see them: spacings that need a schedule alone (`process.steps`), and optimal trajectories, which
need a variance table or measured costs (`sampling.trajectory`)."""

from .likelihood.paths import OptimalPaths
from .likelihood.trajectories import optimal, optimal_paths
from .process.steps import (
    SPACINGS,
    Grid,
    HasSchedule,
    check_spacing,
    explicit,
    leading,
    linspace,
    log_snr,
    quadratic,
    resolve,
    spaced,
    trailing,
)

__all__ = [
    "SPACINGS",
    "Grid",
    "HasSchedule",
    "OptimalPaths",
    "check_spacing",
    "explicit",
    "leading",
    "linspace",
    "log_snr",
    "optimal",
    "optimal_paths",
    "quadratic",
    "resolve",
    "spaced",
    "trailing",
]
