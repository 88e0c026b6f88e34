"""Posterior variances at every index as plain lists of numbers: what fits into a scheduler's JSON config.

For the isotropic and the channel structure a table comes down to N numbers (or N × C), and where x̂_0 is clipped twice
as many more: the moments E rδ and E δ² of the optimal covariance with the network's own ε̂ (see `analytic`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.structure import Channel, Isotropic
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .analytic import optimal_variance
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, variance_tensor

Float64Array = npt.NDArray[np.float64]
STRUCTURES = ("isotropic", "channel")


class VarianceLists(ReverseCovariance):
    """The optimal covariance from lists; entry n − 1 is index n's.

    Args:
        variances: N numbers v_n, or N lists of C numbers (channel structure), at least 0, in squared data units.
        cross, shift: E rδ and E δ² alike, or None where nothing is clipped.

    Raises InputError for lists of unlike shapes and for numbers that are not finite.
    """

    def __init__(self, variances: Sequence[Any], cross: Sequence[Any] | None = None, shift: Any = None) -> None:
        self.variances = _array("posterior_variance", variances, None)
        shape = self.variances.shape
        self.cross = np.zeros(shape) if cross is None else _array("clipping_cross", cross, shape)
        self.shift = np.zeros(shape) if shift is None else _array("clipping_shift", shift, shape)
        if (self.variances < 0).any():
            n = int(np.argwhere(self.variances < 0)[0][0]) + 1
            raise InputError(f"posterior_variance at index {n} is {self.variances[n - 1]}, but it must be at least 0.")

    @classmethod
    def from_table(
        cls,
        table: VarianceTable,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        bounded: bool | None = None,
    ) -> VarianceLists:
        """The table's answers at every index 1…N (interpolated where not measured); arguments as in `Analytic`."""
        if structure not in STRUCTURES:
            raise InputError(
                f"the structure {structure!r} has a variance per element, too many for lists; expected one of "
                f"{', '.join(STRUCTURES)}."
            )
        indices = range(1, table.schedule.num_steps + 1)
        v = [_flat(table.posterior_variance(n, estimator, structure, bounded)) for n in indices]
        if table.clip is None or estimator != "residual":
            return cls(v)
        moments = [table.clipping_moments(n, structure) for n in indices]
        return cls(v, [_flat(m[1]) for m in moments], [_flat(m[2]) for m in moments])

    def lists(self) -> dict[str, list[Any] | None]:
        """The arguments that make this object again, as JSON has them."""
        clipped = bool(self.cross.any() or self.shift.any())
        return {
            "posterior_variance": self.variances.tolist(),
            "clipping_cross": self.cross.tolist() if clipped else None,
            "clipping_shift": self.shift.tolist() if clipped else None,
        }

    @property
    def name(self) -> str:
        return f"analytic-{STRUCTURES[self.variances.ndim - 1]}"

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        if len(self.variances) != denoiser.schedule.num_steps:
            raise InputError(
                f"there are {len(self.variances)} variances, but the schedule has N={denoiser.schedule.num_steps}."
            )

    def variance(self, kernel: ReverseKernel) -> Float64Array:
        """Σ's variances for a step, float64: () or (C,)."""
        n = checks.given(kernel.t, f"lists of variances know indices alone, but the step {kernel} starts off the grid.")
        v, cross, shift = (array[n - 1] for array in (self.variances, self.cross, self.shift))
        return np.asarray(optimal_variance(kernel, v, cross, shift))

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        return listed_covariance(self.variance(kernel), posterior)


def listed_covariance(value: Float64Array, posterior: Posterior | None) -> StructuredCovariance:
    """Σ of one variance, (), or one for each channel, (C,), for the posterior's images; float64 values."""
    shape = image_shape(posterior)
    if value.ndim == 0:
        return StructuredCovariance(Isotropic(shape), variance_tensor(value, posterior))
    wrong = posterior is not None and len(value) != shape[0]
    checks.refuse(wrong, f"there are variances for {len(value)} channels, but the images have {shape[0]}.")
    structure = Channel((len(value), *shape[1:]))
    return StructuredCovariance(structure, variance_tensor(value.reshape(structure.variance_shape), posterior))


def _flat(value: Any) -> Any:
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array.ravel().tolist()


def _array(name: str, values: Sequence[Any], shape: tuple[int, ...] | None) -> Float64Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a list of N numbers, or N lists of C numbers.") from None
    if array.ndim not in (1, 2) or array.size == 0 or (shape is not None and array.shape != shape):
        expected = "(N,) or (N, C)" if shape is None else str(shape)
        raise InputError(f"{name} has shape {array.shape}, but {expected} is expected.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite values.")
    return array
