"""Bands of equal spatial frequency: which coefficients of a basis of frequencies are pooled [E16].

Coefficient k of the DCT along axes of lengths L has the frequency √Σ_a (k_a/L_a)², in half cycles a pixel; a band is
the coefficients of one rotated channel between two frequencies. What is left unknown of natural images depends on the
direction of a frequency little: their spectra are nearly isotropic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .. import checks


def frequencies(spatial: Sequence[int]) -> npt.NDArray[np.float64]:
    """√Σ_a (k_a/L_a)² of every coefficient, (*spatial); 0 without axes."""
    squares = np.zeros(tuple(spatial))
    for axis, length in enumerate(spatial):
        k = np.arange(length) / length
        squares = squares + (k**2).reshape(-1, *(1,) * (len(spatial) - 1 - axis))
    return np.asarray(np.sqrt(squares))


class Bands:
    """The bands of images (C, *spatial): `count` of equal width in frequency for every channel, fewer where some would
    be empty.

    Attributes: `index`, (C, *spatial) int64, the band of each coefficient; `sizes`, (L,) float64, its coefficients.
    Raises InputError for more bands than there are frequencies.
    """

    def __init__(self, shape: Sequence[int], count: int) -> None:
        shape, count = checks.shape("an image shape", shape), checks.whole("bands", count, least=1)
        channels, spatial = shape[0], shape[1:]
        radius = frequencies(spatial)
        distinct = len(np.unique(np.round(radius, 12)))
        checks.refuse(
            count > distinct,
            f"bands={count} is more than there are frequencies in images {tuple(shape)}, which have {distinct}; take "
            f"at most {distinct}.",
        )
        edges = np.linspace(0.0, float(radius.max()) * (1 + 1e-12) or 1.0, count + 1)[1:-1]
        own = np.unique(np.digitize(radius, edges), return_inverse=True)[1].reshape(radius.shape)
        each = int(own.max()) + 1
        index = own + each * np.arange(channels).reshape(-1, *(1,) * len(spatial))
        self.index = torch.from_numpy(np.broadcast_to(index, tuple(shape)).copy()).long()
        self.sizes = torch.bincount(self.index.flatten()).double()

    @property
    def count(self) -> int:
        """L, over all channels."""
        return len(self.sizes)

    def sum(self, elementwise: torch.Tensor) -> torch.Tensor:
        """Sums over each band, (…, C, *spatial) to (…, L) float64."""
        rows = elementwise.double().flatten(-self.index.ndim)
        found = torch.zeros(*rows.shape[:-1], self.count, dtype=torch.float64, device=rows.device)
        return found.index_add_(-1, self.index.flatten().to(rows.device), rows)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """A value of each band, (…, L), at each of its coefficients: (…, C, *spatial)."""
        return values[..., self.index.to(values.device)]
