"""The optimal reverse covariance λ² I + γ² Cov[x_0|x_t] [E2], from a variance table, for any structure: Analytic-DPM
(arXiv:2201.06503) and Extended-Analytic-DPM (arXiv:2206.07309).

Where x̂_0 is clipped and a step uses the network's own ε̂, the error of its mean is γ r − c δ, so that the optimum is
λ² + γ² E r² − 2 γ c E rδ + c² E δ² [E3]; the table holds the three moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import checks
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.structure import Isotropic
from ..variance.estimators import Estimator
from ..variance.table import VarianceTable
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy, variance_tensor

Float64Array = npt.NDArray[np.float64]


def mean_error_variance(kernel: ReverseKernel, error: Any, cross: Any, shift: Any) -> Any:
    """γ² E r² − 2 γ c E rδ + c² E δ²: the mean square error of the step's mean as it is used [E3].

    With ε̂ re-derived δ vanishes and it is γ² v (eq. 2). Negative estimates are cut at 0, the case v = 0.
    """
    gamma, c = kernel.gain, 0.0 if kernel.rederives_eps else kernel.eps_gain
    return np.maximum(gamma**2 * error - 2.0 * gamma * c * cross + c**2 * shift, 0.0)


def optimal_variance(kernel: ReverseKernel, error: Any, cross: Any, shift: Any) -> Any:
    """λ² plus `mean_error_variance`: the optimal variance of the step's mean as it is used [E3]."""
    return kernel.lambda2 + mean_error_variance(kernel, error, cross, shift)


class Analytic(ReverseCovariance):
    """The optimal covariance, from a variance table.

    Args:
        table: a `VarianceTable`.
        estimator: "residual" (right for the mean in use), "score_norm" or "data_variance".
        structure: "isotropic", "channel", "pixel" or "dct".
        bounded: see `VarianceTable.posterior_variance`.
    """

    def __init__(
        self,
        table: VarianceTable,
        estimator: Estimator = "residual",
        structure: str = "isotropic",
        bounded: bool | None = None,
    ) -> None:
        wrong = not isinstance(table, VarianceTable)
        kind = f"the class {table.__name__}" if isinstance(table, type) else type(table).__name__
        checks.refuse(wrong, f"Analytic needs a VarianceTable, but got {kind}; load one with VarianceTable.load(path).")
        table.posterior_variance(int(table.indices[0]), estimator, structure, bounded)  # refuses unknown names now
        self.table, self.estimator, self.structure, self.bounded = table, estimator, structure, bounded

    @property
    def name(self) -> str:
        return f"analytic-{self.structure}"

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "table": self.table.digest,
            "estimator": self.estimator,
            "structure": self.structure,
            "bounded": self.bounded,
        }

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self.table.check(denoiser)
        for kernel in noisy(kernels):  # the last step adds none, so its level need not have been measured
            self.variance(kernel)

    def moments(self, kernel: ReverseKernel) -> tuple[Any, Any, Any]:
        """(E r², E rδ, E δ²) of a step, as `optimal_variance` takes them."""
        if self.estimator == "residual" and not kernel.rederives_eps:
            error, cross, shift = self.table.clipping_moments(kernel.level_t, self.structure)
            if self.bounded:
                error = self.table.posterior_variance(kernel.level_t, "residual", self.structure, True)
            return error, cross, shift
        return self.table.posterior_variance(kernel.level_t, self.estimator, self.structure, self.bounded), 0.0, 0.0

    def variance(self, kernel: ReverseKernel) -> Float64Array:
        """Σ's variances for a step, float64, of the structure's shape."""
        return np.asarray(optimal_variance(kernel, *self.moments(kernel)))

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        # Published arrays do not know the shape of an image; the posterior does.
        known = self.table.shape is not None
        structure = self.table.structure(self.structure) if known else Isotropic(image_shape(posterior))
        return StructuredCovariance(structure, variance_tensor(self.variance(kernel), posterior))
