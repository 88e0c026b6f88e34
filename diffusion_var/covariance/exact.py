"""The optimal reverse covariance λ² I + γ² Cov[x_0|x_t] [E2] of a mixture of Gaussians, in closed form [E24].

per image   Cov[x_0|x_t] at the image's own x_t: the Gaussian step nearest to the true one, which no table can know
averaged    its mean over x_t at the level, as a variance table would have it from infinitely many draws

In any structure: "full" is the matrix itself, the others are the nearest that they can be to it.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..errors import InputError
from ..models.denoiser import Denoiser
from ..models.mixture import MixtureDenoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.structure import STRUCTURE_NAMES, Full, Structure, make_structure
from .reverse import ReverseCovariance, StructuredCovariance

# From here on a component's eigenbasis is that of the whole, to the rounding of float64.
_CERTAIN = 1.0 - 1e-14


class ExactCovariance(ReverseCovariance):
    """The optimal covariance of a mixture's own mean.

    Args:
        mixture: the `oracles.MixtureDenoiser` that is sampled from or whose likelihood is bounded.
        structure: "full", "isotropic", "channel", "pixel" or "dct".
        per_image: at each image's x_t, or averaged over x_t. Per image, "full" costs an eigendecomposition for every
            image (d = 768: 0.2 s) at levels where more than one component is possible.
        draws: that the average is taken over, of the variance between components (that within them needs none).
        seed: of these draws.

    Raises InputError for what is no mixture, an unknown structure, and a denoiser that is another model.
    """

    def __init__(
        self,
        mixture: MixtureDenoiser,
        structure: str = "full",
        *,
        per_image: bool = True,
        draws: int = 1024,
        seed: int = 0,
    ) -> None:
        self.mixture: MixtureDenoiser = checks.instance(
            "mixture", mixture, MixtureDenoiser, "a dv.oracles.MixtureDenoiser, such as fit_mixture gives"
        )
        self.structure: str = checks.one_of("structure", structure, ("full", *STRUCTURE_NAMES))
        self.depends_on_image = bool(per_image)
        self.draws, self.seed = checks.whole("draws", draws, least=1), checks.seed(seed)

    @property
    def name(self) -> str:
        return f"exact-{self.structure}{', per image' if self.depends_on_image else ''}"

    def identity(self) -> dict[str, Any]:
        found = {"name": self.name, "mixture": self.mixture.fingerprint, "structure": self.structure}
        return found if self.depends_on_image else {**found, "draws": self.draws, "seed": self.seed}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        if denoiser.fingerprint != self.mixture.fingerprint:
            raise InputError(
                f"{self.name} is the covariance of one mixture's own mean, but the denoiser is another model; measure "
                "its table (dv.estimate) and use Analytic."
            )

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        structure, v = self._per_image(posterior, kernel) if self.depends_on_image else self._average(kernel.level_t)
        variance = kernel.lambda2 + kernel.gain**2 * v
        like = torch.zeros((), device=self.mixture.device) if posterior is None else posterior.mean
        return StructuredCovariance(structure, variance.to(like))

    def _per_image(self, posterior: Posterior | None, kernel: ReverseKernel) -> tuple[Structure, torch.Tensor]:
        checks.refuse(posterior is None, f"{self.name} follows the image, so that it needs a posterior.")
        assert posterior is not None
        level = kernel.level_t
        # The mean is not clipped, so that x_t is known from it.
        x_t = level.alpha * posterior.mean.double() + level.sigma * posterior.eps.double()
        if self.structure == "full":
            return self._own_bases(x_t, level)
        return make_structure(self.structure, self.mixture.shape), self.mixture.posterior_variance(
            x_t, level, self.structure
        )

    def _own_bases(self, x_t: torch.Tensor, level: NoiseLevel) -> tuple[Structure, torch.Tensor]:
        most, which = self.mixture.responsibilities(x_t, level.alpha, level.sigma).max(1)
        values, vectors = (known[which] for known in self.mixture.eigen(level))
        mixed = most < _CERTAIN
        if bool(mixed.any()):
            values[mixed], vectors[mixed] = torch.linalg.eigh(self.mixture.posterior_covariance(x_t[mixed], level))
        return Full(self.mixture.shape, vectors.mT), values.clamp_min(0.0).view_as(x_t)

    def _average(self, level: NoiseLevel) -> tuple[Structure, torch.Tensor]:
        covariance = self.mixture.mean_posterior_covariance(level, self.draws, self.seed)
        shape = self.mixture.shape
        if self.structure == "full":
            values, vectors = torch.linalg.eigh(covariance)
            return Full(shape, vectors.mT.contiguous()), values.clamp_min(0.0).view(shape)
        structure = make_structure(self.structure, shape)
        # diag B C Bᵀ: the columns of C into the basis, then the rows of what that gives.
        turned = structure.forward(covariance.view(-1, *shape)).flatten(1)
        diagonal = structure.forward(turned.T.reshape(-1, *shape)).flatten(1).diagonal()
        return structure, structure.pool(diagonal.view(shape))
