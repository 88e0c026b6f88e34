"""Structures of a covariance: which matrix a handful of variances stands for.

Every structure is Σ = Bᵀ diag(v) B with an orthonormal basis B and variances v that broadcast over the (C, H, W)
elements in that basis:

    isotropic  B = I,    v of shape ()          one number
    channel    B = I,    v of shape (C, 1, 1)
    pixel      B = I,    v of shape (C, H, W)
    dct        B = DCT,  v of shape (C, H, W)   one per coefficient

The DCT basis is the orthonormal 2-D DCT-II in space times an orthonormal rotation of the channels. For one and three
channels the rotation is the DCT-II too (for RGB: about the opponent colours), so that the whole is
`scipy.fft.dctn(x, axes=(C, H, W), norm="ortho")`; for others it is given, e.g. the eigenvectors of the data's channel
covariance. Sampler and likelihood never ask which structure it is. They need √Σ times noise (the symmetric root, so
that equal variances give the isotropic noise itself), the log-determinant, the trace of the inverse, and the quadratic
form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .schedule import Float64Array, is_whole

Shape = tuple[int, int, int]
STRUCTURE_NAMES = ("isotropic", "channel", "pixel", "dct")


def dct_matrix(size: int) -> Float64Array:
    """The orthonormal DCT-II matrix D (size × size): D x = scipy.fft.dct(x, norm="ortho")."""
    k, i = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix: Float64Array = math.sqrt(2.0 / size) * np.cos(np.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2.0)
    return matrix


class Structure(ABC):
    """A family of covariance matrices for images of one shape (C, H, W), indexed by an array of variances."""

    name: str

    def __init__(self, shape: Sequence[int]) -> None:
        if len(shape) != 3 or any(not is_whole(n) or n < 1 for n in shape):
            raise InputError(f"an image shape is (C, H, W) with positive integers, but got {tuple(shape)}.")
        self.shape: Shape = (int(shape[0]), int(shape[1]), int(shape[2]))

    @property
    def d(self) -> int:
        """Number of dimensions of one image, C·H·W."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def variance_shape(self) -> tuple[int, ...]:
        """Shape of the variances: (), (C, 1, 1) or (C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B x: images (…, C, H, W) to coefficients of the same shape."""
        return x

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Bᵀ times coefficients (…, C, H, W)."""
        return coefficients

    def pool(self, elementwise: Any) -> Any:
        """Mean of an array (…, C, H, W) of per-element values over the elements that share a variance."""
        return elementwise

    # ---- what is asked of it -------------------------------------------------------------------------------------

    def colour(self, variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Σ^{1/2} noise, with noise (…, C, H, W) and variance broadcastable to it."""
        return self.inverse(variance.sqrt() * self.forward(noise))

    def log_det(self, variance: torch.Tensor) -> torch.Tensor:
        """log det Σ, in nats; float64; one per leading batch element of `variance`."""
        return variance.double().expand(*variance.shape[:-3], *self.shape).log().sum(dim=(-3, -2, -1))

    def inverse_trace(self, variance: torch.Tensor) -> torch.Tensor:
        """tr Σ⁻¹; float64; one per leading batch element of `variance`."""
        return variance.double().reciprocal().expand(*variance.shape[:-3], *self.shape).sum(dim=(-3, -2, -1))

    def quadratic(self, variance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image: (…, C, H, W) to (…), float64."""
        return (self.forward(x).double().square() / variance.double()).sum(dim=(-3, -2, -1))


class Isotropic(Structure):
    """One variance for everything."""

    name = "isotropic"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return ()

    def pool(self, elementwise: Any) -> Any:
        return elementwise.mean((-3, -2, -1))


class Channel(Structure):
    """One variance per channel."""

    name = "channel"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return (self.shape[0], 1, 1)

    def pool(self, elementwise: Any) -> Any:
        return elementwise.mean((-2, -1))[..., None, None]


class Pixel(Structure):
    """One variance per pixel and channel."""

    name = "pixel"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return self.shape


class Dct(Structure):
    """One variance per DCT coefficient (and rotated channel).

    Args:
        rotation: orthonormal (C, C), rows are the new channels; None: the DCT-II, for one and three channels only.
    """

    name = "dct"

    def __init__(self, shape: Sequence[int], rotation: npt.ArrayLike | None = None) -> None:
        super().__init__(shape)
        channels = self.shape[0]
        if rotation is None:
            if channels not in (1, 3):
                raise InputError(
                    f"the dct structure needs a channel rotation for {channels} channels (only 1 and 3 have a default)."
                )
            rotation = dct_matrix(channels)
        self.rotation = np.array(rotation, dtype=np.float64)
        if self.rotation.shape != (channels, channels) or not np.allclose(
            self.rotation @ self.rotation.T, np.eye(channels), atol=1e-8
        ):
            raise InputError(f"the channel rotation must be an orthonormal matrix of shape ({channels}, {channels}).")
        self._matrices: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return self.shape

    def _bases(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (x.device, x.dtype)
        if key not in self._matrices:
            # Made outside inference mode, so that whoever comes next may differentiate through them.
            with torch.inference_mode(False):
                arrays = (self.rotation, dct_matrix(self.shape[1]), dct_matrix(self.shape[2]))
                self._matrices[key] = tuple(torch.from_numpy(a).to(x.device, x.dtype) for a in arrays)
        return self._matrices[key]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rotation, rows, columns = self._bases(x)
        return _rotate(rotation, rows @ x @ columns.T)

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        rotation, rows, columns = self._bases(coefficients)
        return _rotate(rotation.T, rows.T @ coefficients @ columns)


def _rotate(rotation: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if rotation.shape[0] == 1:
        return rotation[0, 0] * x
    return (rotation @ x.flatten(-2)).reshape(x.shape)


def make_structure(name: str, shape: Sequence[int], rotation: npt.ArrayLike | None = None) -> Structure:
    """The structure called `name` for images of this shape; `rotation` is used by dct alone."""
    if name == "dct":
        return Dct(shape, rotation)
    plain: dict[str, type[Structure]] = {kind.name: kind for kind in (Isotropic, Channel, Pixel)}
    if name not in plain:
        raise InputError(f"structure {name!r} is not known; choose one of {', '.join(STRUCTURE_NAMES)}.")
    return plain[name](shape)


def channel_rotation(channel_covariance: npt.ArrayLike) -> Float64Array:
    """The rotation of DESIGN §2.4: the DCT-II for 1 and 3 channels, else the eigenvectors of the data's channel
    covariance (C, C), largest first, each with its largest entry positive (so that it is unique)."""
    covariance = np.asarray(channel_covariance, dtype=np.float64)
    if len(covariance) in (1, 3):
        return dct_matrix(len(covariance))
    vectors = np.linalg.eigh(covariance)[1].T[::-1]
    largest = np.abs(vectors).argmax(axis=1)
    return np.ascontiguousarray(vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None])
