"""A covariance that follows the image, untrained: the diagonal of (σ²/α) J in the dct basis, pooled over bands [E16].

A probe z of random signs in coefficients makes e = z ⊙ (σ²/α) B J Bᵀ z an unbiased estimate of the diagonal of
Cov[x_0|x_t] in the basis B, from one Jacobian-vector product, which the evaluation of the mean brings along
(`models.derivative`). It is far too noisy for a coefficient, and good enough for a band of equal frequency. What is
estimated is the band's ratio ρ_b to a table's variances v, whose profile inside a band is kept; without a table v is
σ²/α², all that x_t says by itself [E5]:

    r_b = Σ_b e / Σ_b v,        Σ = Bᵀ (λ² I + ρ ⊙ γ² v) B.

An estimate is drawn towards the table's ρ = 1 as far as its error asks for it, by a random-effects model of the image's
own bands (DerSimonian and Laird 1986, about a mean that is known),

    r_b ~ N(ρ_b, s_b²),    ρ_b ~ N(1, τ²) cut off below 0,    0 ≤ τ² ≤ 1,
    τ² = (Σ w_b (r_b − 1)² − L)/Σ w_b,    w_b = 1/s_b²,

and ρ_b is its expectation given r_b: the best there is in KL(exact ‖ ours), and above 0 for every r_b. Nothing in it is
tuned: s_b² is the spread of the coefficients' e about r_b v, and 1 is the variance of the exponential distribution,
the least that a number says of itself which is positive and 1 on average. Without signal in x_t there is no J, and the
table's own v is taken.

Sources: Manor and Michaeli (arXiv:2309.13598) for moments of the posterior by derivatives of a denoiser;
arXiv:2605.13910 for one product and bands of frequency in a sampler's steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .. import checks
from ..errors import InputError, warn
from ..models.denoiser import Denoiser
from ..models.derivative import DERIVATIVES, Derivative
from ..models.mean_jacobian import MeanJacobian
from ..models.posterior import Posterior
from ..process.bands import Bands
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.structure import Dct, Shape
from ..variance.table import VarianceTable
from .analytic import Analytic, mean_error_variance
from .level_signs import level_signs
from .reverse import ReverseCovariance, StructuredCovariance, image_shape, noisy
from .tally import Tally

#: Degrees of freedom that a band's error is estimated from: with fewer of its own, its neighbours' count too.
_FREEDOM = 8.0
#: A band that is so many standard errors below 0 is no accident; a share of such bands that is worth a word.
_CERTAIN, _MANY = 4.0, 0.01
#: Where γ² v is below this share of λ² in all steps, no covariance of x_0 is worth its products.
_SILENT = 0.01
_TINY = 1e-30


def band_ratios(
    estimates: torch.Tensor, variance: torch.Tensor, bands: Bands, neighbours: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """r_b and its error's variance s_b², (B, L) float64 each [E16].

    With m_b = (Σ_b v)²/Σ_b v² the effective number of coefficients, one coefficient's relative error has the variance

        κ_b = Σ m² (Σ_b (e − r v)²/(Σ_b v)²) / Σ (m − 1)        over the band and its neighbours,        s_b² = κ_b/m_b.

    Where no band there has two coefficients, nothing is known of the error, and s_b² is infinite (1e30).

    Args:
        estimates: e, (B, C, *spatial).
        variance: v, (C, *spatial), positive.
        neighbours: (L, L), which bands tell of which (`Bands.neighbours`).
    """
    estimates, variance = estimates.double(), variance.double()
    whole = bands.sum(variance)
    ratio = bands.sum(estimates) / whole
    count = whole.square() / bands.sum(variance.square())
    squares = bands.sum((estimates - bands.spread(ratio) * variance).square()) * (count / whole).square()
    near = neighbours.to(variance)
    freedom = near @ (count - 1.0)
    coefficient = (squares @ near.T) / freedom.clamp_min(_TINY)
    return ratio, torch.where(freedom > 1e-6, coefficient / count, 1.0 / _TINY).clamp_min(_TINY)


def random_effects(ratio: torch.Tensor, error2: torch.Tensor) -> torch.Tensor:
    """E[ρ_b|r_b] of the model in the module docstring, (…, L) float64, at least 0, from r_b and s_b²."""
    weight = 1.0 / error2
    excess = (weight * (ratio - 1.0).square()).sum(-1, keepdim=True) - ratio.shape[-1]
    tau2 = (excess / weight.sum(-1, keepdim=True)).clamp(_TINY, 1.0)
    return positive_mean(1.0 + tau2 / (tau2 + error2) * (ratio - 1.0), tau2 * error2 / (tau2 + error2))


def positive_mean(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """The mean of a normal distribution that is cut off below 0: m + s φ(m/s)/Φ(m/s), float64."""
    s = variance.sqrt()
    z = mean / s
    log_density = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi)
    found = z + torch.exp(log_density - torch.special.log_ndtr(z))
    # Far below 0 the two terms cancel; there it is a series in 1/z.
    a2 = 1.0 / z.square().clamp_min(900.0)
    return s * torch.where(z < -30.0, a2.sqrt() * (1.0 - 2.0 * a2 + 10.0 * a2.square()), found)


class Jacobian(ReverseCovariance):
    """The optimal covariance of each image, by bands of the dct, from Jacobian-vector products.

    Args:
        table: a measured table of the model, with the structure "dct"; None: σ²/α² in its place, bands are flat then,
            and steps may not begin where x_t has no signal. More than 3 channels are not rotated without a table.
        structure: "dct", whose coefficients have frequencies.
        bands: of each rotated channel: its mean, and equal intervals of the logarithm of frequency, fewer where some
            would be empty.
        probes: products an image and step; one comes with the mean, for about the price of another evaluation.
        derivative: "forward", or "difference" where a layer of the network has no forward derivative.
        seed: of the probes, which are the same for all images of a level.

    Where x̂_0 is clipped, the derivative is that of the clipped mean, and a step's own three moments [E3] are the
    table's times ρ. Raises InputError for another structure, a table that was not measured or is without dct, vectors,
    and more bands than frequencies.
    """

    depends_on_image = True
    products_with_mean = 1

    def __init__(
        self,
        table: VarianceTable | None = None,
        structure: str = "dct",
        bands: int = 16,
        probes: int = 1,
        *,
        derivative: Derivative = "forward",
        seed: int = 0,
    ) -> None:
        checks.refuse(
            structure != "dct",
            f"structure={checks.brief(structure)} is not known of Jacobian, which pools coefficients of one frequency: "
            "only those of 'dct' have one; leave it out.",
        )
        if table is not None:
            checks.instance("table", table, VarianceTable, "a VarianceTable (VarianceTable.load(path)), or None")
        self.analytic = None if table is None else Analytic(table, structure="dct")
        self.bands = checks.whole("bands", bands, least=1)
        self.products = self.probes = checks.whole("probes", probes, least=1)
        self.derivative: Derivative = checks.one_of("derivative", derivative, DERIVATIVES)
        self.seed = checks.seed(seed)
        self._bases: dict[Shape, _Basis] = {}
        self._tally = Tally("negative", "certain", "estimates")
        if self.analytic is not None:
            lists = "Jacobian needs a measured table (dv.estimate), but this one is of lists; measure one."
            self._basis(checks.given(self.analytic.table.shape, lists))

    @property
    def name(self) -> str:
        alone = "" if self.analytic is not None else ", no table"
        return f"jacobian-dct-{self.bands}{alone}" + f", {self.probes} probes" * (self.probes > 1)

    def identity(self) -> dict[str, Any]:
        own = {"bands": self.bands, "probes": self.probes, "derivative": self.derivative, "seed": self.seed}
        return {"name": self.name, "table": None if self.analytic is None else self.analytic.table.digest, **own}

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.with_jacobian(self._directions, self.derivative)

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self._basis(denoiser.shape)
        if self.analytic is not None:
            self.analytic.check(denoiser, kernels)
        silent = [kernel for kernel in noisy(kernels) if kernel.level_t.alpha == 0.0]
        if self.analytic is None and silent:
            raise InputError(
                f"x_t holds no signal at {silent[0].level_t.name}, so that the mean's derivative says nothing there; "
                "give Jacobian a table, or let the steps begin below."
            )
        self._say_if_idle(denoiser.shape, noisy(kernels))

    def _say_if_idle(self, shape: Shape, kernels: list[ReverseKernel]) -> None:
        shares = [float(self._error(kernel, shape).mean()) / max(kernel.lambda2, _TINY) for kernel in kernels]
        if shares and max(shares) < _SILENT:
            warn(
                f"the covariance of x_0 hardly matters in these steps: it adds at most {max(shares):.2g} of the noise "
                "that they have anyway, and a Jacobian-vector product each; take dv.Analytic, fewer steps, or a "
                "smaller eta."
            )

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        posterior = checks.given(posterior, f"{self.name} follows the image, so that it needs a posterior.")
        like, basis = posterior.mean, self._basis(image_shape(posterior))
        error = self._error(kernel, basis.dct.shape).to(like.device)
        ratio = self.ratio(posterior, kernel.level_t)
        if ratio is not None:
            error = basis.bands.spread(ratio) * error
        return StructuredCovariance(basis.dct, (kernel.lambda2 + error).to(like.dtype))

    # ---- the ratio -----------------------------------------------------------------------------------------------

    def ratio(self, posterior: Posterior, level: NoiseLevel) -> torch.Tensor | None:
        """ρ of each image and band, (B, L) float64, at least 0; None without signal in x_t."""
        if level.alpha == 0.0:
            return None
        basis = self._basis(image_shape(posterior))
        variance = self._variance(level, basis.dct.shape).to(posterior.mean.device).clamp_min(_TINY)
        found, error2 = band_ratios(self._diagonal(posterior, basis.dct), variance, basis.bands, basis.neighbours)
        certain = (found < -_CERTAIN * error2.sqrt()).sum()
        self._tally.count(negative=(found < 0.0).sum(), certain=certain, estimates=found.numel())
        return random_effects(found, error2)

    def _diagonal(self, posterior: Posterior, dct: Dct) -> torch.Tensor:
        """e = z ⊙ (σ²/α) B J Bᵀ z, (B, C, *spatial), averaged over the probes."""
        jacobian: MeanJacobian | None = posterior.jacobian
        if jacobian is None or not jacobian.probed:
            raise InputError(
                f"{self.name} needs products with the mean's derivative, but this posterior has none; use "
                "covariance.prepare(denoiser), as Sampler and bits_per_dim do."
            )
        return torch.stack([dct.forward(v) * dct.forward(product) for v, product in jacobian.probed]).mean(0)

    def _directions(self, level: NoiseLevel, like: torch.Tensor) -> torch.Tensor:
        """The probes of a level, (P, C, *spatial) in pixels."""
        shape = tuple(like.shape[1:])
        signs = level_signs(self.seed, "probes of a Jacobian", level, self.probes, *shape)
        return self._basis(shape).dct.inverse(signs.to(like))

    # ---- what it is a ratio to -----------------------------------------------------------------------------------

    def _basis(self, shape: Shape) -> _Basis:
        """The basis and bands of images of a shape."""
        if shape not in self._bases:
            self._bases[shape] = _Basis.of(shape, self.bands, self.analytic)
        return self._bases[shape]

    def _variance(self, level: NoiseLevel, shape: Shape) -> torch.Tensor:
        """v of a level, (C, *spatial) float64."""
        if self.analytic is None:
            return torch.full(shape, (level.sigma / level.alpha) ** 2, dtype=torch.float64)
        v = self.analytic.table.posterior_variance(level, structure="dct")
        return torch.as_tensor(v, dtype=torch.float64)

    def _error(self, kernel: ReverseKernel, shape: Shape) -> torch.Tensor:
        """γ² v of a step, with a table the mean square error of its mean as it is used [E3], (C, *spatial) float64."""
        if self.analytic is None:
            return kernel.gain**2 * self._variance(kernel.level_t, shape)
        return torch.as_tensor(mean_error_variance(kernel, *self.analytic.moments(kernel)), dtype=torch.float64)

    # ---- what is reported ----------------------------------------------------------------------------------------

    def counts(self) -> list[int]:
        """Since the last report: estimates r_b that were negative, those that were by more than their errors explain,
        and all."""
        return self._tally.new

    def add_counts(self, counts: list[int]) -> None:
        self._tally.add(counts)

    def report(self) -> None:
        _, certain, total = self._tally.report()
        if certain > _MANY * total:
            warn(
                f"of {total} variances of bands, {certain} were negative by far more than their errors: the network's "
                "derivative is no covariance there; compare with the table's own, dv.Analytic."
            )


@dataclass(frozen=True)
class _Basis:
    """The dct of images of a shape, its bands, and which of these tell of which."""

    dct: Dct
    bands: Bands
    neighbours: torch.Tensor

    @classmethod
    def of(cls, shape: Shape, count: int, analytic: Analytic | None) -> _Basis:
        checks.refuse(
            len(shape) < 2,
            f"images of shape {shape} are vectors, which have no frequencies to pool; take dv.Analytic.",
        )
        if analytic is None:
            dct = Dct(shape, None if shape[0] in (1, 3) else torch.eye(shape[0]).numpy())
        else:
            found = analytic.table.structure("dct")
            assert isinstance(found, Dct)
            dct = found
        bands = Bands(shape, count)
        return cls(dct, bands, bands.neighbours(_FREEDOM))
