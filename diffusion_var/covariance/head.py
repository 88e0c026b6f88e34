"""A covariance that depends on the image: a small head on the frozen trunk's features, beside a variance table.

The head says by how much, ρ(x_t), the variance of x_0 given this x_t differs from the table's average v_t at index t:

    Σ = λ² I + ρ(x_t) ⊙ (γ² v_t)           one ρ per pixel (npr, sn, ocm); v_t is the isotropic variance
    Σ = Bᵀ (λ² I + ρ(x_t) ⊙ (γ² v_t)) B    one ρ per image and channel (factor), or one per image, channel and band of
                                           frequency (bands); v_t is a pixel or dct structure's

At ρ = 1, where training starts, this is `Analytic`. Where x̂_0 is clipped and a step uses the network's own ε̂, γ² v_t
is the table's three-moment value [E3]. The heads of the papers (`output="papers"`) say v = ρ v_t itself, for which
Σ = λ² I + γ² v always; in use it is cut to what a variance of data in [a, b] can be, v ≤ ((b − a)/2)² [E9]. No head is
cut at σ²/α², which bounds the average over x_t and not the variance at one. Σ is made safe by one rule: a ρ that is
not finite counts as 1 (the table's value), a negative one as 0 (no more than λ²); both are counted, and reported once
a run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import checks
from ..errors import InputError, warn
from ..models.denoiser import Denoiser
from ..models.fingerprint import weights_fingerprint
from ..models.heads import HeadNetwork
from ..models.pooled_head import PooledHead
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.structure import without_autocast
from ..variance.estimators import range_variance
from ..variance.table import VarianceTable
from .head_file import head_digest, read_head_file, write_head_file
from .head_prior import Prior
from .head_spec import HeadSpec
from .head_targets import positive_ratio
from .reverse import ReverseCovariance, StructuredCovariance, noisy
from .tally import Tally


@dataclass
class Clamped:
    """How many of the factors ρ so far were not finite, and how many negative, of how many."""

    nonfinite: int
    negative: int
    total: int


class Head(ReverseCovariance):
    """A trained head as a reverse covariance; made by `train_head` or `load`, and used like any other.

    Args:
        network: the head.
        table: of the same trunk; kept in the head's file as far as it is needed.
        spec: what kind of head it is.
        training: what is worth keeping of its training (steps, losses, seed), JSON-serialisable.

    Raises InputError for a table that does not hold what the head needs.
    """

    depends_on_image = True

    def __init__(
        self,
        network: HeadNetwork | PooledHead,
        table: VarianceTable,
        spec: HeadSpec,
        training: dict[str, Any] | None = None,
    ) -> None:
        self.network, self.spec, self.training = network, spec, training or {}
        self.prior = Prior(table, spec)
        self.target = self.prior.target
        self._tally = Tally(*(each.name for each in fields(Clamped)))

    @property
    def table(self) -> VarianceTable:
        """The variance table that ρ multiplies."""
        return self.prior.table

    @property
    def name(self) -> str:
        which = self.spec.bands or self.spec.structure
        return self.spec.target if which is None else f"{self.spec.target}-{which}"

    def save(self, path: str | Path) -> None:
        """Write the head to one safetensors file, atomically."""
        write_head_file(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Read a head; InputError for a missing, damaged or newer file."""
        return cls(*read_head_file(path))

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the head's file."""
        return head_digest(self)

    # ---- what a reverse covariance is asked -------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "head": weights_fingerprint(self.network),
            "table": self.table.digest,
            **{key: value for key, value in self.spec.plain().items() if key != "module"},
        }

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.with_features(self.spec.module)

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        mine = self.table.identity()
        if mismatch := mine.mismatch(denoiser.identity(beside=mine), "the head", "the denoiser"):
            raise InputError(f"this head was trained on another model ({mismatch}); train one on this model.")
        self.prior.refuse_guided(denoiser)
        for kernel in noisy(kernels):
            self.prior.mean_error(kernel)

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        if posterior is None or posterior.features is None:
            raise InputError(
                "a head needs the trunk's features, but this posterior has none; use denoiser.with_features(), as "
                "Sampler and bits_per_dim do (head.prepare(denoiser))."
            )
        n = self.table.schedule.index_of(kernel.level_t)
        ratio = self._tamed(self.ratio(posterior, kernel.level_t if n is None else n))
        published = self.spec.output == "papers"
        extra = self.prior.variance_error(kernel) if published else self.prior.mean_error(kernel)
        scale = torch.as_tensor(extra, dtype=ratio.dtype, device=ratio.device)
        return StructuredCovariance(self.prior.structure, kernel.lambda2 + ratio * scale)

    # ---- the factor -------------------------------------------------------------------------------------------

    def ratio(self, posterior: Posterior, n: int | torch.Tensor | NoiseLevel) -> torch.Tensor:
        """ρ(x_t), (B, C, *spatial), of pixels or of coefficients, as it is used but for its sign; n: one index, (B,) of
        them, or a level."""
        features, like = posterior.features, posterior.mean
        assert features is not None
        checks.refuse(
            tuple(features.shape[1:]) != self.network.features,
            f"the trunk's features have shape {tuple(features.shape[1:])}, but this head was trained on "
            f"{self.network.features}; it belongs to another network or image size.",
        )
        if next(self.network.parameters()).device != features.device:
            self.network.to(features.device)
        where = n if isinstance(n, NoiseLevel) else torch.as_tensor(n).expand(len(features))
        with without_autocast(features.device):
            raw = self.network(features.float(), self.time(where, len(features), features.device))
        found = self.cut(self.output(raw, posterior, where), where).to(like.dtype)
        return found if self.prior.bands is None else self.prior.bands.spread(found)

    def time(self, n: torch.Tensor | NoiseLevel, batch: int, device: torch.device) -> torch.Tensor:
        """n/N of indices (B,) or of a level, as the network is told it: (B,) float32."""
        schedule = self.table.schedule
        if isinstance(n, NoiseLevel):
            n = torch.full((batch,), schedule.position(n), dtype=torch.float64)
        return (n.double() / schedule.num_steps).to(device, torch.float32)

    def output(self, raw: torch.Tensor, posterior: Posterior, n: torch.Tensor | NoiseLevel) -> torch.Tensor:
        """ρ from the head's raw output, at indices (B,) or a level, as training sees it, never cut: (B, C, *spatial);
        of bands (B, L), whose raw output is averaged over the pixels if it has any."""
        if self.prior.bands is not None:
            raw = raw.flatten(2).mean(-1) if raw.ndim > 2 else raw
        if self.spec.output == "ratio":
            return positive_ratio(raw)
        return self.target.published(raw, posterior) / self.prior.at(n)[0].to(raw.device)

    def cut(self, ratio: torch.Tensor, n: torch.Tensor | NoiseLevel) -> torch.Tensor:
        """ρ at indices (B,) or a level as it is used: of the papers' heads ρ v_t is at most ((b − a)/2)² [E9]."""
        if self.spec.output == "ratio":
            return ratio
        g, v = (level.to(ratio.device) for level in self.prior.at(n))
        most = range_variance(self.table.data_range) / v
        # σ²/α² over v is 1/g: what heads of earlier files were trained with.
        return torch.minimum(ratio, torch.minimum(most, 1.0 / g) if self.spec.output == "bounded" else most)

    def _tamed(self, ratio: torch.Tensor) -> torch.Tensor:
        """ρ by the rule of the module docstring."""
        finite = torch.isfinite(ratio)
        self._tally.count(nonfinite=(~finite).sum(), negative=(ratio < 0).sum(), total=ratio.numel())
        return torch.where(finite, ratio, 1.0).clamp(min=0.0)

    @property
    def clamped(self) -> Clamped:
        """How often ρ had to be made safe, since the head was made or loaded."""
        return Clamped(*self._tally.total)

    def counts(self) -> list[int]:
        return self._tally.new

    def add_counts(self, counts: list[int]) -> None:
        self._tally.add(counts)

    def report(self) -> None:
        nonfinite, negative, total = self._tally.report()
        if nonfinite or negative:
            warn(
                f"of {total} variances of the head {self.name}, {nonfinite} were not finite (the table's value was "
                f"used) and {negative} negative (nothing was added to λ²)."
            )
