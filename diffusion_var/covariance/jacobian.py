"""A covariance that follows the image, untrained: the diagonal of (σ²/α) J in the dct basis, pooled over bands [E16].

A probe z of random signs in coefficients makes z ⊙ (B J Bᵀ z) an unbiased estimate of the diagonal of B J Bᵀ, from one
Jacobian-vector product, which the evaluation of the mean brings along (`models.derivative`). One probe is far too noisy
for a coefficient, and enough for a band of equal frequency. What is estimated is the band's ratio ρ_b to the table,

    ρ_b = Σ_b (σ²/α) z ⊙ (B J Bᵀ z) / Σ_b v,        Σ = Bᵀ (λ² I + ρ ⊙ γ² v) B,

with the table's own profile inside a band. The ratios of an image are then drawn together as far as their errors ask
for it, by what is measured alone (a random-effects mean, DerSimonian and Laird 1986): with s_b² the variance of ρ_b,
from the spread of its coefficients, w_b = 1/s_b², and the mean c = Σ w_b ρ_b/Σ w_b,

    τ² = max(0, (Σ w_b (ρ_b − c)² − (L − 1)) / (Σ w_b − Σ w_b²/Σ w_b)),        ρ_b → c + τ²/(τ² + s_b²) (ρ_b − c).

What is negative then is cut to 0, and counted. Without signal in x_t there is no J, and the table's own v is taken.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import checks
from ..errors import InputError, warn
from ..models.denoiser import Denoiser
from ..models.derivative import Derivative, MeanJacobian
from ..models.posterior import Posterior
from ..process.bands import Bands
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.structure import Dct, Structure
from ..randomness import generator
from ..variance.table import VarianceTable
from .analytic import Analytic, mean_error_variance
from .reverse import ReverseCovariance, StructuredCovariance


def random_effects(ratio: torch.Tensor, error2: torch.Tensor) -> torch.Tensor:
    """Numbers (…, L) with error variances, drawn together as in the module docstring; alone (L = 1) they stay."""
    weight = 1.0 / error2
    total = weight.sum(-1, keepdim=True)
    centre = (weight * ratio).sum(-1, keepdim=True) / total
    spread = (weight * (ratio - centre).square()).sum(-1, keepdim=True) - (ratio.shape[-1] - 1)
    scale = total - weight.square().sum(-1, keepdim=True) / total
    tau2 = torch.where(scale > 0, spread / scale, 0.0).clamp_min(0.0)
    return centre + tau2 / (tau2 + error2) * (ratio - centre)


def band_ratios(estimates: torch.Tensor, variance: torch.Tensor, bands: Bands) -> tuple[torch.Tensor, torch.Tensor]:
    """ρ_b and its error variance s_b², (B, L) float64 each, from coefficients' estimates (B, C, *spatial) and the
    table's variances (C, *spatial).

    s_b² is from the spread of a band's estimates about ρ_b, each over its share of Σ_b v; but no less than what the
    spread over all bands says, for a band of few coefficients knows little of its own.
    """
    whole = bands.sum(variance)
    ratio = bands.sum(estimates) / whole
    share = variance.double() / bands.spread(whole)
    squares = bands.sum((share * (estimates.double() / variance.double() - bands.spread(ratio))).square())
    shares2 = bands.sum(share.square())
    freedom = (1.0 - shares2).clamp_min(_LEAST_FREEDOM)
    common = squares.sum(-1, keepdim=True) / (shares2 * freedom).sum()
    return ratio, torch.maximum(squares / freedom, common * shares2).clamp_min(_TINY)


class Jacobian(ReverseCovariance):
    """The optimal covariance of each image, by bands of the dct, from Jacobian-vector products.

    Args:
        table: a measured table of the model, with the structure "dct".
        bands: of equal width in frequency, for each rotated channel.
        probes: products an image and step; one comes with the mean, for about the price of another evaluation.
        derivative: "forward", or "difference" where a layer of the network has no forward derivative.
        seed: of the probes, which are the same for all images of a level.

    A step costs about 1 + `probes` evaluations (a pass forward with a tangent). Raises InputError for what is no
    measured table, one without dct, and more bands than frequencies.
    """

    depends_on_image = True
    products_with_mean = 1

    def __init__(
        self, table: VarianceTable, bands: int = 8, probes: int = 1, derivative: Derivative = "forward", seed: int = 0
    ) -> None:
        self.analytic = Analytic(table, structure="dct")
        known = checks.given(table.shape, "Jacobian needs a measured table (dv.estimate), but this is of lists.")
        self.structure: Structure = table.structure("dct")
        assert isinstance(self.structure, Dct)
        self.bands, self.probes = Bands(known, bands), checks.whole("probes", probes, least=1)
        self.products = self.probes
        self.derivative: Derivative = checks.one_of("derivative", derivative, ("forward", "difference"))
        self.seed, self._asked = checks.seed(seed), bands
        self._counted, self._reported = torch.zeros(2, dtype=torch.int64), [0, 0]

    @property
    def name(self) -> str:
        return f"jacobian-{self._asked}" + f", {self.probes} probes" * (self.probes > 1)

    def identity(self) -> dict[str, Any]:
        own = {"bands": self._asked, "probes": self.probes, "derivative": self.derivative, "seed": self.seed}
        return {"name": self.name, "table": self.analytic.table.digest, **own}

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.with_jacobian(self._directions, self.derivative)

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        self.analytic.check(denoiser, kernels)

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        posterior = checks.given(posterior, f"{self.name} follows the image, so that it needs a posterior.")
        like = posterior.mean
        prior = torch.as_tensor(
            mean_error_variance(kernel, *self.analytic.moments(kernel)), dtype=torch.float64, device=like.device
        )
        ratio = self.ratio(posterior, kernel.level_t)
        variance = kernel.lambda2 + (prior if ratio is None else self.bands.spread(ratio) * prior)
        return StructuredCovariance(self.structure, variance.to(like.dtype))

    def ratio(self, posterior: Posterior, level: NoiseLevel) -> torch.Tensor | None:
        """ρ of each image and band, (B, L) float64, at least 0; None without signal in x_t."""
        if level.alpha == 0.0:
            return None
        v = self.analytic.table.posterior_variance(level, structure="dct")
        variance = torch.as_tensor(v, dtype=torch.float64, device=posterior.mean.device)
        found = random_effects(*band_ratios(self._diagonal(posterior), variance.clamp_min(_TINY), self.bands))
        told = torch.stack([(found < 0).sum(), torch.tensor(found.numel(), device=found.device)])
        self._counted = self._counted.to(found.device) + told
        return found.clamp_min(0.0)

    def _diagonal(self, posterior: Posterior) -> torch.Tensor:
        """z ⊙ B (σ²/α) J Bᵀ z, (B, C, *spatial), averaged over the probes."""
        jacobian: MeanJacobian | None = posterior.jacobian
        if jacobian is None:
            raise InputError(
                f"{self.name} needs the mean's derivative, but this posterior has none; use covariance.prepare("
                "denoiser), as Sampler and bits_per_dim do."
            )
        forward = self.structure.forward
        return torch.stack([forward(v) * forward(product) for v, product in jacobian.probed]).mean(0)

    def _directions(self, level: NoiseLevel, like: torch.Tensor) -> torch.Tensor:
        """The probes of a level, (P, C, *spatial) in pixels."""
        # Of its own for every level, so that their errors do not add up along a trajectory.
        place = round((level.log_snr + 1000.0) * 1e6)
        drawn = generator(self.seed, "probes of a Jacobian", place).integers(0, 2, (self.probes, *self.structure.shape))
        return self.structure.inverse(torch.from_numpy(2.0 * drawn - 1.0).to(like))

    # ---- what is reported ---------------------------------------------------------------------------------------

    def counts(self) -> list[int]:
        return [int(now) - before for now, before in zip(self._counted, self._reported, strict=True)]

    def add_counts(self, counts: list[int]) -> None:
        self._counted = self._counted + torch.tensor(counts, device=self._counted.device)

    def report(self) -> None:
        negative, total = self.counts()
        self._reported = [int(now) for now in self._counted]
        if negative > _MANY * total:
            warn(
                f"of {total} variances of bands, {negative} were negative (nothing was added to λ²): the network's "
                "derivative is far from a covariance there; take the table's own, dv.Analytic."
            )


#: Of a band's coefficients at most this share is spent on its mean; variances that are none; a share worth a word.
_LEAST_FREEDOM, _TINY, _MANY = 0.2, 1e-30, 0.05
