"""Whether moments can be what they say they are: what no draws can give is refused.

A sum of squares is not negative, a product not larger than its factors, a covariance has no negative eigenvalue, the
noise that was drawn has mean square 1, and structures that saw the same draws agree on their mean. What is wrong is
said of "it", the file that they were read from.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..checks import refuse
from .moments import CONTROLS, NUM_MOMENTS, TARGETS

_SIGNED: Final = TARGETS.index("error_clipping")
_FACTORS: Final = [TARGETS.index("error_square"), TARGETS.index("clipping_square")]
_POSITIVE: Final = [k for k in range(NUM_MOMENTS) if k != _SIGNED]
_NOISE: Final = len(TARGETS) + CONTROLS.index("noise_square")
_LINEAR: Final = len(TARGETS) + CONTROLS.index("linear_error_square")
_ROUNDING: Final = 1e-4  # of float32 maps and moments, in units of the quantity
_DEVIATIONS: Final = 12.0  # no drawn noise is further off


def check_moments(name: str, means: npt.NDArray[Any], covariances: npt.NDArray[Any], drawn: bool = True) -> None:
    """Refuse mean squares below 0, products larger than their factors allow, and covariances that are none; nan is not
    known, and passes."""
    negative = bool((means[:, _POSITIVE] < 0).any())
    refuse(negative, f"its {name}.means hold a mean square below 0")
    product, largest = means[:, _SIGNED], np.sqrt(means[:, _FACTORS].astype(np.float64).prod(1))
    wrong = bool((np.abs(product) > largest * (1 + _ROUNDING) + 1e-12).any())
    refuse(wrong, f"its {name}.means hold a mean product that its factors do not allow")
    known = covariances[~np.isnan(covariances).any((1, 2))]
    scale = np.sqrt(np.maximum(np.diagonal(known, axis1=1, axis2=2), 0.0))
    refuse(bool((np.diagonal(known, axis1=1, axis2=2) < 0).any()), f"its {name}.covariances hold a variance below 0")
    outer = scale[:, :, None] * scale[:, None, :]
    symmetric = bool((np.abs(known - known.transpose(0, 2, 1)) <= 1e-9 * outer).all())
    refuse(not symmetric, f"its {name}.covariances are not symmetric")
    correlations = known / np.where(outer > 0, outer, 1.0)
    smallest = float(np.linalg.eigvalsh(correlations).min()) if known.size else 0.0
    refuse(not smallest >= -1e-6, f"its {name}.covariances have the negative eigenvalue {smallest:.3g}")
    still = bool((known[:, _NOISE, _NOISE] <= 0).any())
    refuse(still, f"its {name}.covariances know no noise, of which there are draws")


def check_noise(isotropic: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], d: int) -> None:
    """Refuse isotropic means (I, 8) whose noise is not that of so many draws of d standard normal numbers."""
    noise, drawn = isotropic[counts > 0, _NOISE], counts[counts > 0]
    off = np.abs(noise - 1.0) / np.sqrt(2.0 / (d * drawn))
    worst = int(np.argmax(off)) if off.size else 0
    refuse(
        bool((off > _DEVIATIONS).any()),
        f"the noise of its {drawn[worst : worst + 1]} draws has mean square {noise[worst : worst + 1]} where 1 is "
        "expected",
    )


def check_agreement(name: str, means: npt.NDArray[Any], isotropic: npt.NDArray[np.float64]) -> None:
    """Refuse means (I, 8, *v) whose means over the elements are not the isotropic ones, (I, 8)."""
    pooled = means.astype(np.float64).reshape(*means.shape[:2], -1).mean(-1)
    scale = np.abs(isotropic)
    scale[:, _SIGNED] = np.sqrt(isotropic[:, _FACTORS].prod(1))
    off = np.abs(pooled - isotropic) > 10 * _ROUNDING * scale + 1e-12
    if name not in ("isotropic", "dct"):  # the linear denoiser is another one in another basis
        off[:, _LINEAR] = False
    refuse(bool(off.any()), f"its {name}.means are not of the draws of its isotropic.means")


def check_folds(
    name: str, folds: npt.NDArray[np.float64], means: npt.NDArray[np.float64], covariances: npt.NDArray[np.float64]
) -> None:
    """Refuse folds (I, F, 9, 8) that do not add up to the means (I, 8) and covariances (I, 8, 8): sums, or means times
    each fold's share."""
    size = np.abs(means)
    size[:, _SIGNED] = np.sqrt(means[:, _FACTORS].prod(1))
    deviations = np.sqrt(np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0.0))
    apart = np.abs(folds[:, :, 0].sum(1) - means) > 1e-9 * size
    wide = np.abs(folds[:, :, 1:].sum(1) - covariances) > 1e-9 * deviations[:, :, None] * deviations[:, None, :]
    refuse(bool(apart.any() or wide.any()), f"its {name} folds do not add up to its {name} moments")
