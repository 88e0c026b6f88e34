"""Structures of a covariance: which matrix a handful of variances stands for [E4].

An image is (C, *spatial) with up to three spatial axes: vectors (C,), signals (C, L), images (C, H, W), videos
(C, F, H, W). Every structure is Σ = Bᵀ diag(v) B with an orthonormal basis B and variances v that broadcast over the
elements in that basis:

    isotropic  B = I,    v of shape ()             one number
    channel    B = I,    v of shape (C, 1, …)
    pixel      B = I,    v of shape (C, *spatial)
    dct        B = DCT,  v of shape (C, *spatial)  one per coefficient
    full       B any,    v of shape (C, *spatial)  one per eigenvector; of exact denoisers, no table has it

The DCT basis is the orthonormal DCT-II along every spatial axis times an orthonormal rotation of the channels. For one
and three channels the rotation is the DCT-II too (for RGB: about the opponent colours), so that the whole is
`scipy.fft.dctn(x, axes=(C, H, W), norm="ortho")`; for others it is given, e.g. the eigenvectors of the data's channel
covariance. Vectors have no axis to transform along: for them it is a rotation to the data's principal axes.

Sampler and likelihood never ask which structure it is. They need √Σ times noise (the symmetric root, so that equal
variances give the isotropic noise itself), Σ and Σ⁻¹ times images, the log-determinant, the trace of the inverse, and
the quadratic form. A structure of one's own is a subclass that says what its variances' shape is and, where it has a
basis, `forward` and `inverse`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import checks
from ..errors import InputError
from .schedule import Float64Array

Shape = tuple[int, ...]
STRUCTURE_NAMES = ("isotropic", "channel", "pixel", "dct")


def dct_matrix(size: int) -> Float64Array:
    """The orthonormal DCT-II matrix D (size × size): D x = scipy.fft.dct(x, norm="ortho")."""
    k, i = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix: Float64Array = math.sqrt(2.0 / size) * np.cos(np.pi * (2 * i + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2.0)
    return matrix


class Structure(ABC):
    """A family of covariance matrices for images of one shape (C, *spatial), indexed by an array of variances.

    Attributes: `name`; `shape`; `axes`, the negative axes of one image in a batch.
    Raises InputError for a shape that is none, or has more than three spatial axes.
    """

    name: str

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape: Shape = checks.shape("an image shape", shape)
        self.axes = tuple(range(-len(self.shape), 0))

    @property
    def d(self) -> int:
        """Number of dimensions of one image."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def variance_shape(self) -> tuple[int, ...]:
        """Shape of the variances, which broadcasts to that of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B x: images (…, C, *spatial) to coefficients of the same shape."""
        return x

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Bᵀ times coefficients (…, C, *spatial)."""
        return coefficients

    def pool(self, elementwise: Any) -> Any:
        """Mean of an array (…, C, *spatial) of per-element values over the elements that share a variance."""
        mine = (*(1,) * (len(self.shape) - len(self.variance_shape)), *self.variance_shape)
        shared = tuple(axis for axis in self.axes if mine[axis] == 1 and self.shape[axis] > 1)
        return elementwise.mean(shared, keepdims=True) if shared else elementwise

    # ---- what is asked of it -------------------------------------------------------------------------------------

    def colour(self, variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Σ^{1/2} noise, with noise (…, C, *spatial) and variance broadcastable to it."""
        return self.inverse(variance.sqrt() * self.forward(noise))

    def matvec(self, variance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Σ x of images (…, C, *spatial)."""
        return self.inverse(variance * self.forward(x))

    def solve(self, variance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Σ⁻¹ x of images (…, C, *spatial)."""
        return self.inverse(self.forward(x) / variance)

    def log_det(self, variance: torch.Tensor) -> torch.Tensor:
        """log det Σ, in nats; float64; one per leading batch element of `variance`."""
        return self._spread(variance.double()).log().sum(dim=self.axes)

    def inverse_trace(self, variance: torch.Tensor) -> torch.Tensor:
        """tr Σ⁻¹; float64; one per leading batch element of `variance`."""
        return self._spread(variance.double().reciprocal()).sum(dim=self.axes)

    def quadratic(self, variance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """xᵀ Σ⁻¹ x of each image: (…, C, *spatial) to (…), float64."""
        return (_squares(self.forward(x)) / variance.double()).sum(dim=self.axes)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """One of each variance's values for every element, (…, C, *spatial)."""
        batch = values.shape[: max(values.ndim - len(self.shape), 0)]
        return values.expand(*batch, *self.shape)


class Isotropic(Structure):
    """One variance for everything."""

    name = "isotropic"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return ()

    def pool(self, elementwise: Any) -> Any:
        return elementwise.mean(self.axes)

    def quadratic(self, variance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if variance.ndim > 0:
            return super().quadratic(variance, x)
        return _squares(x).sum(dim=self.axes) / variance.double()  # one division an image, not one an element


class Channel(Structure):
    """One variance per channel."""

    name = "channel"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return (self.shape[0], *(1,) * (len(self.shape) - 1))


class Pixel(Structure):
    """One variance per element: pixel and channel of images."""

    name = "pixel"

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return self.shape


class Dct(Structure):
    """One variance per DCT coefficient (and rotated channel); of vectors, per principal axis.

    Args:
        rotation: orthonormal (C, C), rows are the new channels; None: the DCT-II, for images (not vectors) of one and
            three channels only.
    """

    name = "dct"

    def __init__(self, shape: Sequence[int], rotation: npt.ArrayLike | None = None) -> None:
        super().__init__(shape)
        channels = self.shape[0]
        self.rotation = np.array(_default_rotation(self.shape) if rotation is None else rotation, dtype=np.float64)
        square = self.rotation.shape == (channels, channels)
        if not square or not np.allclose(self.rotation @ self.rotation.T, np.eye(channels), atol=1e-8):
            raise InputError(f"the channel rotation must be an orthonormal matrix of shape ({channels}, {channels}).")
        self._matrices: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return self.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rotation, *matrices = self._bases(x)
        for axis, matrix in zip(self.axes[1:], matrices, strict=True):
            x = _transform(matrix, x, axis)
        return _transform(rotation, x, self.axes[0])

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        rotation, *matrices = self._bases(coefficients)
        for axis, matrix in zip(self.axes[1:], matrices, strict=True):
            coefficients = _transform(matrix.T, coefficients, axis)
        return _transform(rotation.T, coefficients, self.axes[0])

    def _bases(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (x.device, x.dtype)
        if key not in self._matrices:
            # Made outside inference mode, so that whoever comes next may differentiate through them.
            with torch.inference_mode(False):
                arrays = (self.rotation, *(dct_matrix(size) for size in self.shape[1:]))
                self._matrices[key] = tuple(torch.from_numpy(a).to(x.device, x.dtype) for a in arrays)
        return self._matrices[key]


class Full(Structure):
    """Any covariance matrix, by its eigenvectors: one variance for each.

    Args:
        basis: orthonormal, rows are the basis's elements: (d, d) for all images, or (B, d, d), one for each of a batch
            of B images.
    """

    name = "full"

    def __init__(self, shape: Sequence[int], basis: torch.Tensor) -> None:
        super().__init__(shape)
        fits = basis.ndim in (2, 3) and tuple(basis.shape[-2:]) == (self.d, self.d)
        checks.refuse(
            not fits,
            f"the basis has shape {tuple(basis.shape)}, but ({self.d}, {self.d}) is needed, with or without B.",
        )
        self.basis = basis

    @property
    def variance_shape(self) -> tuple[int, ...]:
        return self.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._times(self.basis.mT, x)

    def inverse(self, coefficients: torch.Tensor) -> torch.Tensor:
        return self._times(self.basis, coefficients)

    def _times(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows, matrix = x.flatten(-len(self.shape)), matrix.to(x.device, x.dtype)
        with without_autocast(x.device):
            turned = rows @ matrix if matrix.ndim == 2 else (rows[:, None] @ matrix)[:, 0]
        return turned.view(x.shape)


def _squares(x: torch.Tensor) -> torch.Tensor:
    """x² in float64; without a graph in one piece of memory, since getting another takes longer than the squares."""
    return x.double().square() if x.requires_grad else x.to(torch.float64, copy=True).square_()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where products have their factors' precision: a caller's autocast is meant for networks, not for covariances."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def _transform(matrix: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix times x along one (negative) axis."""
    if len(matrix) == 1:
        return matrix[0, 0] * x
    with without_autocast(x.device):
        return x @ matrix.T if axis == -1 else (matrix @ x.flatten(axis + 1)).reshape(x.shape)


def make_structure(name: str, shape: Sequence[int], rotation: npt.ArrayLike | None = None) -> Structure:
    """The structure called `name` for images of this shape; `rotation` is used by dct alone."""
    if name == "dct":
        return Dct(shape, rotation)
    plain: dict[str, type[Structure]] = {kind.name: kind for kind in (Isotropic, Channel, Pixel)}
    wrong = name not in plain
    checks.refuse(wrong, f"structure {name!r} is not known; choose one of {', '.join(STRUCTURE_NAMES)}.")
    return plain[name](shape)


def channel_rotation(channel_covariance: npt.ArrayLike, spatial_axes: int = 2) -> Float64Array:
    """The rotation of the dct basis [E4]: the DCT-II for images of 1 and 3 channels, else (and for vectors) the
    eigenvectors of the data's channel covariance (C, C), largest first, each with its largest entry positive (so that
    it is unique)."""
    covariance = np.asarray(channel_covariance, dtype=np.float64)
    if spatial_axes > 0 and len(covariance) in (1, 3):
        return dct_matrix(len(covariance))
    vectors = np.linalg.eigh(covariance)[1].T[::-1]
    largest = np.abs(vectors).argmax(axis=1)
    return np.ascontiguousarray(vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None])


def _default_rotation(shape: Shape) -> Float64Array:
    channels, vector = shape[0], len(shape) == 1
    wrong = channels not in (1, 3) or (vector and channels > 1)
    kind = "vectors: their principal axes" if vector else f"{channels} channels (only 1 and 3 have a default)"
    checks.refuse(wrong, f"the dct structure needs a channel rotation for {kind}.")
    return dct_matrix(channels)
