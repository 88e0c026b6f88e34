"""A mixture of Gaussians as data: mean and covariance of x_0 | x_t, the density, and samples, all exact [E24].

    x_0 ~ Σ_j w_j N(m_j, C_j),   so that x_t ~ Σ_j w_j N(α m_j, α² C_j + σ² I)   and, given x_t,

    r_j      = w_j N(x_t; α m_j, α² C_j + σ² I) / Σ_i …       the probability of component j
    x̂_j      = m_j + Q_j κ_j Q_jᵀ (x_t − α m_j)               its own mean of x_0 [E5], with C_j = Q_j diag(l_j) Q_jᵀ
    E        = Σ_j r_j x̂_j
    Cov      = Σ_j r_j [ Q_j diag(l_j σ²/(α² l_j + σ²)) Q_jᵀ + (x̂_j − E)(x̂_j − E)ᵀ ]

The eigenbases Q_j do not depend on the noise level, so that an image costs two products with (d, J d) matrices at any.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..data.images import to_float
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.structure import Isotropic, Structure, make_structure
from ..randomness import generator
from .components import Components, DenseComponents, IsotropicComponents
from .exact import ExactDenoiser

Float64Array = npt.NDArray[np.float64]
_ROWS = 256  # images at once, where (images, components, d) is made


class MixtureDenoiser(ExactDenoiser):
    """A mixture of J Gaussians, each with one variance or with a covariance matrix.

    Args:
        means: (J, C, *spatial).
        variances: (J,) or one number, at least 0: isotropic components. None where covariances are given.
        weights: (J,) positive, normalised here; None: equal.
        covariances: (J, d, d), symmetric, with no eigenvalue below 0 (but for rounding), instead of variances;
            d = C·H·W, in the order of a flattened image. An eigendecomposition each is made here (d = 768: 0.2 s).
        data_range: of the data, as for `Denoiser`: a Gaussian has none, but its samples may stand for images of one.

    Raises InputError for shapes that do not fit, numbers that are not finite, and what is no covariance.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: npt.ArrayLike | torch.Tensor,
        variances: npt.ArrayLike | torch.Tensor | None = None,
        weights: npt.ArrayLike | torch.Tensor | None = None,
        device: torch.device | str | None = None,
        *,
        covariances: npt.ArrayLike | torch.Tensor | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> None:
        shape = tuple(np.shape(means))
        checks.refuse(len(shape) < 2, f"means must have shape (J, C, *spatial), but it has {shape}.")
        checks.refuse(
            (variances is None) == (covariances is None),
            "a mixture has variances (one a component) or covariances (d × d each); give one of the two.",
        )
        super().__init__(schedule, shape[1:], device)
        self.data_range = checks.bounds("data_range", data_range)
        count, d = shape[0], math.prod(self.shape)
        self.means = self._keep("means", means, shape)
        raw = self._keep("weights", np.ones(count) if weights is None else weights, (count,))
        self.components: Components
        if covariances is None:
            assert variances is not None
            self.variances = self._keep("variances", variances, (count,))
            wrong = bool((self.variances < 0).any() or (raw <= 0).any())
            checks.refuse(wrong, "variances must be at least 0 and weights positive.")
            self.components = IsotropicComponents(self.means.flatten(1), self.variances)
        else:
            checks.refuse(bool((raw <= 0).any()), "weights must be positive.")
            found = tuple(np.shape(covariances))
            checks.refuse(
                found != (count, d, d),
                f"covariances has shape {found}, but {(count, d, d)} is needed: a d × d matrix a component.",
            )
            kept = self._keep("covariances", covariances, (count, d, d))
            self.components = DenseComponents(self.means.flatten(1), kept)
        self.log_weights = (raw / raw.sum()).log()
        self._structures: dict[str, Structure] = {}

    # ---- E[x_0|x_t] --------------------------------------------------------------------------------------------

    def responsibilities(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        """P(component j | x_t), (B, J), from log-densities (no underflow)."""
        alpha, sigma = self._columns(alpha, sigma)
        r: torch.Tensor = self._log_joint(self.components.coordinates(x_t.flatten(1), alpha), alpha, sigma).softmax(1)
        return r

    def exact_mean(self, x_t: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
        alpha, sigma = self._columns(alpha, sigma)
        y = self.components.coordinates(x_t.flatten(1), alpha)
        r = self._log_joint(y, alpha, sigma).softmax(1)
        return self.components.combined(r, y, alpha, sigma).view_as(x_t)

    def _log_joint(self, y: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """log w_j N(x_t; α m_j, α² C_j + σ² I), (B, J)."""
        return self.log_weights + self.components.log_densities(y, alpha, sigma)

    def _columns(self, *values: Any) -> list[torch.Tensor]:
        """Floats or (B, 1, …) tensors as float64 columns, to meet the (B, J) of the components."""
        return [torch.as_tensor(a, dtype=torch.float64, device=self.device).reshape(-1, 1) for a in values]

    # ---- Cov[x_0|x_t] ------------------------------------------------------------------------------------------

    def posterior_variance(
        self, x_t: torch.Tensor, n: int | NoiseLevel, structure: str | Structure = "pixel"
    ) -> torch.Tensor:
        """Cov[x_0|x_t] of each image, in a structure: the nearest matrix to it that the structure can be, float64.

        Args:
            x_t: (B, C, *spatial).
            n: an index or a level.
            structure: "isotropic", "channel", "pixel", "dct" or a `Structure`.

        Returns: (B, *variance_shape) of the structure: (B, C, *spatial) of pixel and dct, (B, 1, …, 1) of isotropic.
        """
        structure = self._structure(structure)
        x = x_t.double()
        alpha, sigma = self._columns(*self.schedule.coefficients(n, x))
        parts = []
        for rows in torch.split(x, _ROWS):
            r, centred = self._centred(rows, alpha, sigma)
            within = r @ self.components.within(structure, alpha, sigma)
            between = (r[..., None] * structure.forward(centred.view(*r.shape, *self.shape)).flatten(2).square()).sum(1)
            parts.append(structure.pool((within + between).view_as(rows)))
        found = torch.cat(parts)
        return found.view(-1, *(1,) * len(self.shape)) if isinstance(structure, Isotropic) else found

    def posterior_covariance(self, x_t: torch.Tensor, n: int | NoiseLevel) -> torch.Tensor:
        """Cov[x_0|x_t] of each image, (B, d, d) float64."""
        x = x_t.double()
        alpha, sigma = self._columns(*self.schedule.coefficients(n, x))
        r, centred = self._centred(x, alpha, sigma)
        root = r.sqrt()[..., None] * centred
        return torch.einsum("bj,jde->bde", r, self.components.within_dense(alpha, sigma)) + root.mT @ root

    def mean_posterior_covariance(self, n: int | NoiseLevel, count: int = 1024, seed: int = 0) -> torch.Tensor:
        """E Cov[x_0|x_t] over the mixture's own x_t at a level, (d, d) float64.

        The variance within components is exact, E r_j being w_j; that between them is averaged over `count` draws.
        """
        x_0 = self.sample(count, seed).double().to(self.device)
        noise = torch.from_numpy(generator(checks.seed(seed), "mixture noise").standard_normal(x_0.shape))
        alpha, sigma = self._columns(*self.schedule.coefficients(n, x_0))
        x_t = alpha.view(-1, *(1,) * len(self.shape)) * x_0 + sigma.view(-1, *(1,) * len(self.shape)) * noise.to(x_0)
        within = torch.einsum("j,jde->de", self.log_weights.exp(), self.components.within_dense(alpha, sigma))
        between = torch.zeros_like(within)
        for rows in torch.split(x_t, _ROWS):
            r, centred = self._centred(rows, alpha, sigma)
            root = (r.sqrt()[..., None] * centred).flatten(0, 1)
            between += root.T @ root
        return within + between / count

    def eigen(self, n: int | NoiseLevel) -> tuple[torch.Tensor, torch.Tensor]:
        """Each component's own covariance of x_0 given x_t: eigenvalues (J, d) and eigenvectors (J, d, d), columns.

        Where one component is certain, Cov[x_0|x_t] is its.
        """
        return self.components.eigen(*self._columns(*self.schedule.coefficients(n, self.means)))

    def _centred(self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """r (B, J), and x̂_j − E[x_0|x_t], (B, J, d)."""
        y = self.components.coordinates(x.flatten(1), alpha)
        r = self._log_joint(y, alpha, sigma).softmax(1)
        each = self.components.each_mean(y, alpha, sigma)
        return r, each - (r[:, None] @ each)

    def _structure(self, structure: str | Structure) -> Structure:
        if isinstance(structure, Structure):
            return structure
        if structure not in self._structures:  # kept, for so are the components' turns into its basis
            self._structures[structure] = make_structure(structure, self.shape)
        return self._structures[structure]

    # ---- the data ----------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, n: int | NoiseLevel | None = None) -> torch.Tensor:
        """log p(x) of each image in nats, (B,) float64; p a density of continuous data.

        Args:
            x: (B, C, *spatial), a tensor or array; uint8 is read as [-1, 1].
            n: for the density of x_n at an index or level; None: of x_0, the data.

        Raises InputError for components without volume (a variance of 0), which have no density at x_0.
        """
        x = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))
        x = (to_float(x) if x.dtype == torch.uint8 else x).double().to(self.device)
        checks.refuse(
            tuple(x.shape[1:]) != self.shape,
            f"x has shape {tuple(x.shape)}, but this mixture is of (B, {', '.join(map(str, self.shape))}).",
        )
        alpha, sigma = self._columns(*((1.0, 0.0) if n is None else self.schedule.coefficients(n, x)))
        checks.refuse(
            n is None and self.components.is_flat,
            "a component has a variance of 0, so that its density is nowhere finite; ask for that of x_n, n ≥ 1.",
        )
        parts = [
            self._log_joint(self.components.coordinates(rows.flatten(1), alpha), alpha, sigma).logsumexp(1)
            for rows in torch.split(x, _ROWS)
        ]
        return torch.cat(parts)

    def density_bits(self, x: Any) -> Float64Array:
        """−log₂ p(x) per dimension of each image, (B,): what `density_bound` bounds from above, on average over data of
        the mixture. It depends on the data's unit and may be negative; arguments as for `log_prob`."""
        return np.asarray(-self.log_prob(x).cpu().numpy() / (math.log(2.0) * math.prod(self.shape)))

    def moments(self) -> tuple[Float64Array, Float64Array]:
        """Mean (d,) and covariance (d, d) of the data, for `metrics.frechet_distance`."""
        w, m = self.log_weights.exp(), self.means.flatten(1)
        mean = w @ m
        clean = [torch.zeros(1, 1, dtype=torch.float64, device=self.device), torch.ones(1, 1).to(m)]
        covariance = torch.einsum("j,jde->de", w, self.components.within_dense(*clean)) + (m - mean).T * w @ (m - mean)
        return mean.cpu().numpy(), covariance.cpu().numpy()

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        count, seed = checks.whole("count", count, least=1), checks.seed(seed)
        stream = generator(seed, "mixture data")
        j = torch.from_numpy(stream.choice(len(self.means), size=count, p=self.log_weights.exp().cpu().numpy()))
        noise = torch.from_numpy(stream.standard_normal((count, *self.shape)))
        return (self.means.cpu()[j] + self.components.coloured(j, noise.flatten(1)).view_as(noise)).float()
