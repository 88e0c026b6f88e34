"""Which variance the decoder has. Any gives a valid bound [E10]; how tight it is, is another matter [E18].

beta_tilde   β̃ of the schedule's step 2 → 1          the published codes, where a path begins at 1
respaced     β̃ of the path's own step second → first Improved DDPM's default, after respacing
sigma2       σ_t²/α_t² of the first index            all that x_t says of x_0 by itself
table        v_t of the first index from the table    as the covariance: pixel where that is, else channel, isotropic
covariance   the reverse covariance's own             a head's or a learned range's; pixel-diagonal ones for images
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import checks
from ..covariance.analytic import Analytic
from ..covariance.reverse import ReverseCovariance
from ..errors import InputError, warn
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.structure import Shape
from ..variance.table import VarianceTable

Float64Array = npt.NDArray[np.float64]
#: See the module docstring; "isotropic" and "pixel" are the table's, whatever the covariance's structure.
DecoderVariance = Literal["beta_tilde", "respaced", "sigma2", "table", "isotropic", "pixel", "covariance"]
CHOICES = ("beta_tilde", "respaced", "sigma2", "table", "isotropic", "pixel", "covariance")
#: Structures that are diagonal in pixels: a discretised decoder can have their variances.
PIXEL_DIAGONAL = ("isotropic", "channel", "pixel")


def fixed_variance(
    choice: Any,
    covariance: ReverseCovariance,
    schedule: NoiseSchedule,
    kernels: Sequence[ReverseKernel],
    shape: Shape,
    least: float,
) -> float | Float64Array:
    """A choice other than "covariance" as numbers: a float, or an array that broadcasts to an image.

    Args:
        kernels: the steps, the last one (to clean data) at their end.
        least: what elements of a table's variance get at least, for those that (almost) never err in it may err in
            other images: the variance of rounding to a level, (distance)²/12; 0 for continuous data.
    """
    if not isinstance(choice, str):
        return given_variance(choice, shape)
    checks.one_of("decoder_variance", choice, CHOICES, "or a number, or an array")
    level = kernels[-1].level_t
    if choice == "beta_tilde":
        return schedule_beta_tilde(schedule, level)
    if choice == "respaced":
        alone = "decoder_variance='respaced' is that of the step before the last, but there is one step; give a number."
        checks.refuse(len(kernels) < 2, alone)
        return kernels[-2].beta_tilde
    if choice == "sigma2":
        return relative_noise(level)
    if not isinstance(covariance, Analytic):
        raise InputError(
            f"decoder_variance={choice!r} is read from the variance table of an Analytic covariance, but the "
            f"covariance is {covariance.name}; use Analytic, 'beta_tilde', or the number "
            "table.posterior_variance(n) of the smallest index n."
        )
    structure = table_structure(choice, covariance.structure)
    found = covariance.table.posterior_variance(level, covariance.estimator, structure, covariance.bounded)
    return float(found) if structure == "isotropic" else np.maximum(found, least)


def table_structure(choice: str, structure: str) -> str:
    """The structure of a table's variance: the choice itself, or for "table" the covariance's, where that is diagonal
    in pixels, else isotropic."""
    own = structure if structure in PIXEL_DIAGONAL else "isotropic"
    return own if choice == "table" else choice


def given_variance(value: Any, shape: Shape | None) -> float | Float64Array:
    """A number, or an array of numbers that broadcasts to an image (None: of unknown shape), all of them positive."""
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) == 0:
        return checks.positive("decoder_variance", value, "a positive, finite number, or the name of a choice")
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"decoder_variance={checks.brief(value)} must be numbers, in an array.") from None
    if shape is not None:
        try:
            fits = np.broadcast_shapes(array.shape, shape) == tuple(shape)
        except ValueError:
            fits = False
        checks.refuse(
            not fits,
            f"decoder_variance has shape {array.shape}, but images have {tuple(shape)}; give one number, or an array "
            "that broadcasts to that.",
        )
    wrong = array[~(np.isfinite(array) & (array > 0.0))]
    found = f"{wrong[0]:g}" if wrong.size else ""
    checks.refuse(bool(wrong.size), f"decoder_variance holds {found}; every variance must be positive and finite.")
    return array


def relative_noise(level: NoiseLevel) -> float:
    """σ²/α² of a level."""
    checks.refuse(
        level.alpha == 0.0,
        f"decoder_variance='sigma2' is σ²/α², but at {level.name} α is 0; give a number, or 'table'.",
    )
    return (level.sigma / level.alpha) ** 2


def schedule_beta_tilde(schedule: NoiseSchedule, level: NoiseLevel) -> float:
    """β̃ of the schedule's step 2 → 1; a warning where the last step starts elsewhere."""
    checks.refuse(
        schedule.num_steps < 2,
        "decoder_variance='beta_tilde' is that of the step 2 to 1, but the schedule has one index; give a number.",
    )
    if level.log_snr < schedule.log_snr[1]:
        warn(
            f"the decoder's variance is that of the step 2 to 1, but the last step starts at {level.name}, where x_0 "
            "is known less well: the bound will be large; use decoder_variance='isotropic', or steps from 1 on."
        )
    return ReverseKernel(schedule, t=2, s=1).beta_tilde


def candidate(name: str, factor: float, level: NoiseLevel, table: VarianceTable | None, least: float) -> Any:
    """`factor` times one of the variances "sigma2", "isotropic", "pixel" at a level, and at least `least`."""
    if name == "sigma2":
        return factor * relative_noise(level)
    assert table is not None
    return np.maximum(factor * table.posterior_variance(level, table.default_estimator, name), least)
