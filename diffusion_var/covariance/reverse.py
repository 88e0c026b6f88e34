"""Reverse covariances: which Gaussian a reverse step draws from, given the posterior and the kernel.

    fixed          λ² I or β I                                       DDPM's choices; DDIM
    analytic       λ² I + γ² Cov[x_0|x_t] from a variance table      (Extended-)Analytic-DPM, any structure
    exact          the same of a mixture of Gaussians, closed form  per image or averaged, the full matrix too
    lists          the same from lists of numbers                    what fits into a scheduler's config
    learned_range  per pixel, as a 2C-channel network says           Improved DDPM
    learned        per pixel, its logarithm as a 2C-channel network  Improved DDPM's LEARNED
    head           times what a trained head says of the image       Extended-Analytic-DPM, OCM
    eps_square     per pixel, from ε̂ alone, untrained (and poor)     Extended-Analytic-DPM's fallback
    jacobian       by bands of the dct, J's times the table's      each image's own, untrained, one product a step
    lanczos        λ² I + γ² S, S the derivative of the mean        whole, of each image, untrained, by products
    averaged       another one's mean over an image or a batch       Extended-Analytic-DPM's avg_cov
    scaled         another one times a number                        to see what misjudging it costs
    pigdm          λ² I + γ² l σ²/(α² l + σ²) I, no table             ΠGDM's constant

A choice of one's own is one class: a `ReverseCovariance` that maps (posterior, kernel) to a `StructuredCovariance`.
`diffusion_var.testing` has the tests that it should pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .. import checks, parallel
from ..models.denoiser import Denoiser
from ..models.posterior import Posterior
from ..process.kernel import ReverseKernel
from ..process.level import NoiseLevel
from ..process.schedule import NoiseSchedule
from ..process.structure import Shape, Structure
from ..variance.table import VarianceTable

_KEPT_BYTES = 256 * 1024**2


class NoiseSource(Protocol):
    """Standard normal numbers for a run's images, image by image (`sampling.noise.ImageNoise`)."""

    def next(self) -> torch.Tensor:
        """(B, C, *spatial), others each time."""
        ...

    def beside(self, shape: Shape) -> torch.Tensor:
        """(B, *shape), others each time."""
        ...


@dataclass(frozen=True)
class StructuredCovariance:
    """Σ = Bᵀ diag(variance) B: a structure and its variances, of the structure's `variance_shape` or with a batch in
    front, one for each image."""

    structure: Structure
    variance: torch.Tensor
    #: Whether that is all of Σ: of one that is known by products (`Lanczos`) it is a scale, and Σ is in the methods.
    diagonal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # An axis short, (C,) would be taken for the last axis of an image, which may be as long.
        checks.refuse(
            self.variance.ndim < len(self.structure.variance_shape),
            f"variances have shape {tuple(self.variance.shape)}, but structure {self.structure.name!r} of images "
            f"{self.structure.shape} has them of {self.structure.variance_shape}, with or without a batch in front.",
        )

    def colour(self, noise: torch.Tensor) -> torch.Tensor:
        """Σ^{1/2} noise, (B, C, *spatial)."""
        return self.structure.colour(self.variance, noise)

    def matvec(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x, (B, C, *spatial)."""
        return self.structure.matvec(self.variance, x)

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """Σ⁻¹ x, (B, C, *spatial)."""
        return self.structure.solve(self.variance, x)

    def log_det(self) -> torch.Tensor:
        """log det Σ in nats."""
        return self.structure.log_det(self.variance)

    def inverse_trace(self) -> torch.Tensor:
        """tr Σ⁻¹."""
        return self.structure.inverse_trace(self.variance)

    def quadratic(self, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image."""
        return self.structure.quadratic(self.variance, x)

    def draw(self, noise: NoiseSource) -> torch.Tensor:
        """A draw of N(0, Σ) for a sampler's step, (B, C, *spatial)."""
        return self.colour(noise.next())

    def capped(self, limit: float) -> StructuredCovariance:
        """No variance above `limit`: then no pixel's is, since the basis is orthonormal."""
        return StructuredCovariance(self.structure, self.variance.clamp(max=limit))


class ReverseCovariance(ABC):
    """A choice of reverse covariance; maps (posterior, kernel) to a `StructuredCovariance`."""

    #: Whether the covariance depends on x_t through the posterior; if not, a sampler computes it once per step.
    depends_on_image = False
    #: Whether it says what Cov[x_0|x_t] is; β̃ and β are about the noise of a step alone.
    knows_x_0 = True
    #: Whether its covariances are `diagonal` in their structure's basis.
    diagonal = True
    #: How many Jacobian-vector products of the network it takes for each step, beside the evaluation of the mean.
    products = 0
    #: How many of these come with the mean, in the pass that evaluates it (`models.product_cost` has what they cost).
    products_with_mean = 0

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables and plots."""

    def identity(self) -> dict[str, Any]:
        """What tells it from others, JSON-serialisable: kept beside what was computed with it."""
        return {"name": self.name}

    def check(self, denoiser: Denoiser, kernels: list[ReverseKernel]) -> None:  # noqa: B027 (nothing to check is fine)
        """Refuse, with InputError, a denoiser or steps that this covariance does not fit."""

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with whatever its posteriors must hold for this covariance, such as the trunk's features."""
        return denoiser

    def report(self) -> None:  # noqa: B027 (nothing to report is fine)
        """Warn of what had to be mended since the last report; called at the end of a run."""

    def counts(self) -> list[int]:
        """What `report` tells of, as numbers that can be added: of what processes did that share a run."""
        return []

    def add_counts(self, counts: list[int]) -> None:  # noqa: B027 (nothing to add is fine)
        """Take what another process has counted, its `counts`, for this one's own."""

    @abstractmethod
    def __call__(self, posterior: Posterior | None, kernel: ReverseKernel) -> StructuredCovariance | None:
        """The covariance of x_s given x_t, or None where it is exactly zero. Float32 on the posterior's device, or the
        CPU without one (allowed where `depends_on_image` is false; then only `colour` is sure to know the shape)."""

    def posterior_covariance(
        self, posterior: Posterior, level: NoiseLevel, schedule: NoiseSchedule | None = None
    ) -> StructuredCovariance:
        """Cov[x_0|x_t] at a noise level, as this choice has it: its covariance of the step to clean data, where λ = 0
        and γ = 1 [E2].

        Args:
            posterior: of images at the level.
            schedule: the model's; asked for by choices that are about steps between its indices (`LearnedRange`).

        Raises InputError where the choice says nothing of x_0 (β̃, β), or needs the schedule.
        """
        check_knows_x_0(self)
        found = self(posterior, ReverseKernel.between(level, None))
        return checks.given(found, f"{self.name} {_SAYS_NOTHING}")


class StepCovariances:
    """The covariances of a run's steps: computed once where they depend on the step alone, and capped at the last ones.

    Args:
        covariance: the choice of covariance.
        cap_variance: no variance of a step to one of `capped` is above it; None: no cap.
        capped: the least noisy levels of the run, which the last noises are added at.
    """

    def __init__(
        self, covariance: ReverseCovariance, cap_variance: float | None = None, capped: Sequence[NoiseLevel] = ()
    ) -> None:
        self.covariance, self._cap, self._capped = covariance, cap_variance, frozenset(capped)
        self._kept: dict[Any, StructuredCovariance | None] = {}
        self._bytes = 0

    def at(self, posterior: Posterior, kernel: ReverseKernel) -> StructuredCovariance | None:
        """The covariance of x_s given x_t, or None where it is exactly zero."""
        if self.covariance.depends_on_image:
            return self._computed(posterior, kernel)
        key = kernel, posterior.mean.shape[1:], posterior.mean.dtype, posterior.mean.device
        if key in self._kept:
            return self._kept[key]
        covariance = self._computed(posterior, kernel)
        size = 0 if covariance is None else covariance.variance.nbytes
        if self._bytes + size <= _KEPT_BYTES:
            self._kept[key] = covariance
            self._bytes += size
        return covariance

    def _computed(self, posterior: Posterior, kernel: ReverseKernel) -> StructuredCovariance | None:
        covariance = self.covariance(posterior, kernel)
        return None if covariance is None else self.capped(covariance, kernel)

    def capped(self, covariance: StructuredCovariance, kernel: ReverseKernel) -> StructuredCovariance:
        """A covariance of a step, under the cap where the step has one."""
        if self._cap is None or kernel.level_s not in self._capped:
            return covariance
        return covariance.capped(self._cap)


# ---- the cap of the last noise --------------------------------------------------------------------------------------


def noise_cap_variance(cap: float, data_range: tuple[float, float]) -> float:
    """The largest variance with E|noise| ≤ cap/255 of the data range: E|N(0, σ²)| = σ √(2/π) [E8]."""
    return math.pi / 2 * (cap / 255.0 * (data_range[1] - data_range[0])) ** 2


def cap_variance(cap: float | None, data_range: tuple[float, float] | None) -> float | None:
    """The largest variance of the last noise for a `final_noise_cap`, or None for no cap; InputError for others."""
    if cap is None:
        return None
    cap = checks.positive("final_noise_cap", cap, "a positive number of 255ths of the data range, or None")
    unbounded = (
        "final_noise_cap needs a data range, which is None (unbounded data, such as latents); leave the cap out."
    )
    return noise_cap_variance(cap, checks.given(data_range, unbounded))


def check_capped_steps(capped_steps: Any, cap: float | None, steps: int) -> int:
    """How many of the last noises are capped, of a run of so many steps; InputError for more than there are."""
    count = checks.whole("capped_steps", capped_steps, least=1)
    checks.refuse(
        cap is None and count > 1,
        f"capped_steps={count} has no meaning without a cap; give one as final_noise_cap, or leave it out.",
    )
    checks.refuse(
        count > max(steps - 1, 1),
        f"capped_steps={count} asks for caps of more steps than there are: of {steps} steps {steps - 1} add noise (the "
        "last goes to clean data); cap at most those.",
    )
    return count


# ---- for those who write a covariance -------------------------------------------------------------------------------


def image_shape(posterior: Posterior | None) -> Shape:
    """(C, *spatial); without a posterior (1, 1, 1), which is enough to colour noise of images but not for log_det."""
    return (1, 1, 1) if posterior is None else tuple(posterior.mean.shape[1:])


def variance_tensor(variance: npt.ArrayLike, posterior: Posterior | None) -> torch.Tensor:
    """Float64 variances as a tensor like the posterior's, cast once, at the sampler's edge."""
    array = np.array(variance, dtype=np.float64, order="C")  # a copy: a table's own array may be read-only
    like = None if posterior is None else posterior.mean
    dtype = torch.float32 if like is None else like.dtype
    return torch.from_numpy(array).to(device=None if like is None else like.device, dtype=dtype)


class Reporting(Protocol):
    """What counts what it had to mend: a covariance, a denoiser."""

    def counts(self) -> list[int]: ...
    def add_counts(self, counts: list[int]) -> None: ...
    def report(self) -> None: ...


def report_of_all(*parts: Reporting) -> None:
    """The reports of a run that has ended, on what all processes did that shared it; all of them come here."""
    team = parallel.team()
    told = team.gather({}, [part.counts() for part in parts])
    for counts in [counts for r, (_, counts) in enumerate(told) if r != team.rank]:
        for part, own in zip(parts, counts, strict=True):
            part.add_counts(own)
    for part in parts:
        part.report()


def check_covariance(covariance: Any) -> ReverseCovariance:
    """Refuse what is no reverse covariance, and a class in place of one."""
    table = isinstance(covariance, VarianceTable)
    checks.refuse(table, "covariance is a variance table; say what is taken from it: dv.Analytic(table, …).")
    found: ReverseCovariance = checks.instance(
        "covariance",
        covariance,
        ReverseCovariance,
        "a reverse covariance, such as dv.Analytic(table) or dv.FixedLarge()",
    )
    return found


def check_knows_x_0(covariance: ReverseCovariance) -> None:
    """Refuse a choice that says nothing of Cov[x_0|x_t]."""
    checks.refuse(not covariance.knows_x_0, f"{covariance.name} {_SAYS_NOTHING}")


_SAYS_NOTHING = (
    "says how much noise a step adds, and nothing of Cov[x_0|x_t]; take a covariance that does, such as "
    "dv.Analytic(table) or dv.PiGDM()."
)


def noisy(kernels: Sequence[ReverseKernel]) -> list[ReverseKernel]:
    """The steps that add noise: all but those to clean data."""
    return [kernel for kernel in kernels if not kernel.last]
