"""A measurement of images: y = A x_0 + n, n ~ N(0, R), with any linear A.

Elements of y that A never sees (a mask's) carry nothing: whatever stands there is left out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import checks
from ..covariance.reverse import StructuredCovariance
from ..measured import measured
from ..randomness import generator, normal
from .linear_map import LinearMap, Map, checked, with_adjoint
from .noise import MeasurementNoise

if TYPE_CHECKING:
    from ..process.structure import Shape


class Measurement:
    """Measurements of B images by one operator.

    Args:
        y: (B, *m), floats; for one image (1, *m).
        A: a linear map of batches, (B, C, *spatial) to (B, *m), with images in the model's data range; each image by
            itself.
        adjoint: Aᵀ, (B, *m) to (B, C, *spatial); None: found by differentiation.
        noise: of each element of y: the standard deviation σ_y, a number; or variances, a tensor that broadcasts to
            (*m); or a `StructuredCovariance` of (*m).
        through: what makes images of what the model denoises, differentiable, of batches: a latent model's
            `denoiser.codec` or another decoder. A is then of the images. Each product of a solve is a pass back through
            it and one forward with derivatives, some seven decodings, and a batch keeps its activations.

    Raises InputError for y that is no batch of finite floats, and for noise that is none. Whether A is linear, and the
    adjoint its own, is looked at where the model is known (`ConditionedDenoiser`).
    """

    def __init__(
        self,
        y: torch.Tensor,
        A: Map,
        adjoint: Map | None = None,
        noise: float | torch.Tensor | StructuredCovariance = 0.05,
        *,
        through: Any = None,
    ) -> None:
        self.y = _checked(y)
        for name, call in (("A", A), ("adjoint", adjoint)):
            absent = call is None and name == "adjoint"
            checks.refuse(
                not absent and not callable(call),
                f"{name}={checks.brief(call)} must be a function of a batch of images.",
            )
        self.A, self.given_adjoint = A, adjoint
        self.noise = MeasurementNoise(noise, self.shape, self.y)
        self.decoder: Map | None = None if through is None else _decoder(through)
        self._through = through
        #: Bases of y, as (W, Wᵀ), in which A Aᵀ may be diagonal; where one is, S is solved in closed form.
        self.bases: list[tuple[Map, Map]] = []
        #: (A, Aᵀ) of a float64 copy of what A is made of, where A holds numbers of its own.
        self.in_float64: tuple[Map, Map] | None = None

    @classmethod
    def from_deepinv(cls, physics: Any, y: torch.Tensor, noise: Any = None) -> Measurement:
        """A measurement by one of deepinv's linear physics.

        Args:
            physics: a `deepinv.physics.LinearPhysics`, of images in the model's data range.
            y: (B, *m).
            noise: as for `Measurement`; None: the σ of the physics' Gaussian noise model.

        Raises InputError for physics that are not linear, and noise models that are not Gaussian.
        """
        from .deepinv_physics import bases_of, check_physics, in_float64, noise_of

        check_physics(physics)
        made = cls(y, physics.A, physics.A_adjoint, (noise_of(physics) or 0.0) if noise is None else noise)
        made.bases, made.in_float64 = bases_of(physics), in_float64(physics)
        return made

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """B, how many images were measured."""
        return len(self.y)

    @property
    def shape(self) -> Shape:
        """(*m) of one measurement."""
        return tuple(self.y.shape[1:])

    def to(self, device: torch.device | str) -> Measurement:
        """The same, with y there."""
        made = Measurement.__new__(type(self))
        made.__dict__.update(self.__dict__, y=self.y.to(device), noise=self.noise.to(device))
        return made

    def map_of(self, image_shape: Shape) -> LinearMap:
        """A and its adjoint for images of this shape."""
        adjoint = with_adjoint(self.A, image_shape) if self.given_adjoint is None else self.given_adjoint
        return LinearMap(self.A, adjoint)

    def fine_map_of(self, image_shape: Shape) -> LinearMap | None:
        """A and its adjoint in float64, to solve with; None where they work in less alone."""
        found = self.map_of(image_shape) if self.in_float64 is None else LinearMap(*self.in_float64)
        x = normal(generator(0, "probe of a fine map"), 1, *image_shape).to(self.y.device)
        try:
            y, coarse = found.apply(x.double()), self.map_of(image_shape).apply(x)
            back = found.adjoint(y)
        except Exception:  # whatever it says of a type that it does not take
            return None
        same = y.dtype == back.dtype == torch.float64 and float((y - coarse).norm()) <= 1e-4 * float(y.norm())
        return found if same else None

    def seen(self, image_shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        """Which elements (*m) A sees; InputError for what is not linear on images of this shape (see `linear_map`)."""
        found = self.map_of(image_shape)
        like = torch.zeros((), dtype=dtype, device=self.y.device)
        return checked(found.apply, found.adjoint, image_shape, self.shape, like)

    def probe(self, image_shape: Shape) -> dict[str, Any]:
        """What A does, as `measured` numbers: of one image of noise, of this shape."""
        x = normal(generator(0, "probe of an operator"), 1, *image_shape).to(self.y)
        with torch.no_grad():
            found = self.A(x if self.decoder is None else self.decoder(x)).double().flatten()
        places = torch.linspace(0, len(found) - 1, _NUMBERS).round().long()
        return measured([*found[places.to(found.device)].tolist(), float(found.norm())], 1e-3, "A of noise")

    @property
    def _of_decoder(self) -> str:
        return str(getattr(self._through, "fingerprint", ""))

    @property
    def digest(self) -> str:
        """SHA-256 of y, its noise, and the weights of a codec that it goes through."""
        content = hashlib.sha256(f"{tuple(self.y.shape)}".encode())
        content.update(np.ascontiguousarray(self.y.double().cpu().numpy()).tobytes())
        content.update(self.noise.digest.encode())
        content.update(self._of_decoder.encode())
        return content.hexdigest()


_NUMBERS = 16  # that tell one operator from another


def _checked(y: Any) -> torch.Tensor:
    """y, if it is a batch of finite floats."""
    found: torch.Tensor = checks.instance("y", y, torch.Tensor, "a tensor (B, *m) of floats")
    checks.refuse(not found.is_floating_point(), f"y is {found.dtype}, but floats are expected; convert it.")
    checks.refuse(
        found.ndim < 2 or len(found) == 0,
        f"y has shape {tuple(found.shape)}, but (B, *m) is expected: one row an image, (1, *m) for a single one.",
    )
    bad = int((~torch.isfinite(found)).sum())
    checks.refuse(
        bad > 0,
        f"y holds NaN or infinite values in {bad} of {found.numel()} elements; elements that were not measured are "
        "left out by A, which gives 0 there (a mask): put 0 in y too.",
    )
    return found.detach()


def _decoder(through: Any) -> Map:
    """What decodes a batch: a codec's own, or a function."""
    found = getattr(through, "differentiable", through)
    whole = found is through and hasattr(through, "encode") and hasattr(through, "decode")
    told = type(through).__name__ if whole else checks.brief(through)
    checks.refuse(
        not callable(found) or whole,
        f"through={told} must be a model's codec (denoiser.codec), or a function that makes images "
        "of a batch of latents.",
    )
    decode: Map = found
    return decode
