"""A covariance that depends on the image: a small head on the frozen trunk's features, beside a variance table.

The head says by how much, ρ(x_t), the variance of x_0 given this x_t differs from the table's average v_t at index t:

    Σ = λ² I + ρ(x_t) ⊙ (γ² v_t)           one ρ per pixel (npr, sn, ocm); v_t is the isotropic variance
    Σ = Bᵀ (λ² I + ρ(x_t) ⊙ (γ² v_t)) B    one ρ per image and channel (factor); v_t is a pixel or dct structure's

At ρ = 1, where training starts, this is `Analytic`. Where x̂_0 is clipped and a step uses the network's own ε̂, γ² v_t
is the table's three-moment value (DESIGN §2.3). Σ is made safe by one rule: a ρ that is not finite counts as 1 (the
table's value), a negative one as 0 (no more than λ²); both are counted, and reported once a run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..errors import DiffusionVarWarning, InputError
from ..models.denoiser import Denoiser
from ..models.heads import HeadKind, HeadNetwork
from ..models.identity import weights_fingerprint
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..variance.table import VarianceTable
from .head_prior import Prior
from .head_targets import TARGET_NAMES, positive_ratio
from .reverse import ReverseCovariance, StructuredCovariance

#: How a head's output becomes ρ: a positive multiple of the table's value; or as the papers' heads, whose output is the
#: target itself, starts from random weights, and is clipped to the bounds of DESIGN §2.5.
Output = Literal["ratio", "papers"]


@dataclass(frozen=True)
class HeadSpec:
    """What kind of head it is; all of it is in its file.

    Attributes:
        target: "npr", "sn", "ocm" (per pixel) or "factor" (per image and channel, times a structure's variances).
        kind: "simple" or "residual".
        structure: of target "factor": "dct" or "pixel"; None for the others.
        output: "ratio" or "papers".
        module: whose input the features are; None: found for diffusers UNets and DiT.

    Raises InputError for unknown values, and for those that do not go together.
    """

    target: str = "npr"
    kind: HeadKind = "simple"
    structure: str | None = None
    output: Output = "ratio"
    module: str | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGET_NAMES:
            raise InputError(f"target {self.target!r} is not known; choose one of {', '.join(TARGET_NAMES)}.")
        if self.output not in get_args(Output):
            raise InputError(f"output {self.output!r} is not known; choose one of {', '.join(get_args(Output))}.")
        if (self.target == "factor") != (self.structure is not None):
            raise InputError(
                f"structure={self.structure!r} does not go with the target {self.target!r}: 'factor' needs the "
                "structure whose variances it multiplies ('dct' or 'pixel'), and the others take none."
            )
        if self.structure not in (None, "dct", "pixel"):
            raise InputError(f"structure={self.structure!r} has no variances to multiply; use 'dct' or 'pixel'.")
        if self.target == "factor" and self.output == "papers":
            raise InputError("output='papers' is for the papers' targets npr, sn and ocm; use 'ratio' with 'factor'.")


@dataclass
class Clamped:
    """How many of the factors ρ so far were not finite, and how many negative, of how many."""

    nonfinite: int = 0
    negative: int = 0
    total: int = 0


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
        self, network: HeadNetwork, table: VarianceTable, spec: HeadSpec, training: dict[str, Any] | None = None
    ) -> None:
        self.network, self.spec, self.training = network, spec, training or {}
        self.prior = Prior(table, spec.target, spec.structure)
        self.target = self.prior.target
        self._counts: torch.Tensor | None = None
        self._reported = Clamped()
        self._total = 0

    @property
    def table(self) -> VarianceTable:
        """The variance table that ρ multiplies."""
        return self.prior.table

    @property
    def name(self) -> str:
        return self.spec.target if self.spec.structure is None else f"factor-{self.spec.structure}"

    def save(self, path: str | Path) -> None:
        """Write the head to one safetensors file, atomically."""
        from .head_file import write_head

        write_head(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Read a head; InputError for a missing, damaged or newer file."""
        from .head_file import read_head

        return read_head(path)

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the head's file."""
        from .head_file import head_digest

        return head_digest(self)

    # ---- what a reverse covariance is asked -------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "head": weights_fingerprint(self.network),
            "table": self.table.digest,
            **{key: value for key, value in vars(self.spec).items() if key != "module"},
        }

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        return denoiser.with_features(self.spec.module)

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:
        if mismatch := self.table.mismatch(denoiser, "the head"):
            raise InputError(f"this head was trained on another model ({mismatch}); train one on this model.")
        self.prior.refuse_guided(denoiser)
        for kernel in kernels:
            if kernel.s > 0:
                self.prior.mean_error(kernel)

    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance:
        if posterior is None or posterior.features is None:
            raise InputError(
                "a head needs the trunk's features, but this posterior has none; use denoiser.with_features(), as "
                "Sampler and bits_per_dim do (head.prepare(denoiser))."
            )
        ratio = self._tamed(self.ratio(posterior, kernel.t))
        extra = self.prior.mean_error(kernel)
        scale = torch.as_tensor(extra, dtype=ratio.dtype, device=ratio.device)
        return StructuredCovariance(self.prior.structure, kernel.lambda2 + ratio * scale)

    # ---- the factor -------------------------------------------------------------------------------------------

    def ratio(self, posterior: Posterior, n: int | torch.Tensor) -> torch.Tensor:
        """ρ(x_t), (B, C, H, W) or for "factor" (B, C, 1, 1), as the head says it; n: one index, or (B,) of them."""
        features, like = posterior.features, posterior.mean
        assert features is not None
        if tuple(features.shape[1:]) != self.network.features:
            raise InputError(
                f"the trunk's features have shape {tuple(features.shape[1:])}, but this head was trained on "
                f"{self.network.features}; it belongs to another network or image size."
            )
        if next(self.network.parameters()).device != features.device:
            self.network.to(features.device)
        indices = torch.as_tensor(n).expand(len(features))
        raw = self.network(features.float(), self.time(indices, features.device))
        return self.output(raw, posterior, indices).to(like.dtype)

    def time(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """n/N of indices (B,), as the network is told it."""
        return (indices.double() / self.table.schedule.num_steps).to(device, torch.float32)

    def output(self, raw: torch.Tensor, posterior: Posterior, indices: torch.Tensor) -> torch.Tensor:
        """ρ from the head's raw output (B, C, H, W)."""
        if self.spec.target == "factor":
            raw = raw.mean(dim=(-2, -1), keepdim=True)
        if self.spec.output == "ratio":
            return positive_ratio(raw)
        g, most = (level.to(raw.device) for level in (self.prior.at(indices)[0], self.prior.largest_ratio(indices)))
        return torch.minimum(self.target.published(raw, posterior) / g, most)

    def _tamed(self, ratio: torch.Tensor) -> torch.Tensor:
        """ρ by the rule of the module docstring; the counts stay on the device, so that no step waits for it."""
        finite, negative = torch.isfinite(ratio), ratio < 0
        counts = torch.stack([(~finite).sum(), negative.sum()])
        self._counts = counts if self._counts is None else self._counts.to(counts.device) + counts
        self._total += ratio.numel()
        return torch.where(finite, ratio, 1.0).clamp(min=0.0)

    @property
    def clamped(self) -> Clamped:
        """How often ρ had to be made safe, since the head was made or loaded."""
        if self._counts is None:
            return Clamped()
        nonfinite, negative = (int(count) for count in self._counts)
        return Clamped(nonfinite, negative, self._total)

    def report(self) -> None:
        now, before = self.clamped, self._reported
        nonfinite, negative, total = (getattr(now, key) - getattr(before, key) for key in vars(now))
        self._reported = now
        if nonfinite or negative:
            warnings.warn(
                f"of {total} variances of the head {self.name}, {nonfinite} were not finite (the table's value was "
                f"used) and {negative} negative (nothing was added to λ²).",
                DiffusionVarWarning,
                stacklevel=3,
            )
